//! Taking descriptors: the one that runc named on the command line, and those that it named in its request.

use super::request::Directories;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, getppid, pidfd_getfd, pidfd_open};
use std::io::ErrorKind;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Where descriptors go that must be out of the way of those with numbers that mean something: standard input and output,
/// and what runc lets CRIU inherit.
const HIGH: RawFd = 200;

/// The descriptor that runc named on the command line.
pub(super) fn named(number: &str) -> std::io::Result<OwnedFd> {
    let number: RawFd = number.parse().map_err(|_| ErrorKind::InvalidInput)?;
    // Below 3 it would be the container's own input or output.
    if number < 3 || nix::fcntl::fcntl(borrowed(number)?, FcntlArg::F_GETFD).is_err() {
        return Err(ErrorKind::InvalidInput.into());
    }
    // SAFETY: it is open, runc made it for this program, and no other part of this process knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn borrowed(number: RawFd) -> std::io::Result<std::os::fd::BorrowedFd<'static>> {
    if number < 0 {
        return Err(ErrorKind::InvalidInput.into());
    }
    // SAFETY: only asked whether it is open; a number that is not is an error of fcntl, no access to anything.
    Ok(unsafe { std::os::fd::BorrowedFd::borrow_raw(number) })
}

/// The same descriptor at a high number, closed on exec.
pub(super) fn high(descriptor: OwnedFd) -> std::io::Result<OwnedFd> {
    let number = fcntl(&descriptor, FcntlArg::F_DUPFD_CLOEXEC(HIGH))?;
    // SAFETY: fcntl has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The same descriptor at a high number, which the program that is executed next inherits.
pub(super) fn inheritable(descriptor: OwnedFd) -> std::io::Result<OwnedFd> {
    let number = fcntl(&descriptor, FcntlArg::F_DUPFD(HIGH))?;
    // SAFETY: fcntl has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// An inherited descriptor, by number, for as long as it takes to use it.
pub(super) fn inherited(number: RawFd) -> std::io::Result<std::os::fd::BorrowedFd<'static>> {
    borrowed(number)
}

/// runc's image and work directories. CRIU opens them as `/proc/<its peer>/fd/N`, and its peer is not runc any more.
pub(super) fn directories(of_runc: Directories) -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
    let runc: Pid = getppid().ok_or(ErrorKind::NotFound)?;
    let runc = pidfd_open(runc, PidfdFlags::empty())?;
    let take = |number: RawFd| -> std::io::Result<OwnedFd> {
        inheritable(pidfd_getfd(&runc, number, PidfdGetfdFlags::empty())?)
    };
    Ok((take(of_runc.images)?, of_runc.work.map(take).transpose()?))
}
