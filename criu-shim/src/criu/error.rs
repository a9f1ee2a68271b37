//! What can go wrong with CRIU.

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
    /// CRIU said yes and then ended with an error.
    #[error("CRIU ended with {status} after a dump that it called good{}", render(log))]
    Status {
        /// How it ended.
        status: std::process::ExitStatus,
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
