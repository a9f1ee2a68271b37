//! The images of an IPC namespace, `ipcns-*-N.img`, which a CRIU writes that is not in it.
//!
//! Owns what a restore forgets that they say. CRIU makes the objects in them again, by id, key, owner and content, but not that a
//! segment was removed and goes with its last mapping.

use super::image::{self, ImageError, ImagesError};
use crate::system_v::is_removed;
use prost::Message;
use std::path::Path;

/// `IPCNS_SHM_MAGIC` of CRIU's `criu/include/magic.h`.
const SEGMENTS_MAGIC: u32 = 0x4628_3044;

/// `ipc_desc_entry` of CRIU's `images/ipc-desc.proto`.
#[derive(Clone, PartialEq, Message)]
struct Description {
    #[prost(uint32, required, tag = "6")]
    mode: u32,
    #[prost(uint32, required, tag = "7")]
    id: u32,
}

/// `ipc_shm_entry` of CRIU's `images/ipc-shm.proto`.
#[derive(Clone, PartialEq, Message)]
struct Segment {
    #[prost(message, required, tag = "1")]
    description: Description,
}

/// Ids of the segments in `images` that were removed while processes had them mapped; none where the images hold no IPC namespace.
///
/// # Errors
/// [`ImagesError`].
pub fn removed_segments(images: &Path) -> Result<Option<Vec<i32>>, ImagesError> {
    let mut removed = None;
    for path in image::named(images, "ipcns-")? {
        let removed = removed.get_or_insert_with(Vec::new);
        // CRIU writes it only where there are segments.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ipcns-shm-")) {
            removed.extend(image::parsed(&path, parse)?);
        }
    }
    Ok(removed)
}

fn parse(image: &[u8]) -> Result<Vec<i32>, ImageError> {
    let mut removed = Vec::new();
    for (number, entry) in image::entries(image, SEGMENTS_MAGIC)?.into_iter().enumerate() {
        let Segment { description } = Segment::decode(entry).map_err(|_| ImageError::Entry(number))?;
        let id = i32::try_from(description.id).map_err(|_| ImageError::Entry(number))?;
        removed.extend(is_removed(description.mode).then_some(id));
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(segments: &[(u32, u32)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let entries = segments.iter().map(|&(id, mode)| Segment { description: Description { mode, id } });
        let image = image::assemble(SEGMENTS_MAGIC, entries.map(|segment| segment.encode_to_vec()));
        std::fs::write(directory.path().join("ipcns-shm-11.img"), image).unwrap();
        directory
    }

    #[test]
    fn removed_segments_are_told_from_the_others() {
        let images = images(&[(1, 0o600), (32_769, 0o1666), (7, 0o1000)]);
        assert_eq!(removed_segments(images.path()).unwrap(), Some(vec![32_769, 7]));
    }

    #[test]
    fn a_namespace_without_segments_is_not_the_same_as_none() {
        let namespace = tempfile::tempdir().unwrap();
        std::fs::write(namespace.path().join("ipcns-var-11.img"), "").unwrap();
        assert_eq!(removed_segments(namespace.path()).unwrap(), Some(Vec::new()));
        assert_eq!(removed_segments(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }

    #[test]
    fn what_is_no_such_image_is_refused_by_its_name() {
        let images = images(&[(u32::MAX, 0o600)]);
        let refused = removed_segments(images.path()).unwrap_err();
        assert!(matches!(refused, ImagesError::Image { source: ImageError::Entry(0), .. }), "{refused}");
        std::fs::write(images.path().join("ipcns-shm-11.img"), "not an image").unwrap();
        let refused = removed_segments(images.path()).unwrap_err();
        assert!(matches!(refused, ImagesError::Image { source: ImageError::Magic { .. }, .. }), "{refused}");
    }
}
