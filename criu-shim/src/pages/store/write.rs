//! Taking pages in.

use super::extents::{Content, Extents, Part};
use super::index::{Index, MAX_EXTENTS};
use super::sums::{Keeping, NamedSums};
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
    /// Sums of its pages, where it lasts.
    keeping: Option<Keeping>,
}

/// What a finished store has, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Lazy and in the data file.
    pub data: u64,
    /// Lazy and known to be zero.
    pub zero: u64,
    /// In the data file until now, and not lazy in the image: given back.
    pub stale: u64,
    /// Sums of all of it, where it lasts.
    pub sums: Option<NamedSums>,
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
        let (length, extents, keeping) = (0, Extents::default(), None);
        Ok(Self { directory: directory.to_owned(), path, pid, file, length, extents, keeping })
    }

    /// The same of a store that is to be the only copy of a state: with sums of its pages.
    ///
    /// # Errors
    /// As [`StoreWriter::create`].
    pub fn lasting(directory: &Path, pid: i32) -> Result<Self, StoreError> {
        let keeping = Some(Keeping::create(&data_path(directory, pid))?);
        Ok(Self { keeping, ..Self::create(directory, pid)? })
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
        let orphans = self.extents.put(range, Content::Zero);
        orphans.into_iter().try_for_each(|orphan| self.give_back(orphan))
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
                    if let Some(keeping) = &self.keeping {
                        keeping.sums.check(offset, piece)?;
                    }
                }
                Some(Content::Zero) => {}
                None => return Err(StoreError::NeverCame { pid: self.pid, address: part.start }),
            }
        }
        Ok(bytes)
    }

    /// A round has landed: reads back what it has brought, where the store lasts. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a page that is not the one that came, [`StoreError::Read`].
    pub fn settle(&mut self) -> Result<(), StoreError> {
        self.keeping.as_mut().map_or(Ok(()), |keeping| keeping.settle(&self.file))
    }

    /// Shows what has come so far as a store in another `directory` of the same file system, and goes on taking in. It is right
    /// until more comes. `present` is as for [`StoreWriter::finish`].
    ///
    /// # Errors
    /// As [`StoreWriter::finish`].
    pub fn show(&self, present: &[PageRange], directory: &Path) -> Result<(), StoreError> {
        let present = self.all_of(present)?;
        let mut extents = self.extents.clone();
        extents.keep_only(&present);
        let link = data_path(directory, self.pid);
        match &self.keeping {
            Some(keeping) => keeping.sums.link(directory)?,
            None => std::fs::hard_link(&self.path, &link).map_err(|source| StoreError::Write { path: link, source })?,
        }
        self.write_index(directory, &extents)
    }

    /// Ends the taking in and writes the index, so that a [`super::Store`] can be opened.
    ///
    /// `present` are the pages that the image calls lazy. That is the truth: what the store has beside them was unmapped
    /// since it was sent, or is in the images, and is dropped. Its place in the file is not given back: a file system that writes what
    /// is dirty there before it does, as ext4, keeps the caller waiting for its disk, and the file goes soon.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if a page of `present` was never given; there is no index then. [`StoreError::Write`],
    /// [`StoreError::TooScattered`].
    pub fn finish(mut self, present: &[PageRange]) -> Result<Stored, StoreError> {
        let present = self.all_of(present)?;
        let orphans = self.extents.keep_only(&present);
        let stale = orphans.iter().map(|range| range.end - range.start).sum();
        self.write_index(&self.directory, &self.extents)?;
        let data = self.extents.data().iter().map(|extent| extent.length).sum();
        let sums = self.keeping.as_ref().map(|keeping| NamedSums::of(&keeping.sums)).transpose()?;
        Ok(Stored { data, zero: self.extents.zero_bytes(), stale, sums })
    }

    /// Gives the store up: its process is not restored.
    ///
    /// # Errors
    /// [`StoreError::Remove`].
    pub fn discard(self) -> Result<(), StoreError> {
        let path = self.path;
        std::fs::remove_file(&path).map_err(|source| StoreError::Remove { path, source })?;
        self.keeping.map_or(Ok(()), |keeping| keeping.sums.remove())
    }

    /// Gives back a part of the data file that no extent has. It is never served, whether that works or not.
    fn give_back(&self, orphan: Range<u64>) -> Result<(), StoreError> {
        match (punch(&self.file, orphan.clone()), &self.keeping) {
            (Ok(()), Some(keeping)) => keeping.sums.zeroed(orphan),
            (Ok(()), None) | (Err(_), _) => Ok(()),
        }
    }

    /// `present`, all of which the store has.
    fn all_of(&self, present: &[PageRange]) -> Result<Vec<PageRange>, StoreError> {
        let present = PageRange::merged(present);
        match present.iter().find_map(|range| self.extents.first_gap(*range)) {
            Some(address) => Err(StoreError::Missing { pid: self.pid, address }),
            None => Ok(present),
        }
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

    fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        if let Some(keeping) = &mut self.keeping {
            keeping.put(offset, bytes)?;
        }
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|source| StoreError::Write { path: self.path.clone(), source })
    }

    /// Under another name first, so that a reader finds a whole index or none.
    fn write_index(&self, directory: &Path, extents: &Extents) -> Result<(), StoreError> {
        let extents = extents.data();
        if extents.len() > MAX_EXTENTS {
            return Err(StoreError::TooScattered { pid: self.pid, extents: extents.len() });
        }
        let index = Index { pid: self.pid, data_length: self.length, extents };
        let path = index_path(directory, self.pid);
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
