//! The ioctls of a userfaultfd. It holds the `unsafe` of those calls and nothing else.
//!
//! Source of the numbers: include/uapi/linux/userfaultfd.h of the kernel, ioctl_userfaultfd(2).

use super::Range;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Flag of userfaultfd(2): no faults of the kernel are reported. Without it the call needs a privilege. In the mode used
/// here no fault is reported at all, and writes by the kernel are tracked as those of the process.
#[cfg(target_arch = "x86_64")]
pub const USER_MODE_ONLY: u64 = 1;

const API: u64 = 0xAA;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

#[repr(C)]
#[derive(Debug, Default)]
pub struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub struct Unregister {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Debug, Default)]
pub struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

nix::ioctl_readwrite!(uffdio_api, API, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, API, 0x00, Register);
nix::ioctl_read!(uffdio_unregister, API, 0x01, Unregister);
nix::ioctl_readwrite!(uffdio_writeprotect, API, 0x06, WriteProtect);

/// A userfaultfd that tracks writes in the address space it was made in. Closing it ends all tracking there.
#[derive(Debug)]
pub struct Userfaultfd(OwnedFd);

impl Userfaultfd {
    /// Turns a fresh userfaultfd into one that tracks writes.
    ///
    /// # Errors
    /// EINVAL from a kernel without asynchronous write protection (before 6.7, or built without it).
    pub fn tracking(fd: OwnedFd) -> io::Result<Self> {
        let features = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED | FEATURE_PAGEFAULT_FLAG_WP;
        let mut api = Api { api: API, features, ioctls: 0 };
        // SAFETY: `api` has the layout of struct uffdio_api and lives through the call.
        unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }?;
        Ok(Self(fd))
    }

    /// Starts tracking `range`: afterwards every page in it counts as written.
    ///
    /// The marks are cleared because kernels before 6.13 leave them on pages that mremap(2) has moved, and a write to such
    /// a page does not take them off.
    ///
    /// # Errors
    /// Pages in `range` may count as unwritten without having been seen: it must not be relied on. ESRCH when the address
    /// space is gone, EBUSY where another userfaultfd is.
    pub fn start(&self, range: Range) -> io::Result<()> {
        let mut register = Register { start: range.start, len: range.len(), mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: `register` has the layout of struct uffdio_register and lives through the call.
        unsafe { uffdio_register(self.0.as_raw_fd(), &raw mut register) }?;
        let mut clear = WriteProtect { start: range.start, len: range.len(), mode: 0 };
        // SAFETY: `clear` has the layout of struct uffdio_writeprotect and lives through the call.
        match unsafe { uffdio_writeprotect(self.0.as_raw_fd(), &raw mut clear) } {
            Ok(_) => Ok(()),
            Err(errno) => {
                let mut unregister = Unregister { start: range.start, len: range.len() };
                // It only saves the process faults; the range is out of use either way.
                // SAFETY: `unregister` has the layout of struct uffdio_range and lives through the call.
                let _ = unsafe { uffdio_unregister(self.0.as_raw_fd(), &raw mut unregister) };
                Err(errno.into())
            }
        }
    }
}
