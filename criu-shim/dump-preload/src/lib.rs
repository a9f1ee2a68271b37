//! A preload for CRIU that leaves memory out of a dump.
//!
//! CRIU finds out by `lseek(SEEK_DATA)` which pages an object of shared memory has, and by `/proc/PID/pagemap` which a process
//! has. For the objects and the ranges on a list this library answers that there are none; whoever made the list sees to their
//! pages. And it gives CRIU the text of `/proc/PID/smaps` that the agent has read for it, and what follows from that for the links in
//! `/proc/PID/map_files` ([`link`]). What it asks about TCP sockets where there are none is answered for the kernel ([`sockets`]). Everything
//! else goes to the kernel as it came.
//!
//! The list is a memfd that CRIU inherits, its number in the environment variable [`VARIABLE`]; so are the texts, in [`MAPPINGS`]. They
//! are mapped when the library is loaded; [`list`] and [`mappings`] have their formats. Without the variables, or without what they
//! name, nothing is left out, and CRIU reads for itself.

mod descriptor;
mod link;
mod list;
mod mappings;
mod pagemap;
mod sockets;

use descriptor::Last;
use link::Link;
use list::List;
use mappings::Mappings;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::sync::OnceLock;

/// Names the list's descriptor.
const VARIABLE: &CStr = c"TIDEOVER_WITHHELD";
/// Names the descriptor of the texts of mappings.
const MAPPINGS: &CStr = c"TIDEOVER_MAPPINGS";

static LIST: OnceLock<Option<List>> = OnceLock::new();
static TEXTS: OnceLock<Option<Mappings>> = OnceLock::new();
/// CRIU's own process, which looks at its own memory too, before it comes to that of others.
static OWN: OnceLock<u64> = OnceLock::new();

thread_local! {
    static PAGEMAP: Last = const { Last::of(b"pagemap") };
    static LINKS: Last = const { Last::of(b"map_files") };
    /// Where in its text the last mapping was whose link was asked for.
    static LINK_AT: Cell<usize> = const { Cell::new(0) };
}

/// Run when the library is loaded, before CRIU can have closed what it inherited.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[used]
static LOADED: extern "C" fn() = {
    extern "C" fn loaded() {
        LIST.get_or_init(|| inherited(VARIABLE).and_then(List::mapped));
        TEXTS.get_or_init(|| inherited(MAPPINGS).and_then(Mappings::mapped));
        OWN.get_or_init(|| std::process::id().into());
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
    {
        // SAFETY: the caller's promise.
        let path = unsafe { CStr::from_ptr(path) };
        if path == c"smaps"
            && let Some(text) = descriptor::process_directory(directory).and_then(|process| texts.open(process))
        {
            return text;
        }
        if link(directory, path) == Some(Link::None) {
            return failed(libc::ENOENT);
        }
    }
    // SAFETY: the caller's promise, handed on.
    unsafe { libc::syscall(libc::SYS_openat, directory, path, flags, mode) as c_int }
}

/// newfstatat(2), under the name that a program with large file support uses: how CRIU asks for the links of mappings. Of a link that is
/// known, its kind and permissions are answered, and zeroes beside.
///
/// # Safety
/// As for the C library's: `path` must be a C string, and `stat` have room for a `struct stat`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn fstatat64(directory: c_int, path: *const c_char, stat: *mut libc::stat, flags: c_int) -> c_int {
    if flags == libc::AT_SYMLINK_NOFOLLOW && !path.is_null() && !stat.is_null() {
        // SAFETY: the caller's promise.
        match link(directory, unsafe { CStr::from_ptr(path) }) {
            Some(Link::None) => return failed(libc::ENOENT),
            Some(Link::Readable) => {
                // SAFETY: the caller's promise; a `struct stat` may be all zeroes.
                unsafe {
                    stat.write_bytes(0, 1);
                    (*stat).st_mode = libc::S_IFLNK | libc::S_IRUSR;
                }
                return 0;
            }
            None => {}
        }
    }
    // SAFETY: the caller's promise, handed on.
    unsafe { libc::syscall(libc::SYS_newfstatat, directory, path, stat, flags) as c_int }
}

/// What is known of the link `name` in `directory`, which may be any.
fn link(directory: c_int, name: &CStr) -> Option<Link> {
    let texts = TEXTS.get()?.as_ref()?;
    if !link::is_range(name.to_bytes()) {
        return None;
    }
    let process = LINKS.with(|links| links.process(directory))?;
    let (link, at) = link::find(texts.text(process)?, name.to_bytes(), LINK_AT.get())?;
    LINK_AT.set(at);
    Some(link)
}

/// The answer "no", for this reason.
fn failed(errno: c_int) -> c_int {
    // SAFETY: the C library gives each thread an errno to write to.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// lseek(2), under the name that a program with large file support uses. On 64 bit it is the same.
///
/// # Safety
/// As for the C library's; nothing is asked of the caller.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn lseek64(descriptor: c_int, offset: i64, whence: c_int) -> i64 {
    if whence == libc::SEEK_DATA && is_withheld(descriptor) {
        // "No data from here on". Source: lseek(2).
        return failed(libc::ENXIO).into();
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

/// sendmsg(2).
///
/// # Safety
/// As for the C library's: `message` must be one.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn sendmsg(descriptor: c_int, message: *const libc::msghdr, flags: c_int) -> isize {
    // SAFETY: the caller's promise.
    let known = unsafe { message.as_ref().and_then(|message| sockets::known(descriptor, message, sockets::counted)) };
    sockets::NEXT.set(known);
    if known.is_some() {
        return sockets::REQUEST as isize;
    }
    // SAFETY: the caller's promise, handed on.
    unsafe { libc::syscall(libc::SYS_sendmsg, descriptor, message, flags) as isize }
}

/// recvmsg(2).
///
/// # Safety
/// As for the C library's: `message` must be one.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn recvmsg(descriptor: c_int, message: *mut libc::msghdr, flags: c_int) -> isize {
    // SAFETY: the caller's promise.
    let given = unsafe { sockets::NEXT.take().and_then(|known| known.give(descriptor, message.as_mut()?)) };
    if let Some(length) = given {
        return length as isize;
    }
    // SAFETY: the caller's promise, handed on.
    unsafe { libc::syscall(libc::SYS_recvmsg, descriptor, message, flags) as isize }
}

/// What is withheld of the process whose pagemap `descriptor` is; none where it is something else.
fn withheld_of(descriptor: c_int) -> Option<list::Ranges> {
    let list = LIST.get()?.as_ref().filter(|list| list.withholds_memory())?;
    let process = PAGEMAP.with(|pagemap| pagemap.process(descriptor));
    // Nothing of CRIU itself is listed, and what is to come is not waited for.
    let ranges = list.memory(process.filter(|process| OWN.get() != Some(process))?);
    (!ranges.is_empty()).then_some(ranges)
}

fn is_withheld(descriptor: c_int) -> bool {
    let Some(Some(list)) = LIST.get() else { return false };
    descriptor::identity(descriptor).is_some_and(|(device, inode)| list.has(device, inode))
}

#[cfg(test)]
mod tests;
