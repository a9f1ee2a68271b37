//! What can go wrong with a freezer.

use super::FreezerState;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Why a freezer could not be found or moved.
#[derive(Debug, Error)]
pub enum FreezerError {
    /// The cgroup does not exist: the container has ended.
    #[error("cgroup {path} is gone")]
    Gone {
        /// Directory of the cgroup.
        path: PathBuf,
    },
    /// The process does not exist: the container has ended.
    #[error("process {pid} is gone")]
    ProcessGone {
        /// Id of the process.
        pid: i32,
    },
    /// A root cgroup. Freezing it would freeze the node.
    #[error("{path} is a root cgroup, not a container's")]
    NotOwn {
        /// Directory, or path in the hierarchy.
        path: PathBuf,
    },
    /// No freezer is mounted.
    #[error("neither a v1 freezer nor a v2 cgroup hierarchy is mounted")]
    NoFreezer,
    /// The process is in a cgroup outside of what the mount shows.
    #[error("cgroup {path} is outside of the mounted hierarchy")]
    NotVisible {
        /// Path in the hierarchy, as `/proc/PID/cgroup` names it.
        path: PathBuf,
    },
    /// The kernel did not get there in time.
    #[error("cgroup {path} is {state} {limit:?} after it was told to be {wish}")]
    Timeout {
        /// Directory of the cgroup.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
        /// What was asked for.
        wish: FreezerState,
        /// What the kernel said last.
        state: FreezerState,
    },
    /// Processes were still there after they had been killed.
    #[error("{left} processes are left in cgroup {path} {limit:?} after they were killed")]
    Survivors {
        /// Directory of the cgroup.
        path: PathBuf,
        /// How many.
        left: usize,
        /// How long was waited.
        limit: Duration,
    },
    /// The cgroup holds a process that has no id in the caller's PID namespace, so it can't be signalled.
    #[error("cgroup {path} holds a process of another PID namespace")]
    ForeignProcess {
        /// Directory of the cgroup.
        path: PathBuf,
    },
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
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
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
    /// A process could not be killed.
    #[error("kill process {pid}")]
    Kill {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
