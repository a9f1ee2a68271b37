//! What can go wrong with CRIU.

use super::image::ImageError;
use std::path::PathBuf;
use thiserror::Error;

/// Why CRIU could not be started, asked or believed.
#[derive(Debug, Error)]
pub enum CriuError {
    /// The socket to CRIU could not be made.
    #[error("make a socket pair for CRIU")]
    SocketPair(#[source] std::io::Error),
    /// The cgroup that keeps CRIU apart from the agent could not be made.
    #[error("prepare cgroup {path} for CRIU")]
    Cgroup {
        /// Directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A process can't enter that cgroup.
    #[error("leave the container for a cgroup apart")]
    Leave(#[source] std::io::Error),
    /// CRIU was asked for a dump of a container that is another by now.
    #[error("the container's mounts have changed since CRIU was asked for a dump")]
    Changed,
    /// The node's cgroup mounts could not be read.
    #[error("find the node's cgroup hierarchies for CRIU")]
    Hierarchies(#[source] crate::freezer::FreezerError),
    /// A namespace that CRIU should run in could not be opened.
    #[error("open namespace {path}")]
    Namespace {
        /// The namespace.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// CRIU could not be executed, or could not enter its cgroups or namespaces.
    #[error("start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// CRIU could not be told which memory it leaves out.
    #[error("tell CRIU what it leaves out")]
    Withhold(#[source] WithholdError),
    /// A request could not be sent.
    #[error("send a request to CRIU")]
    Send(#[source] std::io::Error),
    /// An answer could not be received.
    #[error("receive from CRIU")]
    Receive(#[source] std::io::Error),
    /// What CRIU sent is no answer.
    #[error("decode CRIU's answer")]
    Decode(#[source] prost::DecodeError),
    /// CRIU answered something that was not asked.
    #[error("CRIU answered with type {found} to a request of type {asked}")]
    Unexpected {
        /// Type that was asked for.
        asked: i32,
        /// Type of the answer.
        found: i32,
    },
    /// CRIU ended without an answer.
    #[error("CRIU ended without an answer{}", render(log))]
    Vanished {
        /// Last error lines of its log.
        log: Vec<String>,
    },
    /// CRIU did not answer in time to what takes no time.
    #[error("CRIU did not answer within {0:?}")]
    Silent(std::time::Duration),
    /// CRIU can't tell what the kernel has.
    #[error("CRIU could not examine the kernel")]
    Examine,
    /// A directory of the dump could not be opened.
    #[error("open {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The mounts of the process could not be read.
    #[error("read the mounts of process {pid}")]
    Mounts {
        /// The process.
        pid: i32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// CRIU said no. It has ended by itself, and its parasite is out of the tasks.
    #[error("CRIU's dump failed: {message} (errno {errno}){}", render(log))]
    Dump {
        /// CRIU's first error.
        message: String,
        /// Its errno, 0 where it gave none.
        errno: i32,
        /// Last error lines of its log.
        log: Vec<String>,
    },
    /// CRIU could not be waited for.
    #[error("wait for CRIU")]
    Wait(#[source] std::io::Error),
}

fn render(log: &[String]) -> String {
    if log.is_empty() { String::new() } else { format!("; its log: {}", log.join(" | ")) }
}

/// Why CRIU can't be told what a dump leaves out.
#[derive(Debug, Error)]
pub enum WithholdError {
    /// The list that CRIU is given could not be made or written.
    #[error("list the memory that CRIU leaves out")]
    List(#[source] std::io::Error),
    /// More than a list holds.
    #[error("{objects} objects of shared memory are to be left out of a dump")]
    TooMany {
        /// How many.
        objects: usize,
    },
    /// The list is in the order of processes.
    #[error("what is left out of process {pid} is told after that of others")]
    Order {
        /// The process.
        pid: i32,
    },
}

/// Why the memory that a dump left out could not be accounted for. The images are not fit for a restore then.
#[derive(Debug, Error)]
pub enum PagemapError {
    /// An image could not be read, or is longer than any real one.
    #[error("read {path}")]
    Read {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An image is no image of its kind.
    #[error("parse {path}")]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImageError,
    },
    /// CRIU dumped memory that it was told to leave out.
    #[error("the dump has {start:#x}..{end:#x} of process {pid}, which it was to leave out")]
    Twice {
        /// The process.
        pid: i32,
        /// First address.
        start: u64,
        /// First address behind.
        end: u64,
    },
    /// The ranges of what was left out are not sorted, overlap, or are not of whole pages.
    #[error("ranges of what was left out of process {pid}")]
    LeftOut {
        /// The process.
        pid: i32,
    },
    /// Memory of the process that should have landed could not be read.
    #[error("take {start:#x}..{end:#x} of process {pid} out of what has landed")]
    Memory {
        /// The process.
        pid: i32,
        /// First address.
        start: u64,
        /// First address behind.
        end: u64,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The pages file is shorter than the entries say.
    #[error("{path} ends before its pagemap does")]
    PagesCutOff {
        /// The pages file.
        path: PathBuf,
    },
    /// An image could not be put in place.
    #[error("write {path}")]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why shared memory could not be left out of a dump.
#[derive(Debug, Error)]
pub enum SharedError {
    /// The object itself can't be looked at.
    #[error("look at shared memory")]
    Read(#[source] std::io::Error),
    /// The image of an object can't be used.
    #[error("read the image of shared memory")]
    Image(#[source] PagemapError),
    /// The object is shorter than what was copied of it.
    #[error("shared memory {inode} has {size} bytes, and pages up to {end} were copied")]
    Beyond {
        /// Its inode.
        inode: u32,
        /// Where the last page ends.
        end: u64,
        /// Its length, bytes.
        size: u64,
    },
    /// The image of an object could not be written.
    #[error("write {path}")]
    Write {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
