//! The images of shared memory: `pagemap-shmem-INODE.img`, and the pages file that each of them names.
//!
//! Owns what is written into them for an object that the dump left out ([`super::withheld`]). A restore reads the pages
//! file from its start to its end, in the order of the image's entries, whatever their offsets in the object are
//! (`do_restore_shmem_content` in CRIU's `criu/shmem.c`). So the file may have its pages in any order that the entries have
//! too. An entry that reaches beyond the object's end makes CRIU pass over all that follow, without a word.

use super::error::{PagemapError, SharedError};
use super::image::{self, ImageError};
use super::pagemap::{PAGEMAP_MAGIC, PRESENT, PagemapEntry, PagemapHead};
use prost::Message;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What the image of an object says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedImage {
    /// Number in the name of the pages file.
    pub pages_id: u32,
    /// Bytes of the object, in the order of the pages file.
    pub pages: Vec<Range<u64>>,
}

/// Name of the image of the object with this inode.
fn file(inode: u32) -> String {
    format!("pagemap-shmem-{inode}.img")
}

/// Name of a pages file.
pub fn pages_file(pages_id: u32) -> String {
    format!("pages-{pages_id}.img")
}

/// The objects of which there is an image in `images`, by inode: sorted.
///
/// # Errors
/// Where the directory can't be listed.
pub fn objects(images: &Path) -> std::io::Result<Vec<u32>> {
    let mut inodes = Vec::new();
    for entry in images.read_dir()? {
        let name = entry?.file_name();
        let inode: Option<u32> =
            name.to_str().and_then(|name| name.strip_prefix("pagemap-shmem-")?.strip_suffix(".img")?.parse().ok());
        inodes.extend(inode);
    }
    inodes.sort_unstable();
    Ok(inodes)
}

/// What the image of the object says; none where there is none.
///
/// # Errors
/// [`PagemapError`].
pub fn read(images: &Path, inode: u32) -> Result<Option<SharedImage>, PagemapError> {
    let path = images.join(file(inode));
    let image = match image::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        image => image.map_err(|source| PagemapError::Read { path: path.clone(), source })?,
    };
    parse(&image).map(Some).map_err(|source| PagemapError::Image { path, source })
}

fn parse(image: &[u8]) -> Result<SharedImage, ImageError> {
    let entries = image::entries(image, PAGEMAP_MAGIC)?;
    let (head, entries) = entries.split_first().ok_or(ImageError::Count(0))?;
    let pages_id = PagemapHead::decode(*head).map_err(|_| ImageError::Entry(0))?.pages_id;
    let mut pages = Vec::with_capacity(entries.len());
    for (number, entry) in (1..).zip(entries) {
        let range = PagemapEntry::decode(*entry).ok().filter(PagemapEntry::is_present).and_then(|entry| entry.range());
        pages.push(range.ok_or(ImageError::Entry(number))?);
    }
    Ok(SharedImage { pages_id, pages })
}

/// The first object in `images` of whose pages file there is more or less than its image says; none if all are whole.
///
/// # Errors
/// [`PagemapError`].
pub fn incomplete(images: &Path) -> Result<Option<u32>, PagemapError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| PagemapError::Read { path, source }
    };
    for inode in objects(images).map_err(failed(images))? {
        let Some(image) = read(images, inode)? else { continue };
        let expected: u64 = image.pages.iter().map(|range| range.end - range.start).sum();
        let path = images.join(pages_file(image.pages_id));
        let found = match path.symlink_metadata() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            metadata => metadata.map_err(failed(&path))?.len(),
        };
        if found != expected {
            return Ok(Some(inode));
        }
    }
    Ok(None)
}

/// Writes down which pages an object has that the dump left out, and in which order its pages file has them. True if it
/// was left out: where CRIU has dumped it after all, or has not come across it, nothing is done.
///
/// `size` is the object's, bytes.
///
/// # Errors
/// [`SharedError`]; the images are of no use then.
pub fn fill_in(images: &Path, inode: u32, pages: &[Range<u64>], size: u64) -> Result<bool, SharedError> {
    let Some(SharedImage { pages_id, pages: dumped }) = read(images, inode).map_err(SharedError::Image)? else {
        return Ok(false);
    };
    if !dumped.is_empty() {
        return Ok(false);
    }
    if let Some(beyond) = pages.iter().find(|range| range.end > size.next_multiple_of(super::ranges::PAGE)) {
        return Err(SharedError::Beyond { inode, end: beyond.end, size });
    }
    let head = PagemapHead { pages_id }.encode_to_vec();
    let entries = pages.iter().map(|range| PagemapEntry::new(range, PRESENT).encode_to_vec());
    let image = image::assemble(PAGEMAP_MAGIC, std::iter::once(head).chain(entries));
    let path = images.join(file(inode));
    let failed = |path: PathBuf| move |source| SharedError::Write { path, source };
    let aside = path.with_extension("img.filled");
    std::fs::write(&aside, image).and_then(|()| std::fs::rename(&aside, &path)).map_err(failed(path))?;
    // CRIU may have made it without a byte. The target has the one that counts.
    let empty = images.join(pages_file(pages_id));
    match std::fs::remove_file(&empty) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(empty)(error)),
        _ => Ok(true),
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
mod tests {
    use super::super::ranges::PAGE;
    use super::*;

    fn images(entries: &[Range<u64>]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let head = PagemapHead { pages_id: 3 }.encode_to_vec();
        let entries = entries.iter().map(|range| PagemapEntry::new(range, PRESENT).encode_to_vec());
        let image = image::assemble(PAGEMAP_MAGIC, std::iter::once(head).chain(entries));
        std::fs::write(directory.path().join("pagemap-shmem-9.img"), image).unwrap();
        std::fs::write(directory.path().join("pages-3.img"), "").unwrap();
        directory
    }

    #[test]
    fn an_object_that_was_left_out_gets_its_pages_in_the_order_in_which_they_lie() {
        let images = images(&[]);
        let pages = [4 * PAGE..6 * PAGE, 0..PAGE];
        assert!(fill_in(images.path(), 9, &pages, 6 * PAGE - 1).unwrap());
        assert_eq!(read(images.path(), 9).unwrap(), Some(SharedImage { pages_id: 3, pages: pages.to_vec() }));
        assert!(!images.path().join("pages-3.img").exists(), "the target makes it");
        assert_eq!(objects(images.path()).unwrap(), [9]);
    }

    #[test]
    fn an_object_that_was_dumped_or_is_in_no_image_stays_as_it_is() {
        let images = images(&[0..PAGE]);
        assert!(!fill_in(images.path(), 9, &[PAGE..2 * PAGE], 2 * PAGE).unwrap());
        assert_eq!(read(images.path(), 9).unwrap().unwrap().pages, [0..PAGE]);
        assert!(!fill_in(images.path(), 8, &[0..PAGE], PAGE).unwrap());
        assert_eq!(objects(images.path()).unwrap(), [9]);
    }

    #[test]
    fn a_page_beyond_the_end_is_refused_because_criu_would_pass_over_what_follows() {
        let images = images(&[]);
        let refused = fill_in(images.path(), 9, &[0..2 * PAGE], PAGE).unwrap_err();
        assert!(matches!(refused, SharedError::Beyond { inode: 9, .. }));
    }
}
