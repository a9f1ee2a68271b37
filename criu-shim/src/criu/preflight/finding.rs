//! What was found, and the sentence for it.

use std::fmt;

/// Something about a process that a dump can't take, or that a restore won't bring back as it was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Stopped by a signal. On the v1 freezer a dump would wait for it for ever.
    Stopped {
        /// Process.
        pid: i32,
    },
    /// Another process traces a task of it.
    Traced {
        /// Process.
        pid: i32,
        /// Who traces it.
        tracer: i32,
    },
    /// In a namespace of its own below the container's.
    NestedNamespace {
        /// Process.
        pid: i32,
        /// `pid`, `user`, `net`, `time`, ...
        kind: &'static str,
    },
    /// An open descriptor of a kind that CRIU does not know.
    Descriptor {
        /// Process.
        pid: i32,
        /// Descriptor.
        fd: i32,
        /// What it is, as `/proc` names it.
        kind: String,
    },
    /// A socket of a family or protocol that CRIU does not know.
    Socket {
        /// Process.
        pid: i32,
        /// Descriptor.
        fd: i32,
        /// Which.
        kind: String,
    },
    /// An open POSIX message queue.
    MessageQueue {
        /// Process.
        pid: i32,
        /// Descriptor.
        fd: i32,
    },
    /// POSIX message queues exist in the pod's IPC namespace.
    MessageQueues {
        /// How many.
        count: usize,
    },
    /// System V objects exist in the pod's IPC namespace.
    SystemV {
        /// What they are.
        kind: &'static str,
        /// How many.
        count: usize,
    },
    /// More pipes than one dump can take.
    TooManyPipes {
        /// How many.
        count: usize,
        /// How many it can.
        limit: usize,
    },
    /// An inotify watch on the container's root file system: the dump has to search for its path.
    InotifyOnRoot {
        /// Process.
        pid: i32,
        /// Descriptor.
        fd: i32,
    },
    /// Memory is locked: what is locked comes back locked, but "lock what comes" (MCL_FUTURE) does not come back.
    LockedMemory {
        /// Process.
        pid: i32,
        /// How much, KiB.
        kib: u64,
    },
}

impl Finding {
    /// True if a dump would fail or hang; false if it is only worth a note.
    pub fn blocks(&self) -> bool {
        !matches!(self, Self::InotifyOnRoot { .. } | Self::LockedMemory { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped { pid } => write!(f, "process {pid} is stopped by a signal"),
            Self::Traced { pid, tracer } => write!(f, "process {pid} is traced by process {tracer}"),
            Self::NestedNamespace { pid, kind } => {
                write!(f, "process {pid} is in a {kind} namespace of its own inside the container")
            }
            Self::Descriptor { pid, fd, kind } => {
                write!(f, "descriptor {fd} of process {pid} is {kind}, which can't be dumped")
            }
            Self::Socket { pid, fd, kind } => {
                write!(f, "descriptor {fd} of process {pid} is a socket of {kind}, which can't be dumped")
            }
            Self::MessageQueue { pid, fd } => {
                write!(f, "descriptor {fd} of process {pid} is a POSIX message queue, which can't be dumped")
            }
            Self::MessageQueues { count } => {
                write!(f, "the pod's IPC namespace holds POSIX message queues ({count}), which can't be dumped")
            }
            Self::SystemV { kind, count } => {
                write!(f, "the pod's IPC namespace holds {kind} ({count}), which can't be dumped")
            }
            Self::TooManyPipes { count, limit } => {
                write!(f, "the processes hold {count} pipes, and a dump can take {limit}")
            }
            Self::InotifyOnRoot { pid, fd } => {
                write!(f, "descriptor {fd} of process {pid} watches files of the image, which have to be searched for")
            }
            Self::LockedMemory { pid, kib } => {
                write!(f, "process {pid} has {kib} KiB of locked memory; memory that it maps later won't be locked")
            }
        }
    }
}
