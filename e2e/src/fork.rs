//! What needs `unsafe`: forking, and running code between fork and exec.
//!
//! Owns nothing else. Callers keep the conditions named here.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid};

/// Which side of the fork this is.
#[derive(Debug)]
pub enum Side {
    /// The old process; the child's number as seen from here.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Why the process was not doubled.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// More than one thread runs; a lock held by another would stay locked in the child for ever.
    #[error("fork while {0} threads run")]
    Threads(usize),
    /// The number of threads is unknown.
    #[error("count the threads of this process")]
    Count(#[source] io::Error),
    /// fork(2) failed.
    #[error("fork")]
    Fork(#[source] io::Error),
}

/// Doubles this process, which must have a single thread.
///
/// # Errors
/// When other threads run, and when the kernel refuses.
pub fn fork() -> Result<Side, ForkError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(ForkError::Count)?.count();
    if threads != 1 {
        return Err(ForkError::Threads(threads));
    }
    // SAFETY: the process has one thread, counted above, and nobody else can start one meanwhile; so no lock is held
    // by a thread that the child lacks, and the child may go on like any program.
    match unsafe { nix::unistd::fork() }.map_err(|errno| ForkError::Fork(errno.into()))? {
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
        ForkResult::Child => Ok(Side::Child),
    }
}

/// Makes `command` start with no blocked signal and in a session of its own: a supervisor blocks signals to read them
/// from a descriptor, and its services must not inherit that.
pub fn with_fresh_signals(command: &mut Command) -> &mut Command {
    let fresh = || {
        SigSet::empty().thread_set_mask()?;
        nix::unistd::setsid()?;
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec and only makes the system calls sigprocmask and setsid, which are
    // async-signal-safe; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(fresh) }
}

/// Makes `command` start with its three standard streams and no other descriptor: a machine outlives whoever started it
/// and must not hold that one's locks and pipes open.
pub fn with_standard_streams_only(command: &mut Command) -> &mut Command {
    const FIRST: libc::c_uint = 3;
    let alone = || {
        // SAFETY: marks descriptors of the new process, all of which end with it or with its exec; none is closed here.
        match unsafe { libc::close_range(FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure runs between fork and exec and only makes the system call close_range, which is
    // async-signal-safe; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(alone) }
}
