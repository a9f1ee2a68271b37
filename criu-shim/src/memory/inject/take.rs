//! Taking a descriptor out of another process. It holds the `unsafe` of that call and nothing else.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A duplicate of descriptor `number` of process `pid`, closed on exec. Source: pidfd_getfd(2), Linux 5.6.
pub fn descriptor(pid: i32, number: u64) -> io::Result<OwnedFd> {
    let process = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?;
    // SAFETY: the call takes three numbers and touches no memory.
    let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    let taken = i32::try_from(taken).unwrap_or(-1);
    if taken < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(taken) })
}
