//! Taking pages in.

use super::extents::{Content, Extents, Part};
use super::index::{Index, MAX_EXTENTS};
use super::{StoreError, data_path, index_path};
use crate::pages::{PAGE, PageRange};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The memory of one process while it arrives.
#[derive(Debug)]
pub struct StoreWriter {
    directory: PathBuf,
    path: PathBuf,
    pid: i32,
    file: File,
    /// Length of the data file, bytes.
    length: u64,
    extents: Extents,
}

/// What a finished store has, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Lazy and in the data file.
    pub data: u64,
    /// Lazy and known to be zero.
    pub zero: u64,
    /// In the data file until now, and not lazy in the image: given back.
    pub stale: u64,
}

impl StoreWriter {
    /// Begins the store of the process that the images call `pid`. Its files are for their owner's eyes only.
    ///
    /// # Errors
    /// [`StoreError::Create`], also for a store that is there already.
    pub fn create(directory: &Path, pid: i32) -> Result<Self, StoreError> {
        let path = data_path(directory, pid);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| StoreError::Create { path: path.clone(), source })?;
        Ok(Self { directory: directory.to_owned(), path, pid, file, length: 0, extents: Extents::default() })
    }

    /// Takes the pages from `address` on. What the store has of them already is replaced.
    ///
    /// # Errors
    /// [`StoreError::Pages`] if address or length are not those of whole pages, [`StoreError::Write`]. After that some
    /// of the pages may be the new ones.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let range = self.range(address, bytes.len() as u64)?;
        for part in self.extents.parts(range) {
            // Both are inside of `bytes`.
            let piece = &bytes[(part.start - address) as usize..(part.end - address) as usize];
            match part.content {
                Some(Content::Data(offset)) => self.write_at(piece, offset)?,
                Some(Content::Zero) | None => self.append(part, piece)?,
            }
        }
        Ok(())
    }

    /// Takes note of `length` bytes of pages from `address` on that are all zero.
    ///
    /// # Errors
    /// [`StoreError::Pages`] as for [`StoreWriter::write`].
    pub fn zero(&mut self, address: u64, length: u64) -> Result<(), StoreError> {
        let range = self.range(address, length)?;
        for orphan in self.extents.put(range, Content::Zero) {
            // Only memory is at stake, and the place is never looked at again.
            punch(&self.file, orphan).ok();
        }
        Ok(())
    }

    /// The pages from `address` on, as they came last.
    ///
    /// # Errors
    /// [`StoreError::Pages`] as for [`StoreWriter::write`], [`StoreError::NeverCame`] if the store has not got all of them,
    /// [`StoreError::Read`].
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; length];
        for part in self.extents.parts(self.range(address, length as u64)?) {
            // Both are inside of `bytes`.
            let piece = &mut bytes[(part.start - address) as usize..(part.end - address) as usize];
            match part.content {
                Some(Content::Data(offset)) => {
                    let read = self.file.read_exact_at(piece, offset);
                    read.map_err(|source| StoreError::Read { path: self.path.clone(), source })?;
                }
                Some(Content::Zero) => {}
                None => return Err(StoreError::NeverCame { pid: self.pid, address: part.start }),
            }
        }
        Ok(bytes)
    }

    /// Ends the taking in and writes the index, so that a [`super::Store`] can be opened.
    ///
    /// `present` are the pages that the image calls lazy. That is the truth: what the store has beside them was unmapped
    /// since it was sent, and is dropped.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if a page of `present` was never given; there is no index then. [`StoreError::Write`],
    /// [`StoreError::TooScattered`].
    pub fn finish(mut self, present: &[PageRange]) -> Result<Stored, StoreError> {
        let present = PageRange::merged(present);
        if let Some(address) = present.iter().find_map(|range| self.extents.first_gap(*range)) {
            return Err(StoreError::Missing { pid: self.pid, address });
        }
        let orphans = self.extents.keep_only(&present);
        let stale = orphans.iter().map(|range| range.end - range.start).sum();
        for orphan in orphans {
            // Without an extent it is never served, whether its memory was given back or not.
            punch(&self.file, orphan).ok();
        }
        let extents = self.extents.data();
        if extents.len() > MAX_EXTENTS {
            return Err(StoreError::TooScattered { pid: self.pid, extents: extents.len() });
        }
        let data = extents.iter().map(|extent| extent.length).sum();
        let index = Index { pid: self.pid, data_length: self.length, extents };
        self.write_index(&index)?;
        Ok(Stored { data, zero: self.extents.zero_bytes(), stale })
    }

    /// Gives the store up: its process is not restored.
    ///
    /// # Errors
    /// [`StoreError::Remove`].
    pub fn discard(self) -> Result<(), StoreError> {
        let path = self.path;
        std::fs::remove_file(&path).map_err(|source| StoreError::Remove { path, source })
    }

    fn range(&self, address: u64, length: u64) -> Result<PageRange, StoreError> {
        PageRange::new(address, length).map_err(|source| StoreError::Pages { path: self.path.clone(), source })
    }

    fn append(&mut self, part: Part, bytes: &[u8]) -> Result<(), StoreError> {
        let offset = self.length;
        self.write_at(bytes, offset)?;
        self.length = offset + bytes.len() as u64;
        // Only now: an extent says that its bytes are there.
        let range = self.range(part.start, part.end - part.start)?;
        self.extents.put(range, Content::Data(offset));
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|source| StoreError::Write { path: self.path.clone(), source })
    }

    /// Under another name first, so that a reader finds a whole index or none.
    fn write_index(&self, index: &Index) -> Result<(), StoreError> {
        let path = index_path(&self.directory, self.pid);
        let aside = path.with_extension("index.new");
        let written = write_private(&aside, &index.encode()).and_then(|()| std::fs::rename(&aside, &path));
        written.map_err(|source| StoreError::Write { path, source })
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all_at(bytes, 0)
}

/// Gives back the memory or the blocks of a part of the data file, which reads as zero afterwards.
///
/// # Errors
/// What the file system says; some can't.
pub(super) fn punch(file: &File, range: Range<u64>) -> io::Result<()> {
    debug_assert!(range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE), "whole pages");
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, range.start, range.end - range.start)?)
}
