//! What was found, and the sentence for it.

use crate::system_v::Kind;
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
    /// A unix socket that is connected to a process outside of the container.
    OutsideSocket {
        /// Process.
        pid: i32,
        /// Descriptor.
        fd: i32,
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
    /// System V objects were made after CRIU was started where it does not see them. Another attempt does.
    SystemVSince,
    /// A System V object belongs to another user or group than the one that made it.
    OtherCreator {
        /// What it is.
        kind: Kind,
        /// Its id.
        id: i32,
    },
    /// A System V segment is locked in memory.
    LockedSegment {
        /// Its id.
        id: i32,
    },
    /// A System V segment is made of huge pages.
    HugeSegment {
        /// Its id.
        id: i32,
    },
    /// A System V message queue has another limit than the one of its namespace.
    QueueLimit {
        /// Its id.
        id: i32,
    },
    /// In a System V message queue there may be a message that is too long to be restored.
    LongMessages {
        /// Its id.
        id: i32,
    },
    /// System V semaphores exist: they move, but not what the kernel would take back when a process ends.
    Semaphores {
        /// How many sets.
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
    /// True if it may be gone with another attempt.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::SystemVSince | Self::OutsideSocket { .. })
    }

    /// True if a dump would fail or hang; false if it is only worth a note.
    pub fn blocks(&self) -> bool {
        !matches!(self, Self::InotifyOnRoot { .. } | Self::LockedMemory { .. } | Self::Semaphores { .. })
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
            Self::OutsideSocket { pid, fd } => {
                write!(
                    f,
                    "descriptor {fd} of process {pid} is a unix socket that is connected to a process outside of the \
                     container, which can't be dumped"
                )
            }
            Self::MessageQueue { pid, fd } => {
                write!(f, "descriptor {fd} of process {pid} is a POSIX message queue, which can't be dumped")
            }
            Self::MessageQueues { count } => {
                write!(f, "the pod's IPC namespace holds POSIX message queues ({count}), which can't be dumped")
            }
            Self::SystemVSince => f.write_str("System V objects were made while the move was being prepared"),
            Self::OtherCreator { kind, id } => {
                write!(f, "the System V {kind} {id} was given away by who made it, which can't be restored")
            }
            Self::LockedSegment { id } => {
                write!(f, "the System V shared memory segment {id} is locked in memory, which can't be restored")
            }
            Self::HugeSegment { id } => {
                write!(f, "the System V shared memory segment {id} is made of huge pages, which can't be restored")
            }
            Self::QueueLimit { id } => {
                write!(f, "the System V message queue {id} has a limit of its own, which can't be restored")
            }
            Self::LongMessages { id } => {
                write!(
                    f,
                    "the System V message queue {id} may hold a message of more than 8 KiB, which can't be restored"
                )
            }
            Self::Semaphores { count } => {
                write!(f, "System V semaphores (sets: {count}) move without what SEM_UNDO would take back")
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
