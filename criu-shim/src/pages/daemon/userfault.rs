//! The system calls on a userfaultfd.
//!
//! The only `unsafe` of the daemon. Source of numbers and layouts: `linux/userfaultfd.h`, and ioctl_userfaultfd(2).

use super::book::Change;
use crate::pages::PAGE;
use crate::pages::store::Bytes;
use nix::errno::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

/// `sizeof(struct uffd_msg)`.
const MESSAGE: usize = 32;
/// Messages that are read at once.
const BATCH: usize = 32;

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    /// Bytes that were copied, or a negated error number, from the kernel.
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    zeroed: i64,
}

mod ioctl {
    nix::ioctl_readwrite!(copy, 0xaa, 0x03, super::Copy);
    nix::ioctl_readwrite!(zero, 0xaa, 0x04, super::Zero);
    nix::ioctl_read!(wake, 0xaa, 0x02, super::Range);
}

/// An address that every process may have: the kernel looks whether there is one first.
const ANY_ADDRESS: u64 = 1 << 32;

/// What a process did or needs.
#[derive(Debug)]
pub(super) enum Message {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// The process has forked; this is the userfaultfd of the child.
    Forked(Userfault),
    /// The address space has changed.
    Changed(Change),
}

/// Why the kernel did not put a page.
#[derive(Debug)]
pub(super) enum Refusal {
    /// There is a page already (EEXIST).
    Present,
    /// The address space is changing, and its events must be read first (EAGAIN).
    Changing,
    /// No single mapping that is registered covers the range (ENOENT).
    NotRegistered,
    /// The process is gone (ESRCH; ENOSPC before Linux 4.15).
    Gone,
    /// No memory, of the node or of the cgroup of the process (ENOMEM).
    NoMemory,
    /// Anything else: the daemon or the store is broken.
    Failed(io::Error),
}

/// The userfaultfd of one address space.
#[derive(Debug)]
pub(super) struct Userfault(OwnedFd);

impl Userfault {
    /// The userfaultfd that CRIU sent, made not to block: only then can it be waited for.
    ///
    /// # Errors
    /// What fcntl says.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self(descriptor))
    }

    /// What has happened since, in order; empty if nothing has.
    ///
    /// # Errors
    /// What read says, and `InvalidData` for a message that the kernel was never asked for.
    pub(super) fn read(&self) -> io::Result<Vec<Message>> {
        let mut bytes = [0; BATCH * MESSAGE];
        let length = match rustix::io::read(&self.0, &mut bytes) {
            Ok(length) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        // Every message, even behind a bad one: each descriptor in them is ours from here on.
        let messages: Vec<io::Result<Message>> = bytes[..length].chunks_exact(MESSAGE).map(decode).collect();
        messages.into_iter().collect()
    }

    /// Copies `from` to address `to` of the process and wakes who waits for it. Returns how many bytes were copied, and
    /// why not more.
    pub(super) fn copy(&self, to: u64, from: Bytes<'_>) -> (u64, Option<Refusal>) {
        self.copy_from(to, from.address(), from.length())
    }

    /// Puts zeros into the page at `address` and wakes who waits for it.
    pub(super) fn zero(&self, address: u64) -> Option<Refusal> {
        let mut request = Zero { range: Range { start: address, length: PAGE }, mode: 0, zeroed: 0 };
        // SAFETY: the kernel reads and writes `request`, which has the layout of `struct uffdio_zeropage`, and puts a
        // page only where a registered one is missing in the process that the descriptor belongs to.
        let result = unsafe { ioctl::zero(self.0.as_raw_fd(), &mut request) };
        result.err().map(Refusal::of)
    }

    /// Wakes who waits for the page at `address`, to look again.
    pub(super) fn wake(&self, address: u64) {
        let mut range = Range { start: address, length: PAGE };
        // SAFETY: the kernel reads `range`, which has the layout of `struct uffdio_range`.
        let result = unsafe { ioctl::wake(self.0.as_raw_fd(), &mut range) };
        // It only fails for a range that is none.
        debug_assert!(result.is_ok(), "wake {address:#x}: {result:?}");
    }

    /// Whether the process is gone, without changing anything.
    pub(super) fn is_gone(&self) -> bool {
        // SAFETY: the kernel chooses the address; nobody can use a mapping without any access.
        let nothing = unsafe { mmap_anonymous(ptr::null_mut(), PAGE as usize, ProtFlags::empty(), MapFlags::PRIVATE) };
        let Ok(nothing) = nothing else { return false };
        // Nothing can be copied from there, so nothing is put, whatever the address is.
        let (_, refusal) = self.copy_from(ANY_ADDRESS, nothing.addr() as u64, PAGE);
        // SAFETY: mapped above, with this length, and known to nobody else.
        unsafe { rustix::mm::munmap(nothing, PAGE as usize) }.ok();
        matches!(refusal, Some(Refusal::Gone))
    }

    fn copy_from(&self, to: u64, from: u64, length: u64) -> (u64, Option<Refusal>) {
        let mut done = 0;
        while done < length {
            let mut request = Copy { to: to + done, from: from + done, length: length - done, mode: 0, copied: 0 };
            // SAFETY: the kernel reads and writes `request`, which has the layout of `struct uffdio_copy`. It reads what
            // `from` names, with an error where that is no memory, and puts pages only where registered ones are missing
            // in the process that the descriptor belongs to.
            let result = unsafe { ioctl::copy(self.0.as_raw_fd(), &mut request) };
            let copied = u64::try_from(request.copied).unwrap_or(0);
            done += copied;
            match result {
                // A part was copied; the next try says why not more.
                Err(Errno::EAGAIN) if copied > 0 => {}
                Err(Errno::EINTR) => {}
                Err(errno) => return (done, Some(Refusal::of(errno))),
                Ok(_) => {}
            }
        }
        (done, None)
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Refusal {
    fn of(errno: Errno) -> Self {
        match errno {
            Errno::EEXIST => Self::Present,
            Errno::EAGAIN => Self::Changing,
            Errno::ENOENT => Self::NotRegistered,
            Errno::ESRCH | Errno::ENOSPC => Self::Gone,
            Errno::ENOMEM => Self::NoMemory,
            other => Self::Failed(other.into()),
        }
    }
}

fn decode(bytes: &[u8]) -> io::Result<Message> {
    let number = |at: usize| bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map(u64::from_ne_bytes);
    let unknown = || io::Error::new(ErrorKind::InvalidData, "a message of an unknown kind");
    let (Some(first), Some(second), Some(third)) = (number(8), number(16), number(24)) else {
        return Err(unknown());
    };
    match bytes[0] {
        // Flags come first.
        EVENT_PAGEFAULT => Ok(Message::Fault(second - second % PAGE)),
        EVENT_REMAP => Ok(Message::Changed(Change::Moved { from: first, to: second, length: third })),
        EVENT_REMOVE | EVENT_UNMAP => Ok(Message::Changed(Change::Dropped { start: first, end: second })),
        EVENT_FORK => {
            let number = bytes[8..].first_chunk().copied().map(i32::from_ne_bytes).ok_or_else(unknown)?;
            // SAFETY: the kernel made this descriptor for us when the message was read, and tells it once.
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            Userfault::new(descriptor).map(Message::Forked)
        }
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a C program prints that includes the kernel's header, on a machine of 64 bits.
    #[test]
    fn requests_have_the_numbers_of_the_kernels_header() {
        assert_eq!(nix::request_code_readwrite!(0xaa, 0x03, size_of::<Copy>()), 0xc028_aa03);
        assert_eq!(nix::request_code_readwrite!(0xaa, 0x04, size_of::<Zero>()), 0xc020_aa04);
        assert_eq!(nix::request_code_read!(0xaa, 0x02, size_of::<Range>()), 0x8010_aa02);
    }

    #[test]
    fn messages_are_read_by_their_layout() {
        let message = |event: u8, numbers: [u64; 3]| {
            let mut bytes = vec![event, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(numbers.into_iter().flat_map(u64::to_ne_bytes));
            decode(&bytes)
        };
        assert!(matches!(message(0x12, [1, 0x5008, 0]).unwrap(), Message::Fault(0x5000)));
        let moved = Change::Moved { from: 1, to: 2, length: 3 };
        assert!(matches!(message(0x14, [1, 2, 3]).unwrap(), Message::Changed(change) if change == moved));
        for event in [0x15, 0x16] {
            let dropped = Change::Dropped { start: 1, end: 2 };
            assert!(matches!(message(event, [1, 2, 9]).unwrap(), Message::Changed(change) if change == dropped));
        }
        assert_eq!(message(0x11, [0; 3]).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
