//! Which pages of a process are in the memory of others too, as its page table has it at one moment.

use super::entries::{ENTRY, Entry};
use super::sent::PAGE;
use super::{Range, ReadError};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Most pages that are looked at at once: one bit for each is returned.
const MOST: usize = 64;

/// The page table of the address space that a process had when this was made.
#[derive(Debug)]
pub struct Sharing {
    pagemap: File,
}

impl Sharing {
    /// Opens the page table of process `pid`.
    ///
    /// # Errors
    /// [`ReadError::Open`], also for a process that has ended.
    pub fn open(pid: i32) -> Result<Self, ReadError> {
        let path = PathBuf::from(format!("/proc/{pid}/pagemap"));
        let pagemap = File::open(&path).map_err(|source| ReadError::Open { path, source })?;
        Ok(Self { pagemap })
    }

    /// Which pages of the first 64 of `range` another page table leads to as well: the first is the lowest bit.
    ///
    /// It is a hint, true for as long as nobody forks, writes or ends. Nothing is shared where it can't be told.
    pub fn shared(&self, range: Range) -> u64 {
        let mut entries = [0; MOST * ENTRY];
        let pages = usize::try_from(range.len() / PAGE).unwrap_or(MOST).min(MOST);
        let place = range.start / PAGE * ENTRY as u64;
        let read = self.pagemap.read_at(&mut entries[..pages * ENTRY], place).unwrap_or_default();
        let entries = entries[..read].as_chunks::<ENTRY>().0.iter().map(|entry| Entry(u64::from_ne_bytes(*entry)));
        let shared = entries.map(|entry| u64::from(entry.is_shared()));
        shared.enumerate().fold(0, |bits, (index, shared)| bits | shared << index)
    }
}
