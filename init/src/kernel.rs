//! Signals and ends of processes by number: the safe wrappers around know no real-time signals.

use crate::clock::Raw;
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A process of ours that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reaped {
    pub(crate) pid: i32,
    /// As waitpid(2) has it.
    pub(crate) status: i32,
}

/// What waitpid(2) says without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Children {
    /// One has ended and is reaped now.
    Ended(Reaped),
    /// All that there are live.
    Alive,
    /// There are none.
    None,
}

/// Reaps one child, if one has ended.
pub(crate) fn reap() -> Children {
    let mut status = 0;
    // SAFETY: `status` is valid for the one int that waitpid(2) writes.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Children::Alive,
        // With WNOHANG there is nothing that could be interrupted: the one error is ECHILD.
        pid if pid < 0 => Children::None,
        pid => Children::Ended(Reaped { pid, status }),
    }
}

/// Sends a signal. That there is no such process any more, or that it is another user's, is the caller's to know.
pub(crate) fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: kill(2) takes two numbers and touches no memory of ours.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// What the clocks say. A clock that can't be read stands still, which [`crate::clock::Clock`] bears.
pub(crate) fn clocks() -> Raw {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    Raw { monotonic: read(ClockId::CLOCK_MONOTONIC), real: read(ClockId::CLOCK_REALTIME) }
}
