//! The system calls that a stopped process is made to run, in their order.

use super::{site, state, take, traced};
use crate::memory::uffd::USER_MODE_ONLY;
use crate::memory::{AttachError, Range};
use std::os::fd::OwnedFd;

/// A userfaultfd of process `pid`'s address space. The process has not got it any more.
///
/// # Errors
/// Any of [`AttachError`]; the process runs on as before.
pub fn make_userfaultfd(pid: i32) -> Result<OwnedFd, AttachError> {
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

/// Makes process `pid` unmap `ranges` and close `descriptors`, none of which is its own.
///
/// # Errors
/// Any of [`AttachError`]; the process runs on as before, with what it has not given back yet.
pub fn give_back(pid: i32, ranges: &[Range], descriptors: &[u64]) -> Result<(), AttachError> {
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
