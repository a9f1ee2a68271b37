//! The page store: memory of several processes, by virtual address, in one directory.
//!
//! A process has two files, named by the pid that the CRIU images use. `17.pages` holds its pages in the order in which
//! they came; `17.index`, which is there once the store is finished, says which page lies where. What the index does not
//! name reads as zero. A page that CRIU's image does not call lazy is never in an index, so that it can't be served.
//!
//! # The index
//!
//! Little endian, version 1:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic, `TIDEPAGE` |
//! | 4 | version |
//! | 4 | pid |
//! | 8 | number of extents, at most 2^24 |
//! | 8 | length of the data file, bytes |
//! | 24 each | extent: address, length, offset in the data file; all bytes, all multiples of 4096; ascending by address |
//! | 32 | BLAKE3 of everything before |
//!
//! The length of the file follows from the number of extents and is checked before anything is decoded.

mod error;
mod extents;
mod index;
mod mapping;
mod read;
mod write;

pub use error::StoreError;
pub use index::Extent;
pub use mapping::Bytes;
pub use read::Store;
pub use write::{StoreWriter, Stored};

use std::path::{Path, PathBuf};

/// The processes, as the images name them, that have a finished store in `directory`.
pub fn pids(directory: &Path) -> Vec<i32> {
    let names = directory.read_dir().into_iter().flatten().flatten().map(|entry| entry.file_name());
    let mut pids: Vec<i32> = names.filter_map(|name| name.to_str()?.strip_suffix(".index")?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

fn data_path(directory: &Path, pid: i32) -> PathBuf {
    directory.join(format!("{pid}.pages"))
}

fn index_path(directory: &Path, pid: i32) -> PathBuf {
    directory.join(format!("{pid}.index"))
}

#[cfg(test)]
mod tests;
