//! What can go wrong with a cpu limit.

use crate::freezer::FreezerError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a cpu limit could not be found, read or written.
#[derive(Debug, Error)]
pub enum ThrottleError {
    /// The cgroup or the process does not exist: the container has ended.
    #[error("{path} is gone")]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// Changing it ended unexpectedly.
    #[error("changing a cpu limit ended unexpectedly")]
    Ended(#[source] tokio::task::JoinError),
    /// The node limits no cpu time.
    #[error("no cgroup hierarchy with a cpu controller is mounted")]
    NoController,
    /// The kernel does not count the container's cpu time by itself.
    #[error("no cgroup counts the container's cpu time")]
    NoAccount,
    /// It is not known which processes the container has.
    #[error("list the container's processes")]
    Processes(#[source] FreezerError),
    /// The kernel does not let tasks have the processors that they are to have.
    #[error("choose the processors of the container's tasks")]
    Affinity(#[source] std::io::Error),
    /// The process is in no cgroup of its own.
    #[error("find the container's cpu cgroup")]
    Find(#[source] FreezerError),
    /// A file of the kernel could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the kernel could not be written.
    #[error("write {content:?} to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        content: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of the kernel does not say what it should.
    #[error("{path} says {content:?}")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// What it says.
        content: String,
    },
}
