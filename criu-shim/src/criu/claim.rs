//! The parent of a dump without memory: images of an earlier dump that never was.
//!
//! CRIU leaves a page out of a dump if the parent has it and it was not written since. The parent made here says that it
//! has whatever it is told to say, and holds no bytes. CRIU then writes entries with the flag "in the parent" and no
//! bytes; [`super::pagemap`] says afterwards where these pages are.
//!
//! What CRIU 4.2 asks of a parent: its directory opens relative to the images' (`open_image_dir`, `open_parent` in
//! `criu/image.c`), `inventory.img` has `dump_uptime` (`get_parent_inventory`), and of each process that has a
//! `pagemap-PID.img` the pages file opens (`open_page_read_at` in `criu/pagemap.c`). A process that has none is dumped in
//! full. One that has one but lacks a page of it makes the *whole* dump fail ("Missing ... in parent pagemap",
//! `check_pagehole_in_parent` in `criu/page-xfer.c`): CRIU asks by process, not by page, whether there is a parent.
//! Hence [`Claim::everything`].

use super::error::ClaimError;
use super::image;
use super::pagemap::{PAGEMAP_MAGIC, PRESENT, PagemapEntry, PagemapHead, pagemap_file};
use super::ranges;
use prost::Message;
use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `INVENTORY_MAGIC`. Source: CRIU's `criu/include/magic.h`. Unlike the others, this image has no common magic before it.
const INVENTORY_MAGIC: u32 = 0x5831_3116;

/// `CRTOOLS_IMAGES_V1_1`. Source: the same.
const IMAGES_VERSION: u32 = 2;

/// The link to the parent, which CRIU makes in the directory of images (`CR_PARENT_LINK`).
const LINK: &str = "parent";

/// End of all user addresses on any architecture (57 bits of x86-64 with five levels). CRIU only looks for pages that it
/// has found in the process, so a claim may reach beyond.
const ADDRESSES: u64 = 1 << 57;

/// Memory of one process that CRIU is told the parent has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Process id as the images name it: the one in the innermost PID namespace.
    pub pid: i32,
    /// Address ranges: sorted, apart, of whole pages. They have to cover every page that CRIU would leave out, which are
    /// those of all private and readable mappings.
    pub ranges: Vec<Range<u64>>,
}

impl Claim {
    /// A claim to the whole address space. It takes no look at the process, so it may be made before the freeze.
    pub fn everything(pid: i32) -> Self {
        Self { pid, ranges: std::iter::once(0..ADDRESSES).collect() }
    }
}

/// `inventory_entry`, as far as CRIU reads that of a parent.
#[derive(Clone, PartialEq, prost::Message)]
struct Inventory {
    #[prost(uint32, required, tag = "1")]
    img_version: u32,
    /// Microseconds since boot.
    #[prost(uint64, optional, tag = "8")]
    dump_uptime: Option<u64>,
}

/// A parent on disk, beside a directory of images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedParent {
    link: String,
    claims: Vec<Claim>,
}

impl ClaimedParent {
    /// Writes the parent of a dump into `images`, as a directory beside it.
    ///
    /// `uptime` is the time since boot, as `/proc/uptime` says it, at which the processes of the claims were seen. CRIU
    /// takes a process that is younger for another one of the same id and dumps it in full (`detect_pid_reuse` in
    /// `criu/mem.c`, at a resolution of one clock tick).
    ///
    /// # Errors
    /// [`ClaimError`]; what was written by then is in a directory that the next attempt replaces.
    pub fn write(images: &Path, claims: Vec<Claim>, uptime: Duration) -> Result<Self, ClaimError> {
        validate(&claims)?;
        let (directory, link) = beside(images)?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ClaimError::Write { path, source }
        };
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(&directory)(error)),
            _ => {}
        }
        std::fs::DirBuilder::new().mode(0o700).create(&directory).map_err(failed(&directory))?;
        let put = |name: &str, content: &[u8]| {
            let path = directory.join(name);
            let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            open.and_then(|mut file| file.write_all(content)).map_err(failed(&path))
        };
        put("inventory.img", &inventory(uptime))?;
        for (claim, pages_id) in claims.iter().zip(1..) {
            put(&pagemap_file(claim.pid), &pagemap(claim, pages_id))?;
            put(&format!("pages-{pages_id}.img"), &[])?;
        }
        Ok(Self { link, claims })
    }

    /// Where the parent is, relative to the directory of images: `criu_opts.parent_img`.
    pub(super) fn link(&self) -> &str {
        &self.link
    }

    /// What it claims.
    pub fn claims(&self) -> &[Claim] {
        &self.claims
    }

    /// Removes the parent, and the link to it that CRIU has made, when every page that CRIU left out is accounted for. A
    /// restore would look for the parent otherwise.
    ///
    /// # Errors
    /// [`ClaimError::Remove`].
    pub fn remove(self, images: &Path) -> Result<(), ClaimError> {
        let link = images.join(LINK);
        let gone = |path: PathBuf, outcome: std::io::Result<()>| match outcome {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(ClaimError::Remove { path, source }),
            _ => Ok(()),
        };
        let directory = beside(images)?.0;
        gone(link.clone(), std::fs::remove_file(link))?;
        gone(directory.clone(), std::fs::remove_dir_all(directory))
    }
}

/// The parent's directory, and its name relative to `images`. Relative, because the path that CRIU opens may begin in
/// another mount namespace than the caller's.
fn beside(images: &Path) -> Result<(PathBuf, String), ClaimError> {
    let name = images.file_name().and_then(|name| name.to_str());
    let name =
        name.map(|name| format!("{name}.claimed")).ok_or_else(|| ClaimError::Name { path: images.to_owned() })?;
    Ok((images.with_file_name(&name), format!("../{name}")))
}

fn validate(claims: &[Claim]) -> Result<(), ClaimError> {
    for (index, claim) in claims.iter().enumerate() {
        if claim.pid <= 0 || claims[..index].iter().any(|earlier| earlier.pid == claim.pid) {
            return Err(ClaimError::Pid { pid: claim.pid });
        }
        let beyond = claim.ranges.last().is_some_and(|last| last.end > ADDRESSES);
        if claim.ranges.is_empty() || beyond || !ranges::is_sorted(&claim.ranges) {
            return Err(ClaimError::Ranges { pid: claim.pid });
        }
    }
    Ok(())
}

fn inventory(uptime: Duration) -> Vec<u8> {
    let micros = u64::try_from(uptime.as_micros()).unwrap_or(u64::MAX);
    let entry = Inventory { img_version: IMAGES_VERSION, dump_uptime: Some(micros) }.encode_to_vec();
    [&INVENTORY_MAGIC.to_le_bytes()[..], &(entry.len() as u32).to_le_bytes(), &entry].concat()
}

fn pagemap(claim: &Claim, pages_id: u32) -> Vec<u8> {
    let head = PagemapHead { pages_id }.encode_to_vec();
    let entries = claim.ranges.iter().map(|range| PagemapEntry::new(range, PRESENT).encode_to_vec());
    image::assemble(PAGEMAP_MAGIC, std::iter::once(head).chain(entries))
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
mod tests {
    use super::super::ranges::PAGE;
    use super::*;

    const UPTIME: Duration = Duration::from_millis(1_234_560);

    fn claim(pid: i32, ranges: &[Range<u64>]) -> Claim {
        Claim { pid, ranges: ranges.to_vec() }
    }

    fn refused(claims: &[Claim]) -> ClaimError {
        let root = tempfile::tempdir().unwrap();
        ClaimedParent::write(&root.path().join("images"), claims.to_vec(), UPTIME).unwrap_err()
    }

    #[test]
    fn the_inventory_is_one_magic_and_one_entry_with_the_uptime_in_microseconds() {
        let image = inventory(UPTIME);
        assert_eq!(image[..4], [0x16, 0x31, 0x31, 0x58]);
        assert_eq!(image[4..8], ((image.len() - 8) as u32).to_le_bytes());
        let entry = Inventory::decode(&image[8..]).unwrap();
        assert_eq!((entry.img_version, entry.dump_uptime), (2, Some(1_234_560_000)));
    }

    #[test]
    fn every_process_gets_a_pagemap_and_empty_pages() {
        let root = tempfile::tempdir().unwrap();
        let images = root.path().join("images");
        std::fs::create_dir(&images).unwrap();
        let claims = vec![claim(1, &[PAGE..3 * PAGE, 8 * PAGE..9 * PAGE]), Claim::everything(17)];
        let parent = ClaimedParent::write(&images, claims, UPTIME).unwrap();
        assert_eq!(parent.link(), "../images.claimed");
        let directory = images.join(parent.link());

        let image = std::fs::read(directory.join("pagemap-1.img")).unwrap();
        let entries = image::entries(&image, PAGEMAP_MAGIC).unwrap();
        assert_eq!(PagemapHead::decode(entries[0]).unwrap().pages_id, 1);
        let entry = PagemapEntry::decode(entries[1]).unwrap();
        assert_eq!((entry.vaddr, entry.nr_pages, entry.flags), (PAGE, Some(2), Some(PRESENT)));
        assert_eq!(entries.len(), 3);

        let image = std::fs::read(directory.join("pagemap-17.img")).unwrap();
        let head = image::entries(&image, PAGEMAP_MAGIC).unwrap()[0];
        assert_eq!(PagemapHead::decode(head).unwrap().pages_id, 2);
        assert_eq!(std::fs::read(directory.join("pages-2.img")).unwrap(), b"");
    }

    #[test]
    fn nothing_is_left_of_a_parent_that_was_removed() {
        let root = tempfile::tempdir().unwrap();
        let images = root.path().join("images");
        std::fs::create_dir(&images).unwrap();
        for _ in 0..2 {
            ClaimedParent::write(&images, vec![Claim::everything(1)], UPTIME).unwrap();
        }
        let parent = ClaimedParent::write(&images, vec![Claim::everything(1)], UPTIME).unwrap();
        std::os::unix::fs::symlink(parent.link(), images.join("parent")).unwrap();
        parent.clone().remove(&images).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0);
        parent.remove(&images).unwrap();
    }

    #[test]
    fn a_claim_that_is_none_is_refused_by_name() {
        assert!(matches!(refused(&[claim(0, &[0..PAGE])]), ClaimError::Pid { pid: 0 }));
        assert!(matches!(refused(&[Claim::everything(5), Claim::everything(5)]), ClaimError::Pid { pid: 5 }));
        assert!(matches!(refused(&[claim(1, &[])]), ClaimError::Ranges { pid: 1 }));
        assert!(matches!(refused(&[claim(1, &[0..ADDRESSES + PAGE])]), ClaimError::Ranges { .. }));
        assert!(matches!(refused(&[claim(1, &[2 * PAGE..3 * PAGE, 0..PAGE])]), ClaimError::Ranges { .. }));
    }
}
