//! The kinds of memory there are.

use super::region::{Eighth, Held, Region};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

/// All of them, none of which is filled yet, but for the stack.
pub(super) fn regions() -> io::Result<Vec<Region>> {
    let anonymous = libc::MAP_ANONYMOUS;
    let (private, shared) = (libc::MAP_PRIVATE, libc::MAP_SHARED);
    let sealed = memfd("sealed", 4 * MIB)?;
    let backing = file("/tmp/zoo-private", MIB)?;
    let posix = file("/dev/shm/zoo", MIB)?;
    let mut regions = vec![
        Region::new("private", 1, map(16 * MIB, private | anonymous, None)?),
        Region::new("huge", 2, advised(map(8 * MIB, private | anonymous, None)?, libc::MADV_HUGEPAGE)?),
        Region::new("locked", 3, locked(map(16 * PAGE, private | anonymous, None)?)?),
        Region::new("shared", 4, map(8 * MIB, shared | anonymous, None)?),
        Region::new("memfd", 5, map(4 * MIB, shared, Some(&sealed))?),
        Region::file("memfd-unmapped", 6, memfd("unmapped", 2 * MIB)?)?,
        Region::new("posix", 7, map(MIB, shared, Some(&posix))?),
        Region::new("file-private", 8, map(MIB, private, Some(&backing))?),
        Region::new("brk", 9, brk(MIB)?),
        Region::new("moved", 10, moved(map(2 * MIB, private | anonymous, None)?)?),
        Region::new("short", 11, map(8 * PAGE, private | anonymous, None)?),
        Region::new("read-only", 12, map(2 * MIB, private | anonymous, None)?),
        Region::new("dropped", 13, map(2 * MIB, private | anonymous, None)?),
        Region::new("guarded", 14, map(2 * MIB, private | anonymous, None)?),
        Region::new("system-v", 15, segment(2 * MIB)?.0),
        Region::new("system-v-short", 16, removed(segment(64 * PAGE)?)?),
    ];
    for region in &mut regions {
        match region.name {
            "read-only" => region.fixed = true,
            "dropped" => region.eighth = Eighth::Dropped,
            "guarded" => region.eighth = Eighth::Guard,
            _ => {}
        }
    }
    // SAFETY: a descriptor of this process'.
    checked(unsafe { libc::fcntl(sealed.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) })?;
    // Descriptors move too.
    std::mem::forget((sealed, posix));
    Ok(regions)
}

/// What is done to them once they are filled: pages are given back, guarded, and made read-only.
pub(super) fn protect(regions: &mut [Region]) -> io::Result<()> {
    for region in regions {
        let (eighth, fixed) = (region.eighth, region.fixed);
        for page in region.eighths() {
            // SAFETY: whole pages of this process', which it looks at as zeros, or not at all, from now on.
            checked(unsafe {
                match eighth {
                    Eighth::Plain => 0,
                    Eighth::Dropped => libc::madvise(page, PAGE, libc::MADV_DONTNEED),
                    Eighth::Guard => libc::mprotect(page, PAGE, libc::PROT_NONE),
                }
            })?;
        }
        if let (true, Held::Memory(memory)) = (fixed, &mut region.held) {
            // SAFETY: nothing is written to it from now on.
            checked(unsafe { libc::mprotect(memory.as_mut_ptr().cast(), size_of_val(*memory), libc::PROT_READ) })?;
        }
    }
    Ok(())
}

/// A new mapping, never unmapped.
pub(super) fn map(length: usize, flags: i32, file: Option<&File>) -> io::Result<&'static mut [u64]> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let descriptor = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: a new mapping at an address that the kernel chooses. It is aligned to a page, any bits are a word, a file behind
    // it is as long, nothing else in this process uses it, and it stays for as long as the process lives.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), length, protection, flags, descriptor, 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(std::slice::from_raw_parts_mut(memory.cast(), length / size_of::<u64>()))
    }
}

/// A new System V segment, and its id. It is mapped for as long as the process lives.
fn segment(length: usize) -> io::Result<(&'static mut [u64], i32)> {
    // SAFETY: a new mapping at an address that the kernel chooses, as in `map`.
    unsafe {
        let id = libc::shmget(libc::IPC_PRIVATE, length, 0o600);
        checked(id)?;
        let memory = libc::shmat(id, std::ptr::null(), 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok((std::slice::from_raw_parts_mut(memory.cast(), length / size_of::<u64>()), id))
    }
}

/// The same, which nobody else can map any more.
fn removed((memory, id): (&'static mut [u64], i32)) -> io::Result<&'static mut [u64]> {
    // SAFETY: a command that takes numbers. What is mapped stays.
    checked(unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) })?;
    Ok(memory)
}

fn memfd(name: &str, length: usize) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: a string that ends, and a new descriptor that nobody else owns.
    let file = unsafe {
        let descriptor = libc::memfd_create(name.as_ptr(), libc::MFD_ALLOW_SEALING);
        checked(descriptor)?;
        File::from_raw_fd(descriptor)
    };
    file.set_len(length as u64)?;
    Ok(file)
}

fn file(path: &str, length: usize) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(length as u64)?;
    Ok(file)
}

fn advised(memory: &'static mut [u64], advice: i32) -> io::Result<&'static mut [u64]> {
    // SAFETY: whole pages of this process'; the advice changes no content. A kernel without huge pages says no, and the
    // memory is plain then.
    unsafe { libc::madvise(memory.as_mut_ptr().cast(), size_of_val(memory), advice) };
    Ok(memory)
}

fn locked(memory: &'static mut [u64]) -> io::Result<&'static mut [u64]> {
    // SAFETY: whole pages of this process'.
    checked(unsafe { libc::mlock(memory.as_ptr().cast(), size_of_val(memory)) })?;
    Ok(memory)
}

/// The top of the heap, taken for good.
fn brk(length: usize) -> io::Result<&'static mut [u64]> {
    // SAFETY: the program break goes up by so much, and whoever else moves it goes on from there. One page more, so that a
    // whole number of aligned ones is in it.
    unsafe {
        let start = libc::sbrk((length + PAGE) as libc::intptr_t);
        if start as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        let start = start.byte_add(start.align_offset(PAGE));
        Ok(std::slice::from_raw_parts_mut(start.cast(), length / size_of::<u64>()))
    }
}

/// The same memory at another address, twice as long behind it.
fn moved(memory: &'static mut [u64]) -> io::Result<&'static mut [u64]> {
    let length = size_of_val(memory);
    memory.fill(1);
    let place = map(2 * length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: nothing else uses either mapping; the one takes the place of the other, and both were this function's.
    unsafe {
        let address: *mut libc::c_void = place.as_mut_ptr().cast();
        if libc::mremap(memory.as_mut_ptr().cast(), length, 2 * length, flags, address) == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(std::slice::from_raw_parts_mut(address.cast(), length / size_of::<u64>()))
    }
}

fn checked(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
