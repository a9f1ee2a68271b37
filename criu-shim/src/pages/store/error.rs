//! What can go wrong with a page store.

use super::super::RangeError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a page store could not be written, finished or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file of the store could not be made. One that is there already belongs to somebody else.
    #[error("create {path}")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// What was given is not a number of whole pages.
    #[error("take pages into {path}")]
    Pages {
        /// The data file.
        path: PathBuf,
        /// What was given.
        #[source]
        source: RangeError,
    },
    /// Pages or the index could not be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A page is lazy in CRIU's image and is not in the store. A restore would lose it.
    #[error("the store of process {pid} has no page at {address:#x}, which the image calls lazy")]
    Missing {
        /// Pid in the images.
        pid: i32,
        /// Address of the first page that is missing.
        address: u64,
    },
    /// A page was said to be like one that never came.
    #[error("the store of process {pid} has no page at {address:#x}, which another was said to be like")]
    NeverCame {
        /// Pid in the images.
        pid: i32,
        /// Address of the first page that never came.
        address: u64,
    },
    /// A page of shared memory was said to be like one of a process: those are in stores of their own.
    #[error("a page of shared memory {inode} was said to be like one of a process")]
    NotAlike {
        /// Its inode, by which the images name it.
        inode: u32,
    },
    /// What came of shared memory is not what CRIU's image says. A restore would mix pages up.
    #[error("the pages of shared memory {inode} are not those of its image, or in another order")]
    Order {
        /// Its inode, by which the images name it.
        inode: u32,
    },
    /// A page of the data file is not the one that came.
    #[error("the page at offset {offset:#x} of {path} is damaged: it is not the one that was sent")]
    Damaged {
        /// The data file.
        path: PathBuf,
        /// Where the page lies in it, bytes.
        offset: u64,
    },
    /// Sums by which pages are compared are not those that were written.
    #[error("the sums in {path} are damaged: they are not those of what was sent")]
    OtherSums {
        /// Their file.
        path: PathBuf,
    },
    /// More extents than an index may have.
    #[error("the store of process {pid} is in {extents} pieces, more than an index holds")]
    TooScattered {
        /// Pid in the images.
        pid: i32,
        /// Number of extents.
        extents: usize,
    },
    /// A file of the store could not be opened.
    #[error("open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The index, or pages to make others of, could not be read.
    #[error("read {path}")]
    Read {
        /// The index or the data file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The index is none, or is damaged, or is not that of this data file.
    #[error("{path} is no index of this store: {reason}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The data file has no such pages.
    #[error("{path} has no {length} bytes at offset {offset:#x}")]
    Short {
        /// The data file.
        path: PathBuf,
        /// Where they should be, bytes.
        offset: u64,
        /// How many, bytes.
        length: u64,
    },
    /// The data file could not be mapped.
    #[error("map {path}")]
    Map {
        /// The data file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Pages that are not needed any more could not be given back.
    #[error("free a part of {path}")]
    Free {
        /// The data file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of a store that is used up could not be removed.
    #[error("remove {path}")]
    Remove {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
