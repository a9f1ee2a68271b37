//! The image of a mount namespace, `mountpoints-N.img`: which of CRIU's two ways to build it again may be taken.
//!
//! The newer one can give every mount the peers that it had, and works through each mount on its own for that. The older one is
//! faster (2 ms and not 7 for the mounts of a container) and right where mounts have no peers, as those of a container have none:
//! what comes from the node, propagation from there included, is runc's to bind and external to CRIU. Source: `criu/mount.c` and
//! `criu/mount-v2.c` of CRIU.

use super::image::{self, ImageError, ImagesError};
use prost::Message;
use std::path::Path;

/// `MNTS_MAGIC` of CRIU's `criu/include/magic.h`.
const MAGIC: u32 = 0x5556_3928;

/// `mnt_entry` of CRIU's `images/mnt.proto`.
#[derive(Clone, PartialEq, Message)]
struct Mount {
    /// The group of its peers, 0 for none.
    #[prost(uint32, optional, tag = "10")]
    shared: Option<u32>,
    /// The group that it receives from, 0 for none.
    #[prost(uint32, optional, tag = "11")]
    master: Option<u32>,
    /// What it is called where it comes from outside.
    #[prost(string, optional, tag = "18")]
    external: Option<String>,
}

/// Whether mounts in `images` have peers, or receive from others, of which CRIU makes both.
///
/// # Errors
/// [`ImagesError`].
pub fn has_peers(images: &Path) -> Result<bool, ImagesError> {
    for path in image::named(images, "mountpoints-")? {
        if image::parsed(&path, parse)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// File among the images by which a source says, before there are any, that [`has_peers`] will be false of them.
const NOTE: &str = "mounts-without-peers";

/// Notes in `images` that no mount has peers.
///
/// # Errors
/// As of writing a file.
pub fn note_no_peers(images: &Path) -> std::io::Result<()> {
    std::fs::write(images.join(NOTE), "none\n")
}

/// Whether that is noted in `images`.
pub fn are_none_noted(images: &Path) -> bool {
    images.join(NOTE).exists()
}

fn parse(image: &[u8]) -> Result<bool, ImageError> {
    let mut found = false;
    for (number, entry) in image::entries(image, MAGIC)?.into_iter().enumerate() {
        let Mount { shared, master, external } = Mount::decode(entry).map_err(|_| ImageError::Entry(number))?;
        let is_external = external.is_some_and(|name| !name.is_empty());
        found |= shared.unwrap_or_default() != 0 || !is_external && master.unwrap_or_default() != 0;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(mounts: &[(u32, u32, &str)]) -> bool {
        let directory = tempfile::tempdir().unwrap();
        let entries = mounts.iter().map(|&(shared, master, external)| Mount {
            shared: Some(shared),
            master: Some(master),
            external: Some(external.to_owned()).filter(|name| !name.is_empty()),
        });
        let image = image::assemble(MAGIC, entries.map(|mount| mount.encode_to_vec()));
        std::fs::write(directory.path().join("mountpoints-12.img"), image).unwrap();
        has_peers(directory.path()).unwrap()
    }

    #[test]
    fn peers_are_seen_but_for_what_comes_from_outside() {
        assert!(!with(&[(0, 0, ""), (0, 33, "/sys/fs/cgroup/cpu"), (0, 0, "/data")]));
        assert!(with(&[(0, 0, ""), (7, 0, "")]));
        assert!(with(&[(0, 0, ""), (7, 0, "/data")]), "a volume that passes on what is mounted in it");
        assert!(with(&[(0, 7, "")]));
        assert!(!has_peers(tempfile::tempdir().unwrap().path()).unwrap(), "no namespace of its own");
    }

    #[test]
    fn a_note_comes_before_the_image() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!are_none_noted(directory.path()));
        note_no_peers(directory.path()).unwrap();
        assert!(are_none_noted(directory.path()) && !has_peers(directory.path()).unwrap());
    }

    /// A mount of `/dev/null` over `/proc/keys`, as CRIU 4.2 has written it, with the group of its peers and the one above it.
    #[test]
    fn a_mount_that_criu_has_written_is_understood() {
        let with = |shared: u8, master: u8, external: bool| {
            let mut entry = b"\x08\x05\x10\xea\x02\x18\xa3\x01\x20\x96\x03\x28\x82\x80\x80\x08\x32\x05/null\x3a\x0a/proc/keys\x42\x05tmpfs\x4a\x14size=65536k,mode=755".to_vec();
            entry.extend([0x50, shared, 0x58, master, 0x88, 0x01, 0x00]);
            if external {
                entry.extend(b"\x92\x01\x09/dev/null");
            }
            parse(&image::assemble(MAGIC, [entry])).unwrap()
        };
        assert!(!with(0, 0, false) && !with(0, 0, true));
        assert!(with(7, 0, false) && with(7, 0, true), "peers");
        assert!(with(0, 7, false) && !with(0, 7, true), "one above it");
    }

    #[test]
    fn what_is_no_image_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("mountpoints-12.img"), "what").unwrap();
        assert!(matches!(has_peers(directory.path()), Err(ImagesError::Image { .. })));
    }
}
