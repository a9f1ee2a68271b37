use super::Obstacle;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;

/// Why writes of a process can't be tracked, or it can't be made to give something back. The process runs on as before, after
/// each of these. It crosses from the process that traces.
#[derive(Debug, Error, Serialize, Deserialize)]
pub enum AttachError {
    /// Nobody has written the injection for this machine.
    #[error("tracking is not implemented for this architecture")]
    Architecture,
    /// There is no such process (any more).
    #[error("process {pid} has ended")]
    Gone {
        /// Id of the process.
        pid: i32,
    },
    /// The first thread has ended while others run; then `/proc/PID` shows no memory.
    #[error("the first thread of process {pid} has ended")]
    LeaderExited {
        /// Id of the process.
        pid: i32,
    },
    /// A debugger is at work.
    #[error("process {pid} is traced by process {tracer}")]
    Traced {
        /// Id of the process.
        pid: i32,
        /// Who traces it.
        tracer: i32,
    },
    /// Stopped by a signal.
    #[error("process {pid} is stopped")]
    Stopped {
        /// Id of the process.
        pid: i32,
    },
    /// It runs 32-bit code.
    #[error("process {pid} is a 32-bit process")]
    Compat {
        /// Id of the process.
        pid: i32,
    },
    /// It handles its system calls itself (PR_SET_SYSCALL_USER_DISPATCH).
    #[error("process {pid} dispatches system calls itself")]
    SyscallDispatch {
        /// Id of the process.
        pid: i32,
    },
    /// It has a seccomp filter, which may refuse or kill, and the kernel would not suspend that.
    #[error("suspend the seccomp filter of process {pid}")]
    SeccompSuspend {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// Its memory changes behind the page table.
    #[error("process {pid} can't be tracked")]
    Obstacle {
        /// Id of the process.
        pid: i32,
        /// The descriptor that stands in the way.
        #[source]
        source: Obstacle,
    },
    /// The kernel has no PAGEMAP_SCAN.
    #[error("scan the page table of process {pid}")]
    Scan {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// ptrace(2) refused.
    #[error("seize process {pid}")]
    Seize {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// It did not stop: it waits in the kernel, or its cgroup is frozen.
    #[error("process {pid} did not stop in {limit:?}")]
    NotStopped {
        /// Id of the process.
        pid: i32,
        /// How long was waited.
        limit: Duration,
    },
    /// It was in a restartable sequence each time it was stopped.
    #[error("process {pid} was found in a restartable sequence {tries} times")]
    RestartableSequence {
        /// Id of the process.
        pid: i32,
        /// How often.
        tries: u32,
    },
    /// Nothing it has mapped holds the instruction that enters the kernel.
    #[error("process {pid} has no system call instruction mapped")]
    NoSyscallInstruction {
        /// Id of the process.
        pid: i32,
    },
    /// Its first thread is in memory that it was to give back.
    #[error("process {pid} runs in what it was to unmap")]
    AtWork {
        /// Id of the process.
        pid: i32,
    },
    /// A step of running system calls in the process failed.
    #[error("run a system call in process {pid}")]
    Inject {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// userfaultfd(2) in the process failed: not in the kernel, forbidden, or no descriptor left.
    #[error("make a userfaultfd in process {pid}")]
    NoUserfaultfd {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// The descriptor could not be taken out of the process.
    #[error("take the userfaultfd out of process {pid}")]
    Take {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// The kernel has no asynchronous write protection.
    #[error("turn on asynchronous write protection")]
    Features(
        #[source]
        #[serde(with = "crossing")]
        io::Error,
    ),
    /// The kernel keeps no soft-dirty marks: it was built without, or runs on a machine without room for them.
    #[error("the kernel keeps no soft-dirty marks")]
    NoMarks,
    /// Whether the kernel keeps soft-dirty marks could not be tried.
    #[error("try whether the kernel keeps soft-dirty marks")]
    ProbeMarks(
        #[source]
        #[serde(with = "crossing")]
        io::Error,
    ),
    /// The soft-dirty marks of the process may not be cleared.
    #[error("open {path} to clear soft-dirty marks")]
    ClearMarks {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// A file of the process could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
    /// A file of the process does not say what it should.
    #[error("{path} says {content:?}")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// What it says.
        content: String,
    },
    /// Who was to trace it could not be started, or has ended amid its work.
    #[error("have process {pid} traced")]
    Tracer {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        #[serde(with = "crossing")]
        source: io::Error,
    },
}

/// Why it is no longer known what a process has written. Everything that was returned before is void then; the process
/// itself is unharmed.
#[derive(Debug, Error)]
pub enum TrackError {
    /// The process has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// Id of the process.
        pid: i32,
    },
    /// The process has executed another program.
    #[error("process {pid} has executed another program")]
    Replaced {
        /// Id of the process.
        pid: i32,
    },
    /// An earlier call failed after it had write-protected pages that it then could not return.
    #[error("an earlier scan of process {pid} was lost")]
    Lost {
        /// Id of the process.
        pid: i32,
    },
    /// Its memory changes behind the page table by now.
    #[error("process {pid} can't be tracked any more")]
    Obstacle {
        /// Id of the process.
        pid: i32,
        /// The descriptor that stands in the way.
        #[source]
        source: Obstacle,
    },
    /// The soft-dirty marks could not be cleared.
    #[error("clear the soft-dirty marks of process {pid}")]
    ClearMarks {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Pages have lost their soft-dirty marks.
    #[error("somebody else clears the soft-dirty marks of process {pid}")]
    Cleared {
        /// Id of the process.
        pid: i32,
    },
    /// The page table could not be scanned.
    #[error("scan the page table of process {pid}")]
    Scan {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the process could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the process does not say what it should.
    #[error("{path} says {content:?}")]
    Unexpected {
        /// The file.
        path: PathBuf,
        /// What it says.
        content: String,
    },
}

/// Why memory of a process could not be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The memory file could not be opened.
    #[error("open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The address space that was opened is gone: the process has ended or executed another program.
    #[error("the memory of process {pid} is gone")]
    Gone {
        /// Id of the process.
        pid: i32,
    },
    /// Reading failed, for another reason than a page that is not there.
    #[error("read {length} bytes at {address:#x} of process {pid}")]
    Read {
        /// Id of the process.
        pid: i32,
        /// Where.
        address: u64,
        /// How many bytes.
        length: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An [`io::Error`] from one process to another: its number, or what it says.
mod crossing {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::io;

    #[derive(Serialize, Deserialize)]
    enum Crossing {
        Number(i32),
        Text(String),
    }

    pub fn serialize<S: Serializer>(error: &io::Error, serializer: S) -> Result<S::Ok, S::Error> {
        error.raw_os_error().map_or_else(|| Crossing::Text(error.to_string()), Crossing::Number).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<io::Error, D::Error> {
        Ok(match Crossing::deserialize(deserializer)? {
            Crossing::Number(number) => io::Error::from_raw_os_error(number),
            Crossing::Text(text) => io::Error::other(text),
        })
    }
}
