//! A preload for CRIU that leaves memory out of a dump.
//!
//! CRIU finds out by `lseek(SEEK_DATA)` which pages an object of shared memory has, and by `/proc/PID/pagemap` which a process
//! has. For the objects and the ranges on a list this library answers that there are none; whoever made the list sees to their
//! pages. And it gives CRIU the text of `/proc/PID/smaps` that the agent has read for it. Everything else goes to the kernel as
//! it came.
//!
//! The list is a memfd that CRIU inherits, its number in the environment variable [`VARIABLE`]; so are the texts, in [`MAPPINGS`]. They
//! are mapped when the library is loaded; [`list`] and [`mappings`] have their formats. Without the variables, or without what they
//! name, nothing is left out, and CRIU reads for itself.

mod list;
mod mappings;
mod pagemap;

use list::List;
use mappings::Mappings;
use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::sync::OnceLock;

/// Names the list's descriptor.
const VARIABLE: &CStr = c"TIDEOVER_WITHHELD";
/// Names the descriptor of the texts of mappings.
const MAPPINGS: &CStr = c"TIDEOVER_MAPPINGS";

static LIST: OnceLock<Option<List>> = OnceLock::new();
static TEXTS: OnceLock<Option<Mappings>> = OnceLock::new();

/// Run when the library is loaded, before CRIU can have closed what it inherited.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[used]
static LOADED: extern "C" fn() = {
    extern "C" fn loaded() {
        LIST.get_or_init(|| inherited(VARIABLE).and_then(List::mapped));
        TEXTS.get_or_init(|| inherited(MAPPINGS).and_then(Mappings::mapped));
    }
    loaded
};

/// The descriptor that `variable` names.
fn inherited(variable: &CStr) -> Option<c_int> {
    // SAFETY: a C string; what is returned is one too, and is read before anybody changes the environment.
    let value = unsafe {
        let value = libc::getenv(variable.as_ptr());
        if value.is_null() {
            return None;
        }
        CStr::from_ptr(value)
    };
    value.to_str().ok()?.parse().ok()
}

/// openat(2), under the name that a program with large file support uses: how CRIU opens what is in a process' directory in
/// `/proc`. The C library declares the last argument variable; see [`ioctl`].
///
/// # Safety
/// As for the C library's: `path` must be a C string.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn openat64(directory: c_int, path: *const c_char, flags: c_int, mode: c_int) -> c_int {
    if let Some(Some(texts)) = TEXTS.get()
        && !path.is_null()
        // SAFETY: the caller's promise.
        && unsafe { CStr::from_ptr(path) } == c"smaps"
        && let Some(text) = pagemap::process_directory(directory).and_then(|process| texts.open(process))
    {
        return text;
    }
    // SAFETY: the caller's promise, handed on.
    unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode) as c_int }
}

/// lseek(2), under the name that a program with large file support uses. On 64 bit it is the same.
///
/// # Safety
/// As for the C library's; nothing is asked of the caller.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn lseek64(descriptor: c_int, offset: i64, whence: c_int) -> i64 {
    if whence == libc::SEEK_DATA && is_withheld(descriptor) {
        // "No data from here on". Source: lseek(2).
        // SAFETY: the C library gives each thread an errno to write to.
        unsafe { *libc::__errno_location() = libc::ENXIO };
        return -1;
    }
    // SAFETY: three numbers; the kernel checks each.
    unsafe { libc::syscall(libc::SYS_lseek, descriptor, offset, whence) }
}

/// lseek(2).
///
/// # Safety
/// As for [`lseek64`].
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn lseek(descriptor: c_int, offset: i64, whence: c_int) -> i64 {
    // SAFETY: the same promise.
    unsafe { lseek64(descriptor, offset, whence) }
}

/// ioctl(2). The C library declares its last argument variable; on x86-64 and arm64 Linux one such argument is passed like a
/// fixed one. Sources: the psABI of each.
///
/// # Safety
/// As for the C library's: `argument` must be what `request` asks for.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn ioctl(descriptor: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the caller's promise, handed on.
    let plain = || unsafe { libc::syscall(libc::SYS_ioctl, descriptor, request, argument) as c_int };
    if request != pagemap::SCAN || argument.is_null() {
        return plain();
    }
    let Some(withheld) = withheld_of(descriptor) else { return plain() };
    // SAFETY: this request takes such an argument, which nobody else uses meanwhile.
    let scan = unsafe { &mut *argument.cast::<pagemap::Scan>() };
    pagemap::scan(scan, withheld, |part| {
        // SAFETY: `part` is a copy of `scan` within its bounds.
        unsafe { libc::syscall(libc::SYS_ioctl, descriptor, request, std::ptr::from_mut(part)) }
    })
}

/// pread(2), under the name that a program with large file support uses: how CRIU reads a pagemap where the kernel is too old
/// to be asked for ranges.
///
/// # Safety
/// As for the C library's: `buffer` must have room for `length` bytes.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn pread64(descriptor: c_int, buffer: *mut c_void, length: usize, offset: i64) -> isize {
    // SAFETY: the caller's promise, handed on.
    let read = unsafe { libc::syscall(libc::SYS_pread64, descriptor, buffer, length, offset) as isize };
    if let (Some(withheld), Ok(read)) = (withheld_of(descriptor), usize::try_from(read)) {
        // SAFETY: the kernel has just written as many bytes.
        let words = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), read) };
        pagemap::blank(words, offset.unsigned_abs(), withheld);
    }
    read
}

/// What is withheld of the process whose pagemap `descriptor` is; none where it is something else.
fn withheld_of(descriptor: c_int) -> Option<list::Ranges> {
    let list = LIST.get()?.as_ref().filter(|list| list.withholds_memory())?;
    let ranges = list.memory(pagemap::process(descriptor)?);
    (!ranges.is_empty()).then_some(ranges)
}

fn is_withheld(descriptor: c_int) -> bool {
    let Some(Some(list)) = LIST.get() else { return false };
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` may be written, and is read only where the kernel has written it.
    let stat = unsafe {
        if libc::fstat(descriptor, stat.as_mut_ptr()) != 0 {
            return false;
        }
        stat.assume_init()
    };
    list.has(stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests;
