//! Making a process run system calls: userfaultfd(2), whose descriptor is taken away from it, and those that give back what
//! somebody else has left in it. Nothing is left behind.
//!
//! When its tracer dies, the kernel lets a thread go with whatever registers it has then. So the tracer is a process that does nothing
//! else ([`apart`]): whoever kills the agent, or all of its container, does not reach it, and it ends after what it has begun.

use super::{AttachError, Range};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

mod apart;
#[cfg(target_arch = "x86_64")]
mod calls;
#[cfg(target_arch = "x86_64")]
mod restart;
#[cfg(target_arch = "x86_64")]
mod site;
#[cfg(target_arch = "x86_64")]
mod state;
#[cfg(target_arch = "x86_64")]
mod take;
#[cfg(target_arch = "x86_64")]
mod traced;

pub use apart::{Injector, serve};

/// What a process is made to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// To open a userfaultfd of its address space, which it has not got any more afterwards.
    Userfaultfd {
        /// Id of the process.
        pid: i32,
    },
    /// To unmap and close what is not its own. Refused with [`AttachError::AtWork`] while its first thread is in one of the ranges.
    GiveBack {
        /// Id of the process.
        pid: i32,
        /// What to unmap.
        ranges: Vec<Range>,
        /// What to close.
        descriptors: Vec<u64>,
    },
}

impl Work {
    fn pid(&self) -> i32 {
        match self {
            Self::Userfaultfd { pid } | Self::GiveBack { pid, .. } => *pid,
        }
    }
}

/// Does `work` in the calling process, on a thread of its own. The kernel ends tracing with the thread that traces. So whatever goes
/// wrong, nothing stays traced or stopped. Returns the descriptor that was asked for.
#[cfg(target_arch = "x86_64")]
fn carry_out(work: Work) -> Result<Option<OwnedFd>, AttachError> {
    let pid = work.pid();
    let tracer = std::thread::Builder::new().name("inject".to_owned()).spawn(move || match work {
        Work::Userfaultfd { pid } => calls::make_userfaultfd(pid).map(Some),
        Work::GiveBack { pid, ranges, descriptors } => calls::give_back(pid, &ranges, &descriptors).map(|()| None),
    });
    let tracer = tracer.map_err(|source| AttachError::Tracer { pid, source })?;
    tracer.join().unwrap_or_else(|_| {
        Err(AttachError::Tracer { pid, source: std::io::Error::other("the thread that traced has panicked") })
    })
}

/// See the other one: the registers of this architecture are not known here.
#[cfg(not(target_arch = "x86_64"))]
fn carry_out(_work: Work) -> Result<Option<OwnedFd>, AttachError> {
    Err(AttachError::Architecture)
}
