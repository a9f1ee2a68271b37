//! Memory as CRIU restores it lazily, and CRIU's side of the protocol.

use criu_shim::pages::PAGE;
use criu_shim::pages::daemon::SOCKET;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::ffi::c_void;
use std::io::{IoSlice, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Where the memory of every process begins.
pub const BASE: u64 = 0x1000_0000_0000;
/// Where memory is moved to.
pub const ELSEWHERE: u64 = 0x2000_0000_0000;

/// What a page should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Zero,
    /// This number, again and again.
    Word(u64),
}

impl Content {
    /// What the page at `address` was on the source.
    pub fn of(pid: i32, address: u64) -> Self {
        let page = address / PAGE;
        if page % 10 == 9 {
            return Self::Zero;
        }
        Self::Word((page ^ (pid as u64) << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
}

/// CRIU's end of the connection.
pub struct Criu(UnixStream);

impl Criu {
    pub fn connect(work: &Path) -> Self {
        Self(UnixStream::connect(work.join(SOCKET)).unwrap())
    }

    pub fn send(&mut self, pid: i32, userfault: &OwnedFd) {
        self.0.write_all(&pid.to_ne_bytes()).unwrap();
        let descriptors = [userfault.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&[0])], &control, MsgFlags::empty(), None).unwrap();
    }

    pub fn send_zombie(&mut self, pid: i32) {
        self.0.write_all(&(-pid).to_ne_bytes()).unwrap();
    }

    pub fn finish(&mut self) {
        self.try_to_finish().unwrap();
    }

    /// An error where the daemon has hung up already.
    pub fn try_to_finish(&mut self) -> std::io::Result<()> {
        self.0.write_all(&0x5253_5446u32.to_ne_bytes())
    }
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    length: u64,
    mode: u64,
    ioctls: u64,
}

nix::ioctl_readwrite!(uffd_api, 0xaa, 0x3f, Api);
nix::ioctl_readwrite!(uffd_register, 0xaa, 0x00, Register);

/// Maps `count` pages from [`BASE`] on and registers them as CRIU does.
pub fn restore(count: u64) -> OwnedFd {
    if count > 0 {
        map(BASE, count);
    }
    // SAFETY: no argument is a pointer.
    let number = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    assert!(number >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just made, and known to nobody else.
    let userfault = unsafe { OwnedFd::from_raw_fd(number as i32) };
    // Fork, remap, remove, unmap.
    let mut api = Api { api: 0xaa, features: 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6, ioctls: 0 };
    // SAFETY: `struct uffdio_api`.
    unsafe { uffd_api(userfault.as_raw_fd(), &mut api) }.unwrap();
    if count > 0 {
        let mut register = Register { start: BASE, length: count * PAGE, mode: 1, ioctls: 0 };
        // SAFETY: `struct uffdio_register`.
        unsafe { uffd_register(userfault.as_raw_fd(), &mut register) }.unwrap();
    }
    userfault
}

/// Anonymous private memory at this address.
pub fn map(address: u64, count: u64) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: nothing is replaced.
    let at = unsafe { libc::mmap(pointer(address), (count * PAGE) as usize, protection, flags, -1, 0) };
    assert_eq!(at, pointer(address));
}

pub fn pointer(address: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

/// mremap of whole pages; `flags` besides `MREMAP_MAYMOVE | MREMAP_FIXED`.
pub fn remap(from: u64, old: u64, to: u64, new: u64, flags: i32) {
    let flags = flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the tests use memory that nothing else lives in.
    let at = unsafe { libc::mremap(pointer(from), (old * PAGE) as usize, (new * PAGE) as usize, flags, pointer(to)) };
    assert_eq!(at, pointer(to), "{}", std::io::Error::last_os_error());
}

pub fn advise(pages: Range<u64>, advice: i32) {
    let length = (pages.end - pages.start) * PAGE;
    // SAFETY: the tests use memory that nothing else lives in.
    let result = unsafe { libc::madvise(pointer(BASE + pages.start * PAGE), length as usize, advice) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// What the page at `address` is now. All of it must be one number.
pub fn look(address: u64) -> Content {
    let words: *const u64 = pointer(address).cast();
    // SAFETY: mapped and readable, or the process is the one to die.
    let read = |index: usize| unsafe { words.add(index).read_volatile() };
    let first = read(0);
    for index in 1..PAGE as usize / 8 {
        assert_eq!(read(index), first, "the page at {address:#x} is not whole");
    }
    if first == 0 { Content::Zero } else { Content::Word(first) }
}

pub fn write(address: u64, word: u64) {
    let words: *mut u64 = pointer(address).cast();
    for index in 0..PAGE as usize / 8 {
        // SAFETY: mapped and writable, or the process is the one to die.
        unsafe { words.add(index).write_volatile(word) };
    }
}

/// The pages of [`BASE`] are what they were on the source.
pub fn is_right(pid: i32, pages: impl IntoIterator<Item = u64>) {
    is_right_at(pid, pages, BASE);
}

/// As [`is_right`] for pages that now begin at another address.
pub fn is_right_at(pid: i32, pages: impl IntoIterator<Item = u64>, base: u64) {
    for page in pages {
        assert_eq!(look(base + page * PAGE), Content::of(pid, BASE + page * PAGE), "page {page}");
    }
}

pub fn is_zero(base: u64, pages: impl IntoIterator<Item = u64>) {
    for page in pages {
        assert_eq!(look(base + page * PAGE), Content::Zero, "page {page}");
    }
}

/// All numbers below `count` in an order without a pattern.
pub fn shuffled(count: u64, seed: u64) -> Vec<u64> {
    let mut numbers: Vec<u64> = (0..count).collect();
    numbers.sort_by_key(|number| (number ^ seed << 20).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7);
    numbers
}
