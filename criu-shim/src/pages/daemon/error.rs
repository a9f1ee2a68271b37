//! What can go wrong while pages are served.

use super::super::store::StoreError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Why the daemon can't answer for the memory of every process.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// Whoever started this has ended before CRIU came.
    #[error("the restore ended before CRIU asked for pages")]
    NobodyCame,
    /// What is said on standard input is not whom to serve.
    #[error("hear whom to serve")]
    Tie(#[source] io::Error),
    /// The guard is gone: this process' death would show zeros to others.
    #[error("have the userfaultfd of a process held by the guard")]
    Guard(#[source] io::Error),
    /// CRIU can't be listened to.
    #[error("listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The status file could not be written.
    #[error("write the status into {path}")]
    Status {
        /// Work directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nothing could be waited for.
    #[error("wait for CRIU and for page faults")]
    Wait(#[source] io::Error),
    /// CRIU's connection could not be accepted.
    #[error("accept CRIU's connection")]
    Accept(#[source] io::Error),
    /// What CRIU sends could not be received.
    #[error("receive from CRIU")]
    Receive(#[source] io::Error),
    /// CRIU sent a pid without a userfaultfd.
    #[error("CRIU sent no userfaultfd for process {pid}")]
    NoUserfault {
        /// Pid in the images.
        pid: i32,
    },
    /// CRIU sent a process that nobody announced: its memory is in no store that is known.
    #[error("CRIU restores process {pid}, which was not announced or came twice")]
    Unannounced {
        /// Pid in the images.
        pid: i32,
    },
    /// CRIU says that it has restored everything, and has not.
    #[error("CRIU has finished without process {pid}")]
    LeftOut {
        /// Pid in the images.
        pid: i32,
    },
    /// CRIU ended before the restore was finished.
    #[error("CRIU closed the connection before the restore was finished")]
    HungUp,
    /// The store of a process can't be used.
    #[error("use the page store of process {pid}")]
    Store {
        /// Pid in the images.
        pid: i32,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// Page faults and events could not be read.
    #[error("read the userfaultfd of process {pid}")]
    Read {
        /// Pid in the images.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Pages could not be put.
    #[error("put the page at {address:#x} of process {pid}")]
    Put {
        /// Pid in the images.
        pid: i32,
        /// Address of the page.
        address: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// CRIU did not register memory that its image calls lazy.
    #[error("the page at {address:#x} of process {pid} is lazy in the image and not registered")]
    NotRegistered {
        /// Pid in the images.
        pid: i32,
        /// Address of the page.
        address: u64,
    },
    /// The cgroup of a process had no memory left for its pages.
    #[error("there was no memory for the page at {address:#x} of process {pid} for {limit:?}")]
    NoMemory {
        /// Pid in the images.
        pid: i32,
        /// Address of the page.
        address: u64,
        /// How long was waited.
        limit: Duration,
    },
}
