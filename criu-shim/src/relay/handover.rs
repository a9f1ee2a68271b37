//! Becoming CRIU: one process goes on as the real CRIU, another relays.

use crate::criu::{CriuProgram, NO_BREAKPOINTS, leave_container};
use crate::local::{AHEAD_ENV, BUNDLE_ENV, STAND_IN_ENV, TOKEN_ENV};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};
use std::ffi::OsString;
use std::io::Error;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Becomes the real CRIU with these arguments. Returns only if that fails.
pub(super) fn become_criu(program: &CriuProgram, arguments: &[OsString]) -> Error {
    let (executable, leading) = program.command();
    Command::new(executable)
        .args(leading)
        .args(arguments)
        .envs(program.environment())
        .envs([NO_BREAKPOINTS])
        .env_remove(TOKEN_ENV)
        .env_remove(BUNDLE_ENV)
        .env_remove(AHEAD_ENV)
        .env_remove(STAND_IN_ENV)
        .exec()
}

/// Enters the namespaces of the new pod, so that CRIU need not be told of them.
pub(super) fn enter(network: Option<BorrowedFd<'_>>, joined: &[(CloneFlags, PathBuf)]) -> std::io::Result<()> {
    if let Some(network) = network {
        setns(network, CloneFlags::CLONE_NEWNET)?;
        fcntl(network, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    for (kind, path) in joined {
        setns(std::fs::File::open(path)?, *kind)?;
    }
    Ok(())
}

/// Tells the process that stands in the container's place, where one does, that runc has done its part. It takes the cgroups of
/// whoever says so: this process must be the one that runc has put into the container's.
pub(super) fn tell_stand_in() -> std::io::Result<()> {
    let Some(pid) = std::env::var(STAND_IN_ENV).ok() else { return Ok(()) };
    let pid: i32 = pid.parse().map_err(Error::other)?;
    Ok(kill(Pid::from_raw(pid), Signal::SIGUSR1)?)
}

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The one that runc started. It becomes CRIU.
    Criu,
    /// The one beside it.
    Relay,
}

/// Splits off the relay, as a child of nobody: CRIU waits for every child that it has, and must not find this one.
pub(super) fn split() -> std::io::Result<Side> {
    // SAFETY: this program has one thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
            Ok(Side::Criu)
        }
        // SAFETY: as above.
        ForkResult::Child => match unsafe { fork() } {
            Ok(ForkResult::Child) => Ok(Side::Relay),
            Ok(ForkResult::Parent { .. }) => std::process::exit(0),
            Err(_) => std::process::exit(1),
        },
    }
}

/// Makes the relay a process that holds nothing of the container: not its cgroups, whose limits and end are not its
/// own, nor its input and output, whose readers wait for the last writer, nor any descriptor but `keep`.
pub(super) fn detach(keep: &[&OwnedFd]) -> std::io::Result<()> {
    setsid()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    let mut numbers: Vec<RawFd> = keep.iter().map(|descriptor| descriptor.as_raw_fd()).collect();
    numbers.sort_unstable();
    let mut from = 3;
    for number in numbers {
        close_between(from, number);
        from = number + 1;
    }
    close_between(from, RawFd::MAX);
    std::env::set_current_dir("/")?;
    leave_container(Path::new("/")).map_err(Error::other)
}

/// Closes the descriptors `from..to`.
fn close_between(from: RawFd, to: RawFd) {
    if from < to {
        // SAFETY: no Rust object of this process owns a descriptor of the range: the caller keeps those that one does,
        // and has given up the rest. close_range(2) fails only for a range that is none.
        unsafe { libc::close_range(from as libc::c_uint, to as libc::c_uint - 1, 0) };
    }
}
