//! A preload for CRIU that leaves shared memory out of a dump.
//!
//! CRIU finds out by `lseek(SEEK_DATA)` which pages an object of shared memory has. For the objects on a list this library
//! answers that there are none; whoever made the list sees to their pages. Everything else goes to the kernel as it came.
//!
//! The list is a memfd that CRIU inherits, its number in the environment variable [`VARIABLE`]. It is mapped when the
//! library is loaded and read at each question, so that its writer may fill it in at any time before it asks for a dump.
//! Its format (words of 64 bits in the machine's order): the number of objects, then device and inode of each.
//!
//! Without the variable, or without a list, nothing is left out.

mod list;

use list::List;
use std::ffi::{CStr, c_int};
use std::sync::OnceLock;

/// Names the list's descriptor.
const VARIABLE: &CStr = c"TIDEOVER_WITHHELD";

static LIST: OnceLock<Option<List>> = OnceLock::new();

/// Run when the library is loaded, before CRIU can have closed what it inherited.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[used]
static LOADED: extern "C" fn() = {
    extern "C" fn loaded() {
        LIST.get_or_init(|| List::inherited(VARIABLE));
    }
    loaded
};

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
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::fs::{FileExt, MetadataExt};

    fn memfd() -> std::fs::File {
        // SAFETY: a new descriptor that nobody else owns.
        let descriptor = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"test".as_ptr(), 0)) };
        descriptor.into()
    }

    #[test]
    fn what_is_on_the_list_has_no_data_and_everything_else_has() {
        let (list, listed, other) = (memfd(), memfd(), memfd());
        listed.write_all_at(&[1; 4096], 8192).unwrap();
        other.write_all_at(&[1; 4096], 8192).unwrap();
        let variable = CString::new(format!("TEST_LIST_{}", std::process::id())).unwrap();
        // SAFETY: no other thread of this test program reads or writes the environment.
        unsafe { std::env::set_var(variable.to_str().unwrap(), list.as_raw_fd().to_string()) };
        let duplicate = list.try_clone().unwrap();
        LIST.get_or_init(|| List::inherited(&variable));
        std::mem::forget(list);
        let data = |file: &std::fs::File, whence| {
            // SAFETY: a descriptor of this test's own.
            unsafe { lseek(file.as_raw_fd(), 0, whence) }
        };
        assert_eq!((data(&listed, libc::SEEK_DATA), data(&other, libc::SEEK_DATA)), (8192, 8192), "nothing is listed");

        let metadata = listed.metadata().unwrap();
        let words = [1, metadata.dev(), metadata.ino()].map(u64::to_ne_bytes).concat();
        duplicate.write_all_at(&words, 0).unwrap();
        assert_eq!(data(&listed, libc::SEEK_DATA), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENXIO));
        assert_eq!((data(&listed, libc::SEEK_END), data(&other, libc::SEEK_DATA)), (12288, 8192));
    }
}
