//! Making a process run system calls: userfaultfd(2), whose descriptor is taken away from it, and those that give back what
//! somebody else has left in it. Nothing is left behind.

use super::{AttachError, Range};
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
    trace(pid, move || make_userfaultfd(pid))
}

/// See the other one: the registers of this architecture are not known here.
#[cfg(not(target_arch = "x86_64"))]
pub fn userfaultfd(_pid: i32) -> Result<OwnedFd, AttachError> {
    Err(AttachError::Architecture)
}

/// Makes process `pid` unmap `ranges` and close `descriptors`, none of which is its own.
///
/// # Errors
/// Any of [`AttachError`]; the process runs on as before, with what it has not given back yet. [`AttachError::AtWork`] while its
/// first thread is in one of `ranges`.
#[cfg(target_arch = "x86_64")]
pub fn give_back(pid: i32, ranges: Vec<Range>, descriptors: Vec<u64>) -> Result<(), AttachError> {
    trace(pid, move || have_given_back(pid, &ranges, &descriptors))
}

/// See the other one.
#[cfg(not(target_arch = "x86_64"))]
pub fn give_back(_pid: i32, _ranges: Vec<Range>, _descriptors: Vec<u64>) -> Result<(), AttachError> {
    Err(AttachError::Architecture)
}

/// Does what traces process `pid` on a thread of its own. The kernel ends tracing with the thread that traces. So whatever goes
/// wrong, nothing stays traced or stopped.
#[cfg(target_arch = "x86_64")]
fn trace<T: Send + 'static>(
    pid: i32,
    work: impl FnOnce() -> Result<T, AttachError> + Send + 'static,
) -> Result<T, AttachError> {
    let tracer = std::thread::Builder::new().name("inject".to_owned()).spawn(work);
    let tracer = tracer.map_err(|source| AttachError::Thread { pid, source })?;
    tracer.join().unwrap_or_else(|_| {
        Err(AttachError::Thread { pid, source: std::io::Error::other("the thread that traced has panicked") })
    })
}

#[cfg(target_arch = "x86_64")]
fn have_given_back(pid: i32, ranges: &[Range], descriptors: &[u64]) -> Result<(), AttachError> {
    let state = state::read(pid)?;
    state.refuse(pid)?;
    let mut traced = traced::Traced::stop(pid, &state)?;
    if ranges.iter().any(|range| traced.is_in(range)) {
        return Err(AttachError::AtWork { pid });
    }
    let site = site::find(pid, traced.instruction(), ranges)?.ok_or(AttachError::NoSyscallInstruction { pid })?;
    let unmappings = ranges.iter().map(|range| (libc::SYS_munmap, [range.start, range.len()]));
    let closings = descriptors.iter().map(|number| (libc::SYS_close, [*number, 0]));
    let mut all = Ok(());
    for (number, arguments) in unmappings.chain(closings) {
        let result = traced.call(site, number, arguments).map_err(|source| AttachError::Inject { pid, source })?;
        all = all.and(result.map(|_| ()));
    }
    traced.release().and(all).map_err(|source| AttachError::Inject { pid, source })
}

#[cfg(target_arch = "x86_64")]
fn make_userfaultfd(pid: i32) -> Result<OwnedFd, AttachError> {
    use super::uffd::USER_MODE_ONLY;
    let state = state::read(pid)?;
    state.refuse(pid)?;
    let mut traced = traced::Traced::stop(pid, &state)?;
    let site = site::find(pid, traced.instruction(), &[])?.ok_or(AttachError::NoSyscallInstruction { pid })?;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | USER_MODE_ONLY;
    let number = traced
        .call(site, libc::SYS_userfaultfd, [flags, 0])
        .map_err(|source| AttachError::Inject { pid, source })?
        .map_err(|source| AttachError::NoUserfaultfd { pid, source })?;
    let taken = take::descriptor(pid, number);
    // Before an error of the step above is looked at: the process must not keep the descriptor.
    let closed = traced.call(site, libc::SYS_close, [number, 0]);
    traced.release().map_err(|source| AttachError::Inject { pid, source })?;
    closed.and_then(|result| result).map_err(|source| AttachError::Inject { pid, source })?;
    taken.map_err(|source| AttachError::Take { pid, source })
}
