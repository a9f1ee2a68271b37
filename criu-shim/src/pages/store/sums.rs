//! Sums of the pages in a data file, for a store that is about to be the only copy of a state.
//!
//! A page's sum is made of its bytes as they came, and compared with what lies in the data file: when a round has landed, for the
//! pages that it has brought, and whenever a page is given out. So whatever the size of a store, nothing is read back while the
//! application stands still but what has come last. Sums are XXH3, 128 bits: against mistakes of ours and of the machine, as
//! for pages that cross.
//!
//! They lie in a file of their own, 16 bytes for each page of the data file, little endian, in its order. Its digest tells
//! whether it is the one that was written (`transfer/stored.rs` keeps that).

use super::StoreError;
use crate::pages::PAGE;
use crate::processors::processors;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use twox_hash::xxhash3_128::Hasher;

/// Bytes of a sum.
const SUM: usize = 16;
/// Bytes of pages that are read and compared at once.
const AT_ONCE: usize = 256 << 10;
/// Most threads that compare all of a data file. More of them would wait for memory.
const MOST_THREADS: usize = 8;

/// The sums of one data file.
#[derive(Debug)]
pub(super) struct Sums {
    path: PathBuf,
    file: File,
    /// The data file, for what is said of it.
    data_path: PathBuf,
}

impl Sums {
    /// Begins the sums of the data file at `data_path`, which has no pages yet.
    ///
    /// # Errors
    /// [`StoreError::Create`].
    pub(super) fn create(data_path: &Path) -> Result<Self, StoreError> {
        let path = sums_path(data_path);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|source| StoreError::Create { path: path.clone(), source })?;
        Ok(Self { path, file, data_path: data_path.to_owned() })
    }

    /// The sums of the data file at `data_path`, if it has any.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub(super) fn open(data_path: &Path) -> Result<Option<Self>, StoreError> {
        let path = sums_path(data_path);
        match File::open(&path) {
            Ok(file) => Ok(Some(Self { path, file, data_path: data_path.to_owned() })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Open { path, source }),
        }
    }

    /// `pages` are about to be at `offset` of the data file.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub(super) fn put(&self, offset: u64, pages: &[u8]) -> Result<(), StoreError> {
        let sums: Vec<u8> = pages.chunks_exact(PAGE as usize).flat_map(sum).collect();
        self.write(&sums, offset)
    }

    /// This part of the data file reads as zero now.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub(super) fn zeroed(&self, part: Range<u64>) -> Result<(), StoreError> {
        let pages = usize::try_from((part.end - part.start) / PAGE).unwrap_or(usize::MAX);
        self.write(&sum(&[0; PAGE as usize]).repeat(pages), part.start)
    }

    fn write(&self, sums: &[u8], offset: u64) -> Result<(), StoreError> {
        let written = self.file.write_all_at(sums, place(offset));
        written.map_err(|source| StoreError::Write { path: self.path.clone(), source })
    }

    /// Sees to it that `pages`, read at `offset` of the data file, are those that came.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if they are not, [`StoreError::Read`].
    pub(super) fn check(&self, offset: u64, pages: &[u8]) -> Result<(), StoreError> {
        let mut sums = vec![0; pages.len() / PAGE as usize * SUM];
        let read = self.file.read_exact_at(&mut sums, place(offset));
        read.map_err(|source| StoreError::Read { path: self.path.clone(), source })?;
        let other =
            pages.chunks_exact(PAGE as usize).zip(sums.chunks_exact(SUM)).position(|(page, was)| sum(page) != was);
        match other {
            Some(page) => {
                Err(StoreError::Damaged { path: self.data_path.clone(), offset: offset + page as u64 * PAGE })
            }
            None => Ok(()),
        }
    }

    /// Reads a part of `data`, the data file, and checks it. Blocking.
    ///
    /// # Errors
    /// As [`Sums::check`].
    pub(super) fn compare(&self, data: &File, part: Range<u64>) -> Result<(), StoreError> {
        let at_once = |left: u64| usize::try_from(left).map_or(AT_ONCE, |left| left.min(AT_ONCE));
        let (mut block, mut at) = (vec![0; at_once(part.end - part.start)], part.start);
        while at < part.end {
            let length = at_once(part.end - at);
            self.read(data, at, &mut block[..length])?;
            at += length as u64;
        }
        Ok(())
    }

    /// Fills `pages` from `offset` of `data`, the data file, and checks them.
    ///
    /// # Errors
    /// As [`Sums::check`].
    pub(super) fn read(&self, data: &File, offset: u64, pages: &mut [u8]) -> Result<(), StoreError> {
        let read = data.read_exact_at(pages, offset);
        read.map_err(|source| StoreError::Read { path: self.data_path.clone(), source })?;
        self.check(offset, pages)
    }

    /// BLAKE3 of all of them. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    fn digest(&self) -> Result<blake3::Hash, StoreError> {
        let failed = |source| StoreError::Read { path: self.path.clone(), source };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&self.path).map_err(failed)?).map_err(failed)?;
        Ok(hasher.finalize())
    }

    /// Removes their file.
    ///
    /// # Errors
    /// [`StoreError::Remove`].
    pub(super) fn remove(self) -> Result<(), StoreError> {
        std::fs::remove_file(&self.path).map_err(|source| StoreError::Remove { path: self.path, source })
    }

    /// Their file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Links their file and the data file into another directory, under the same names.
    ///
    /// # Errors
    /// [`StoreError::Write`].
    pub(super) fn link(&self, directory: &Path) -> Result<(), StoreError> {
        for path in [&self.path, &self.data_path] {
            let link = directory.join(path.file_name().unwrap_or_default());
            std::fs::hard_link(path, &link).map_err(|source| StoreError::Write { path: link, source })?;
        }
        Ok(())
    }
}

/// Sums while pages arrive, and which of these have not been read back since.
#[derive(Debug)]
pub(super) struct Keeping {
    pub(super) sums: Sums,
    /// Parts of the data file.
    fresh: Vec<Range<u64>>,
}

impl Keeping {
    /// Of the data file at `data_path`, which has no pages yet.
    ///
    /// # Errors
    /// As [`Sums::create`].
    pub(super) fn create(data_path: &Path) -> Result<Self, StoreError> {
        Ok(Self { sums: Sums::create(data_path)?, fresh: Vec::new() })
    }

    /// `pages` are about to be at `offset` of the data file.
    ///
    /// # Errors
    /// As [`Sums::put`].
    pub(super) fn put(&mut self, offset: u64, pages: &[u8]) -> Result<(), StoreError> {
        self.sums.put(offset, pages)?;
        let end = offset + pages.len() as u64;
        match self.fresh.last_mut().filter(|last| last.end == offset) {
            Some(last) => last.end = end,
            None => self.fresh.push(offset..end),
        }
        Ok(())
    }

    /// Reads back from `data`, the data file, what has come since this was done last. Blocking.
    ///
    /// # Errors
    /// As [`Sums::check`].
    pub(super) fn settle(&mut self, data: &File) -> Result<(), StoreError> {
        std::mem::take(&mut self.fresh).into_iter().try_for_each(|part| self.sums.compare(data, part))
    }
}

/// The sums of a store, by which whoever writes down what has landed remembers them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedSums {
    /// Name of the data file without its ending.
    pub store: String,
    /// BLAKE3 of the file of sums, hexadecimal.
    pub digest: String,
}

impl NamedSums {
    /// What `sums` are now. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub(super) fn of(sums: &Sums) -> Result<Self, StoreError> {
        let store = sums.data_path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { store, digest: sums.digest()?.to_hex().to_string() })
    }

    /// Sees to it that these are the sums in `directory`. Blocking.
    ///
    /// # Errors
    /// [`StoreError::OtherSums`] if they are others, [`StoreError::Open`], [`StoreError::Read`].
    pub fn check(&self, directory: &Path) -> Result<(), StoreError> {
        let sums = there(&self.data_path(directory))?;
        match Self::of(&sums)? == *self {
            true => Ok(()),
            false => Err(StoreError::OtherSums { path: sums.path }),
        }
    }

    /// Compares every page of the store with them. Blocking.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] for a page that is another one, [`StoreError::Open`], [`StoreError::Read`].
    pub fn compare(&self, directory: &Path) -> Result<(), StoreError> {
        compare_all(&self.data_path(directory))
    }

    fn data_path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.pages", self.store))
    }
}

fn compare_all(data_path: &Path) -> Result<(), StoreError> {
    let sums = there(data_path)?;
    let open = |source| StoreError::Open { path: data_path.to_owned(), source };
    let data = File::open(data_path).map_err(open)?;
    let length = data.metadata().map_err(open)?.len();
    let threads = processors().min(MOST_THREADS) as u64;
    let each = length.div_ceil(threads).next_multiple_of(AT_ONCE as u64).max(PAGE);
    thread::scope(|scope| {
        let (sums, data) = (&sums, &data);
        let starts = (0..threads).map(|thread| thread * each).take_while(|start| *start < length);
        let parts: Vec<_> = starts.map(|start| start..(start + each).min(length)).collect();
        let comparing: Vec<_> = parts.into_iter().map(|part| scope.spawn(move || sums.compare(data, part))).collect();
        comparing.into_iter().try_for_each(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn there(data_path: &Path) -> Result<Sums, StoreError> {
    let path = sums_path(data_path);
    let missing = StoreError::Open { path, source: std::io::ErrorKind::NotFound.into() };
    Sums::open(data_path)?.ok_or(missing)
}

/// `17.pages` has `17.sums`.
fn sums_path(data_path: &Path) -> PathBuf {
    data_path.with_extension("sums")
}

/// Where the sum of the page at `offset` of the data file is.
fn place(offset: u64) -> u64 {
    offset / PAGE * SUM as u64
}

fn sum(page: &[u8]) -> [u8; SUM] {
    Hasher::oneshot(page).to_le_bytes()
}
