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
//!
//! An object of shared memory has one file, `shared-81.pages`, named by its inode: CRIU reads that itself.
//!
//! A store that is to be the only copy of a state has sums beside each data file ([`sums`]), `17.sums` and `shared-81.sums`. It
//! is compared with them as it is given out, and not used up before the processes have run.

mod error;
mod extents;
mod index;
mod mapping;
mod read;
mod shared;
mod sums;
mod write;

pub use error::StoreError;
pub use index::Extent;
pub use mapping::Bytes;
pub use read::{Store, UsedUp};
pub use shared::{SharedWriter, is_shared, is_shared_name};
pub use sums::NamedSums;
pub use write::{StoreWriter, Stored};

use std::path::{Path, PathBuf};

/// The processes, as the images name them, that have a finished store in `directory`: sorted. None where there is no such
/// directory.
///
/// # Errors
/// Where it can't be listed.
pub fn pids(directory: &Path) -> std::io::Result<Vec<i32>> {
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut pids = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let pid: Option<i32> = name.to_str().and_then(|name| name.strip_suffix(".index")?.parse().ok());
        pids.extend(pid);
    }
    pids.sort_unstable();
    Ok(pids)
}

/// The data files in `directory`, in no order. None where there is no such directory.
///
/// # Errors
/// Where it can't be listed.
pub fn data_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "pages")).collect())
}

fn data_path(directory: &Path, pid: i32) -> PathBuf {
    directory.join(format!("{pid}.pages"))
}

fn shared_path(directory: &Path, inode: u32) -> PathBuf {
    directory.join(format!("shared-{inode}.pages"))
}

fn index_path(directory: &Path, pid: i32) -> PathBuf {
    directory.join(format!("{pid}.index"))
}

#[cfg(test)]
mod tests;
