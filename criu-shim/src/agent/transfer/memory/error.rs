//! Why memory can't be taken, or is not what the images ask for.

use super::MAX_PROCESSES;
use crate::agent::room::NoRoom;
use crate::agent::transfer::pages::PagesError;
use crate::criu::{MOST_WITHHELD, PagemapError};
use crate::pages::RangeError;
use crate::pages::store::StoreError;
use thiserror::Error;

/// Why memory could not be taken.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// What came is no stream of pages.
    #[error("read the pages of process {pid}")]
    Stream {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: PagesError,
    },
    /// The store.
    #[error("keep the pages of process {pid}")]
    Store {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// What came is no stream of pages.
    #[error("read the pages of shared memory {inode}")]
    SharedStream {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: PagesError,
    },
    /// The store.
    #[error("keep the pages of shared memory {inode}")]
    SharedStore {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// Copies of pages are larger than there is room for.
    #[error("copy pages of another process to process {pid}")]
    TooMuch {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: NoRoom,
    },
    /// More objects than a dump leaves out.
    #[error("more than {MOST_WITHHELD} objects of shared memory were sent")]
    TooManyShared,
    /// More processes than any container has.
    #[error("memory of more than {MAX_PROCESSES} processes was sent")]
    TooMany,
}

/// Why the memory that has landed is not what the images ask for.
#[derive(Debug, Error)]
pub enum FinishError {
    /// The images are not known.
    #[error("list the images")]
    List(#[source] std::io::Error),
    /// CRIU's image does not say.
    #[error("read which memory of process {pid} is to come from the store")]
    Image {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: PagemapError,
    },
    /// What it asks for is not here, or can't be put in its place.
    #[error("put the pages file of process {pid} together")]
    Assemble {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: PagemapError,
    },
    /// It says what can't be.
    #[error("understand which memory of process {pid} is to come from the store")]
    Range {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: RangeError,
    },
    /// It is not as long as CRIU's image says.
    #[error("the pages of shared memory {inode} are not all here")]
    SharedMissing {
        /// Its inode, by which the images name it.
        inode: u32,
    },
    /// It can't be told whether all of it is here.
    #[error("see whether all shared memory is here")]
    SharedLengths(#[source] PagemapError),
    /// There is no room for the pages files that are put together.
    #[error("put the pages file of process {pid} together")]
    NoRoom {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: NoRoom,
    },
    /// CRIU's image does not say.
    #[error("read which pages of shared memory {inode} are to come from the store")]
    SharedImage {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: PagemapError,
    },
    /// It says what can't be.
    #[error("understand which pages of shared memory {inode} are to come from the store")]
    SharedRange {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: RangeError,
    },
    /// The store has others.
    #[error("complete the shared memory {inode}")]
    SharedStore {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The store has not got it, or can't be closed.
    #[error("complete the memory of process {pid}")]
    Store {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: StoreError,
    },
}
