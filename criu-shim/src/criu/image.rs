//! CRIU's image files: framing only.
//!
//! A file is u32 0x54564319, u32 magic of its kind, then entries of u32 length and a protobuf message, all little
//! endian. (`inventory.img` has one magic only and is not read here.)

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Magic of an image that belongs to all tasks (`IMG_COMMON_MAGIC`).
pub const COMMON_MAGIC: u32 = 0x5456_4319;

/// Magic of `files.img`.
pub const FILES_MAGIC: u32 = 0x5630_3138;

/// The image that CRIU opens first. Source: `check_img_inventory`, which `cr_restore_tasks` of its `criu/cr-restore.c` begins with.
pub const INVENTORY: &str = "inventory.img";

/// Longest image that is read whole, bytes. 1,000 open files take 60 KiB.
pub const MAX_IMAGE: u64 = 256 << 20;

/// Bytes that are no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ImageError {
    /// The file does not start with the two magics.
    #[error("magic is {found:#x} {kind:#x}, not {COMMON_MAGIC:#x} {expected:#x}")]
    Magic {
        /// First word.
        found: u32,
        /// Second word.
        kind: u32,
        /// What the second word should be.
        expected: u32,
    },
    /// The file ends inside of an entry.
    #[error("cut off at byte {0}")]
    CutOff(usize),
    /// The entry is not the message that this kind of image holds, or contradicts itself.
    #[error("bad entry {0}")]
    Entry(usize),
    /// The file has fewer or more entries than its kind has.
    #[error("{0} entries")]
    Count(usize),
}

/// Why images in a directory are not known.
#[derive(Debug, Error)]
pub enum ImagesError {
    /// The images can't be listed.
    #[error("list the images in {path}")]
    List {
        /// Their directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The image can't be read.
    #[error("read {path}")]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The image is no image.
    #[error("parse {path}")]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
}

/// The images in `directory` whose names begin with `prefix`.
///
/// # Errors
/// [`ImagesError::List`].
pub fn named(directory: &Path, prefix: &str) -> Result<Vec<PathBuf>, ImagesError> {
    let failed = |source| ImagesError::List { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in directory.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// What `parse` makes of the image at `path`.
///
/// # Errors
/// [`ImagesError::Read`], [`ImagesError::Image`].
pub fn parsed<T>(path: &Path, parse: impl FnOnce(&[u8]) -> Result<T, ImageError>) -> Result<T, ImagesError> {
    let image = read(path).map_err(|source| ImagesError::Read { path: path.to_owned(), source })?;
    parse(&image).map_err(|source| ImagesError::Image { path: path.to_owned(), source })
}

/// Reads an image whole, if it has no more than [`MAX_IMAGE`] bytes; follows no link.
///
/// # Errors
/// As reading a file; [`ErrorKind::FileTooLarge`].
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let mut image = Vec::new();
    file.take(MAX_IMAGE + 1).read_to_end(&mut image)?;
    if image.len() as u64 > MAX_IMAGE { Err(ErrorKind::FileTooLarge.into()) } else { Ok(image) }
}

/// The entries of an image of kind `magic`, as slices of `image`.
///
/// # Errors
/// [`ImageError`] for another kind of file or one that is cut off.
pub fn entries(image: &[u8], magic: u32) -> Result<Vec<&[u8]>, ImageError> {
    let word = |at: usize| -> Result<u32, ImageError> {
        let bytes = image.get(at..).and_then(|rest| rest.first_chunk()).ok_or(ImageError::CutOff(at))?;
        Ok(u32::from_le_bytes(*bytes))
    };
    let (found, kind) = (word(0)?, word(4)?);
    if (found, kind) != (COMMON_MAGIC, magic) {
        return Err(ImageError::Magic { found, kind, expected: magic });
    }
    let mut entries = Vec::new();
    let mut at = 8;
    while at < image.len() {
        let length = word(at)? as usize;
        let end = (at + 4).checked_add(length).ok_or(ImageError::CutOff(at))?;
        entries.push(image.get(at + 4..end).ok_or(ImageError::CutOff(at))?);
        at = end;
    }
    Ok(entries)
}

/// An image of kind `magic` with these entries.
pub fn assemble(magic: u32, entries: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let mut image = [COMMON_MAGIC.to_le_bytes(), magic.to_le_bytes()].concat();
    for entry in entries {
        image.extend_from_slice(&(entry.len() as u32).to_le_bytes());
        image.extend_from_slice(&entry);
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn another_kind_of_file_is_refused() {
        let image = assemble(1, []);
        assert!(matches!(entries(&image, FILES_MAGIC), Err(ImageError::Magic { kind: 1, .. })));
        assert_eq!(entries(b"abc", FILES_MAGIC), Err(ImageError::CutOff(0)));
    }

    proptest! {
        #[test]
        fn entries_read_back(list in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..30), 0..9)) {
            let image = assemble(FILES_MAGIC, list.clone());
            prop_assert_eq!(entries(&image, FILES_MAGIC).unwrap(), list.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }

        #[test]
        fn every_truncation_is_noticed_or_ends_at_an_entry(cut in 0usize..60) {
            let image = assemble(FILES_MAGIC, [vec![1; 20], vec![2; 20]]);
            let result = entries(&image[..cut.min(image.len())], FILES_MAGIC);
            prop_assert_eq!(result.is_ok(), [8, 32, 56].contains(&cut) || cut >= image.len());
        }
    }
}
