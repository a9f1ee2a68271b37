//! Giving pages out.

use super::index::{Index, MAX_LENGTH};
use super::mapping::{Bytes, Mapping};
use super::sums::Sums;
use super::write::punch;
use super::{Extent, StoreError, data_path, index_path};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The finished store of one process.
#[derive(Debug)]
pub struct Store {
    data_path: PathBuf,
    index_path: PathBuf,
    file: Arc<File>,
    mapping: Mapping,
    length: u64,
    extents: Vec<Extent>,
    /// Sums of its pages, where it lasts.
    sums: Option<Sums>,
}

impl Store {
    /// Opens the store of the process that the images call `pid`.
    ///
    /// # Errors
    /// [`StoreError::Open`] if there is none, or none that was finished; [`StoreError::Read`], [`StoreError::Index`],
    /// [`StoreError::Map`].
    pub fn open(directory: &Path, pid: i32) -> Result<Self, StoreError> {
        let (index_path, data_path) = (index_path(directory, pid), data_path(directory, pid));
        let index = read_index(&index_path)?;
        let refuse = |reason| StoreError::Index { path: index_path.clone(), reason };
        if index.pid != pid {
            return Err(refuse("it is that of another process"));
        }
        // Writable, because it is emptied as it is used up.
        let file = OpenOptions::new().read(true).write(true).open(&data_path);
        let file = file.map_err(|source| StoreError::Open { path: data_path.clone(), source })?;
        let length = file.metadata().map_err(|source| StoreError::Open { path: data_path.clone(), source })?.len();
        if length != index.data_length {
            return Err(refuse("the data file has another length"));
        }
        let mapping =
            Mapping::of(&file, length).map_err(|source| StoreError::Map { path: data_path.clone(), source })?;
        let sums = Sums::open(&data_path)?;
        Ok(Self { data_path, index_path, file: Arc::new(file), mapping, length, extents: index.extents, sums })
    }

    /// Where which pages lie, by ascending address. A page in none of them reads as zero.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// `length` bytes at `offset` of the data file, for the kernel to copy. Those of a store that lasts are read into `room` and compared
    /// with what came, so that what is compared is what is used.
    ///
    /// # Errors
    /// [`StoreError::Short`] if it is not that long; [`StoreError::Damaged`], [`StoreError::Read`].
    pub fn bytes<'a>(&'a self, offset: u64, length: u64, room: &'a mut Vec<u8>) -> Result<Bytes<'a>, StoreError> {
        let mapped = self.mapping.bytes(offset, length);
        let mapped = mapped.ok_or_else(|| StoreError::Short { path: self.data_path.clone(), offset, length })?;
        let Some(sums) = &self.sums else { return Ok(mapped) };
        // Inside of the mapping, whose length is an usize.
        room.resize(length as usize, 0);
        sums.read(&self.file, offset, room)?;
        Ok(Bytes::of(room))
    }

    /// Whether it may be the only copy of a state: it is needed until that has run.
    pub fn lasts(&self) -> bool {
        self.sums.is_some()
    }

    /// Length of the data file, bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What of it nobody needs any more can be given back with this, also by another thread.
    pub fn used_up(&self) -> UsedUp {
        UsedUp {
            file: self.file.clone(),
            length: self.length,
            index_path: self.index_path.clone(),
            data_path: self.data_path.clone(),
            sums_path: self.sums.as_ref().map(|sums| sums.path().to_owned()),
        }
    }
}

/// A store, for who gives it back.
#[derive(Debug)]
pub struct UsedUp {
    file: Arc<File>,
    length: u64,
    index_path: PathBuf,
    data_path: PathBuf,
    sums_path: Option<PathBuf>,
}

impl UsedUp {
    /// Gives back the memory of a part of the data file, which nobody needs any more. Blocking, on some file systems for as long as the
    /// disk is busy.
    ///
    /// # Errors
    /// [`StoreError::Free`] on a file system that can't; the pages are then kept until [`UsedUp::remove`].
    pub fn free(&self, range: Range<u64>) -> Result<(), StoreError> {
        punch(&self.file, range).map_err(|source| StoreError::Free { path: self.data_path.clone(), source })
    }

    /// Removes the files of the store, and gives back what is left of it, also where somebody else has its data file open. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Remove`].
    pub fn remove(self) -> Result<(), StoreError> {
        let remove = |path: &Path| {
            std::fs::remove_file(path).map_err(|source| StoreError::Remove { path: path.to_owned(), source })
        };
        // First: without it nobody can take what is given back for pages of zeroes.
        remove(&self.index_path)?;
        if self.length > 0 {
            // What can't be given back goes with the last who has it open.
            punch(&self.file, 0..self.length).ok();
        }
        remove(&self.data_path)?;
        self.sums_path.as_deref().map_or(Ok(()), remove)
    }
}

fn read_index(path: &Path) -> Result<Index, StoreError> {
    let file = File::open(path).map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_LENGTH as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|source| StoreError::Read { path: path.to_owned(), source })?;
    if bytes.len() > MAX_LENGTH {
        return Err(StoreError::Index { path: path.to_owned(), reason: "it is too long" });
    }
    Index::decode(&bytes).map_err(|reason| StoreError::Index { path: path.to_owned(), reason })
}
