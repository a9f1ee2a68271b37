//! Making a process call userfaultfd(2) and taking the descriptor away from it, with nothing left behind.

use super::AttachError;
use std::os::fd::OwnedFd;

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

/// A userfaultfd of process `pid`'s address space. The process has not got it any more.
///
/// # Errors
/// Any of [`AttachError`]; the process runs on as before.
#[cfg(target_arch = "x86_64")]
pub fn userfaultfd(pid: i32) -> Result<OwnedFd, AttachError> {
    // The kernel ends tracing with the thread that traces. So whatever goes wrong, nothing stays traced or stopped.
    let tracer = std::thread::Builder::new().name("inject".to_owned()).spawn(move || run(pid));
    let tracer = tracer.map_err(|source| AttachError::Thread { pid, source })?;
    tracer.join().unwrap_or_else(|_| {
        Err(AttachError::Thread { pid, source: std::io::Error::other("the thread that traced has panicked") })
    })
}

/// See the other one: the registers of this architecture are not known here.
#[cfg(not(target_arch = "x86_64"))]
pub fn userfaultfd(_pid: i32) -> Result<OwnedFd, AttachError> {
    Err(AttachError::Architecture)
}

#[cfg(target_arch = "x86_64")]
fn run(pid: i32) -> Result<OwnedFd, AttachError> {
    use super::uffd::USER_MODE_ONLY;
    let state = state::read(pid)?;
    state.refuse(pid)?;
    let mut traced = traced::Traced::stop(pid, &state)?;
    let site = site::find(pid, traced.instruction())?.ok_or(AttachError::NoSyscallInstruction { pid })?;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;
    let number = traced
        .call(site, libc::SYS_userfaultfd, flags)
        .map_err(|source| AttachError::Inject { pid, source })?
        .map_err(|source| AttachError::NoUserfaultfd { pid, source })?;
    let taken = take::descriptor(pid, number);
    // Before an error of the step above is looked at: the process must not keep the descriptor.
    let closed = traced.call(site, libc::SYS_close, number);
    traced.release().map_err(|source| AttachError::Inject { pid, source })?;
    closed.and_then(|result| result).map_err(|source| AttachError::Inject { pid, source })?;
    taken.map_err(|source| AttachError::Take { pid, source })
}
