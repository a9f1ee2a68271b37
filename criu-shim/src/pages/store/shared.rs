//! The pages of shared memory: an object's, in the file that CRIU reads them from.
//!
//! CRIU takes an object's pages one after the other, in the order of its image's entries. A page has its place in the file
//! from the first time that it comes, and keeps it, so that the order of first coming is what the image must say.

use super::extents::{Content, Extents};
use super::sums::{Keeping, NamedSums};
use super::write::punch;
use super::{StoreError, shared_path};
use crate::pages::{PageRange, RangeError};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The pages of one object while they arrive.
#[derive(Debug)]
pub struct SharedWriter {
    path: PathBuf,
    inode: u32,
    file: File,
    /// Length of the file, bytes.
    length: u64,
    extents: Extents,
    order: Vec<PageRange>,
    /// Sums of its pages, where it lasts.
    keeping: Option<Keeping>,
}

impl SharedWriter {
    /// Begins the file of the object that the images call `inode`. It is for its owner's eyes only.
    ///
    /// # Errors
    /// [`StoreError::Create`], also for one that is there already.
    pub fn create(directory: &Path, inode: u32) -> Result<Self, StoreError> {
        let path = shared_path(directory, inode);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| StoreError::Create { path: path.clone(), source })?;
        Ok(Self { path, inode, file, length: 0, extents: Extents::default(), order: Vec::new(), keeping: None })
    }

    /// The same of one that is to be the only copy of a state: with sums of its pages.
    ///
    /// # Errors
    /// As [`SharedWriter::create`].
    pub fn lasting(directory: &Path, inode: u32) -> Result<Self, StoreError> {
        let keeping = Some(Keeping::create(&shared_path(directory, inode))?);
        Ok(Self { keeping, ..Self::create(directory, inode)? })
    }

    /// Takes the pages from `offset` in the object on. A page that came before is replaced where it is.
    ///
    /// # Errors
    /// [`StoreError::Pages`] if they are no whole pages, [`StoreError::Write`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let range = self.range(offset, bytes.len() as u64)?;
        for part in self.extents.parts(range) {
            // Both are inside of `bytes`.
            let piece = &bytes[(part.start - offset) as usize..(part.end - offset) as usize];
            let place = match part.content {
                Some(Content::Data(place)) => place,
                Some(Content::Zero) | None => self.length,
            };
            if let Some(keeping) = &mut self.keeping {
                keeping.put(place, piece)?;
            }
            let written = self.file.write_all_at(piece, place);
            written.map_err(|source| StoreError::Write { path: self.path.clone(), source })?;
            if place == self.length {
                self.length += piece.len() as u64;
                let range = self.range(part.start, part.end - part.start)?;
                self.extents.put(range, Content::Data(place));
                self.append(range)?;
            }
        }
        Ok(())
    }

    /// Takes note that `length` bytes from `offset` on are zero. What never came is zero anyway, and gets no place.
    ///
    /// # Errors
    /// As [`SharedWriter::write`].
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<(), StoreError> {
        for part in self.extents.parts(self.range(offset, length)?) {
            if let Some(Content::Data(place)) = part.content {
                let zeroed = place..place + (part.end - part.start);
                let punched = punch(&self.file, zeroed.clone());
                punched.map_err(|source| StoreError::Write { path: self.path.clone(), source })?;
                if let Some(keeping) = &self.keeping {
                    keeping.sums.zeroed(zeroed)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses a page that is to be like another one.
    ///
    /// # Errors
    /// [`StoreError::NotAlike`].
    pub fn refuse_copies(&self) -> Result<(), StoreError> {
        Err(StoreError::NotAlike { inode: self.inode })
    }

    /// A round has landed: reads back what it has brought, where the file lasts. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a page that is not the one that came, [`StoreError::Read`].
    pub fn settle(&mut self) -> Result<(), StoreError> {
        self.keeping.as_mut().map_or(Ok(()), |keeping| keeping.settle(&self.file))
    }

    /// Shows what has come so far in another `directory` of stores, with `asked` and `link` as for [`SharedWriter::finish`], and goes on
    /// taking in. It is right until more comes.
    ///
    /// # Errors
    /// As [`SharedWriter::finish`].
    pub fn show(&self, asked: &[PageRange], link: &Path, directory: &Path) -> Result<(), StoreError> {
        let there = shared_path(directory, self.inode);
        std::fs::hard_link(&self.path, &there).map_err(|source| StoreError::Write { path: there, source })?;
        self.link(asked, link)
    }

    /// Ends the taking in: the file is to be found at `link` too. Returns the sums of its pages, where it lasts.
    ///
    /// `asked` are the pages that the image says the file has, in its order.
    ///
    /// # Errors
    /// [`StoreError::Order`] if the file has others, or in another order. [`StoreError::Write`].
    pub fn finish(self, asked: &[PageRange], link: &Path) -> Result<Option<NamedSums>, StoreError> {
        self.link(asked, link)?;
        self.keeping.as_ref().map(|keeping| NamedSums::of(&keeping.sums)).transpose()
    }

    fn link(&self, asked: &[PageRange], link: &Path) -> Result<(), StoreError> {
        if joined(asked) != self.order {
            return Err(StoreError::Order { inode: self.inode });
        }
        std::fs::hard_link(&self.path, link).map_err(|source| StoreError::Write { path: link.to_owned(), source })
    }

    /// Gives the file up: no restore asks for it.
    ///
    /// # Errors
    /// [`StoreError::Remove`].
    pub fn discard(self) -> Result<(), StoreError> {
        let path = self.path;
        std::fs::remove_file(&path).map_err(|source| StoreError::Remove { path, source })?;
        self.keeping.map_or(Ok(()), |keeping| keeping.sums.remove())
    }

    fn append(&mut self, range: PageRange) -> Result<(), StoreError> {
        match self.order.last_mut() {
            Some(last) if last.end() == range.start() => {
                let longer = PageRange::new(last.start(), range.end() - last.start());
                *last = longer.map_err(|source| StoreError::Pages { path: self.path.clone(), source })?;
            }
            _ => self.order.push(range),
        }
        Ok(())
    }

    fn range(&self, offset: u64, length: u64) -> Result<PageRange, StoreError> {
        PageRange::new(offset, length)
            .map_err(|source: RangeError| StoreError::Pages { path: self.path.clone(), source })
    }
}

/// Whether `path` is the file of an object whose pages arrived in `directory`.
///
/// # Errors
/// Where either can't be looked at.
pub fn is_shared(directory: &Path, path: &Path) -> std::io::Result<bool> {
    let looked_for = path.symlink_metadata()?;
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if is_shared_name(&entry.file_name())
            && (metadata.dev(), metadata.ino()) == (looked_for.dev(), looked_for.ino())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a file of this name in a directory of stores is an object's, not a process'.
pub fn is_shared_name(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"shared-")
}

/// In the same order, with neighbours made one.
fn joined(ranges: &[PageRange]) -> Vec<PageRange> {
    let mut joined: Vec<PageRange> = Vec::new();
    for range in ranges {
        match joined.last().and_then(|last| (last.end() == range.start()).then_some(*last)) {
            Some(last) => {
                joined.pop();
                // Of two ranges of whole pages it is one too.
                joined.extend(PageRange::new(last.start(), range.end() - last.start()));
            }
            None => joined.push(*range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PAGE;

    const P: usize = PAGE as usize;

    fn range(start: u64, end: u64) -> PageRange {
        PageRange::new(start * PAGE, (end - start) * PAGE).unwrap()
    }

    #[test]
    fn pages_lie_in_the_order_in_which_they_came_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = SharedWriter::create(directory.path(), 5).unwrap();
        writer.write(4 * PAGE, &[4; 2 * P]).unwrap();
        writer.zero(9 * PAGE, PAGE).unwrap();
        writer.write(PAGE, &[1; P]).unwrap();
        writer.write(3 * PAGE, &[[3; P], [7; P]].concat()).unwrap();
        writer.zero(5 * PAGE, PAGE).unwrap();
        let link = directory.path().join("pages-2.img");
        writer.finish(&[range(4, 5), range(5, 6), range(1, 2), range(3, 4)], &link).unwrap();

        let bytes = std::fs::read(&link).unwrap();
        assert_eq!(bytes, [[7; P], [0; P], [1; P], [3; P]].concat());
        assert!(is_shared(directory.path(), &link).unwrap());
        std::fs::write(directory.path().join("other"), "").unwrap();
        assert!(!is_shared(directory.path(), &directory.path().join("other")).unwrap());
    }

    #[test]
    fn another_order_than_the_image_has_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for asked in [vec![range(0, 2)], vec![range(1, 2), range(0, 1), range(2, 3)], vec![]] {
            let mut writer = SharedWriter::create(directory.path(), 5).unwrap();
            writer.write(PAGE, &[1; P]).unwrap();
            writer.write(0, &[1; P]).unwrap();
            let link = directory.path().join("pages-2.img");
            assert!(matches!(writer.finish(&asked, &link), Err(StoreError::Order { inode: 5 })));
            assert!(!link.exists());
            std::fs::remove_file(directory.path().join("shared-5.pages")).unwrap();
        }
    }

    #[test]
    fn pages_that_last_are_compared_with_what_came_also_where_they_are_zero_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = SharedWriter::lasting(directory.path(), 5).unwrap();
        writer.write(0, &[[1; P], [2; P], [3; P]].concat()).unwrap();
        writer.settle().unwrap();
        writer.zero(PAGE, PAGE).unwrap();
        writer.write(2 * PAGE, &[4; P]).unwrap();
        writer.settle().unwrap();
        let link = directory.path().join("pages-2.img");
        let sums = writer.finish(&[range(0, 3)], &link).unwrap().expect("sums");
        sums.check(directory.path()).unwrap();
        sums.compare(directory.path()).unwrap();
        std::fs::write(&link, [[1; P], [0; P], [3; P]].concat()).unwrap();
        assert!(
            matches!(sums.compare(directory.path()), Err(StoreError::Damaged { offset, .. }) if offset == 2 * PAGE)
        );
    }
}
