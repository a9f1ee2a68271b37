//! The signals that come, one by one, through a descriptor.
//!
//! All signals are blocked and read. So none is ever lost while init is busy, and none can stop it: as PID 1 the kernel also
//! keeps SIGKILL and SIGSTOP of its own namespace away from it.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// Blocks them, and reads them.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) number: i32,
    pub(crate) sender: Sender,
}

/// Who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// The kernel itself: a terminal that hung up, a timer.
    Kernel,
    /// A process that this PID namespace can't see: kubelet, through the container runtime.
    Outside,
    /// A process of this PID namespace.
    Process(i32),
}

impl Signals {
    /// Blocks every signal and opens the descriptor. Also returns the mask as it was.
    pub(crate) fn open() -> Result<(Self, SigSet), Errno> {
        let all = SigSet::all();
        let before = all.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok((Self(signals), before))
    }

    /// The next signal; `None` where none is waiting.
    pub(crate) fn next(&self) -> Result<Option<Arrived>, Errno> {
        Ok(self.0.read_signal()?.map(|info| Arrived {
            number: info.ssi_signo.cast_signed(),
            sender: match (info.ssi_code, info.ssi_pid.cast_signed()) {
                // Codes above 0 are the kernel's. Source: sigaction(2).
                (1.., _) => Sender::Kernel,
                (_, 0) => Sender::Outside,
                (_, pid) => Sender::Process(pid),
            },
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
