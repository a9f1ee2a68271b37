//! A preload for CRIU on hosts that withhold CAP_SYS_RESOURCE (nested clusters, some virtual machines).
//!
//! Without that capability the kernel refuses to tell the resource limits of a process of another user by prlimit(2), and
//! shows them to everybody in `/proc/PID/limits`. This library stands in front of the C library's `prlimit`,
//! `prlimit64` and `syscall`: a *read* that the kernel refused is answered from there. Everything else goes to the kernel
//! as it came, and its answer is given back as it is: nothing is ever set, and no refusal to set is hidden.
//!
//! It allocates nothing, keeps of what it has answered the limits of one process ([`limits`]), and calls nothing that it stands in front of.

mod kernel;
mod limits;

use limits::Limit;
use std::ffi::{c_int, c_long, c_uint};

/// The kernel's `struct rlimit64`.
#[repr(C)]
struct RawLimit {
    current: u64,
    maximum: u64,
}

/// prlimit(2).
///
/// # Safety
/// As for the C library's: `new` and `old` are null or point to a `struct rlimit64`.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn prlimit64(pid: c_int, resource: c_uint, new: *const RawLimit, old: *mut RawLimit) -> c_int {
    let arguments = [pid.into(), resource.into(), new as c_long, old as c_long, 0, 0];
    // SAFETY: the caller's promise about the pointers is the one that the system call needs.
    unsafe { system_call(libc::SYS_prlimit64, arguments) as c_int }
}

/// prlimit(2), under the name that a program without large file support uses. On 64 bit it is the same.
///
/// # Safety
/// As for [`prlimit64`].
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn prlimit(pid: c_int, resource: c_uint, new: *const RawLimit, old: *mut RawLimit) -> c_int {
    // SAFETY: the same promise.
    unsafe { prlimit64(pid, resource, new, old) }
}

/// syscall(2), which CRIU uses for prlimit64 and for much else.
///
/// In C it takes any number of arguments. In the calling conventions of Linux on x86-64 and aarch64 those are passed
/// exactly like seven fixed ones; what a caller left out is read as whatever is there, and the kernel ignores it.
///
/// # Safety
/// As for the system call that is made.
#[cfg_attr(not(test), unsafe(no_mangle))]
unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    // SAFETY: the caller's promise.
    unsafe { system_call(number, [a, b, c, d, e, f]) }
}

/// Makes a system call, answers a refused read of limits, and turns an error into -1 and errno as the C library does.
///
/// # Safety
/// As for the system call that is made.
unsafe fn system_call(number: c_long, arguments: [c_long; 6]) -> c_long {
    // SAFETY: the caller's promise.
    let result = unsafe { kernel::system_call(number, arguments) };
    if result == -c_long::from(libc::EPERM) && number == libc::SYS_prlimit64 {
        let [pid, resource, new, old, ..] = arguments;
        if new == 0
            && old != 0
            && let Some(limit) = limits::of_process(pid as c_int, resource as usize)
        {
            // SAFETY: the caller promised that `old` points to a `struct rlimit64`, and it is not null.
            unsafe { store(old as *mut RawLimit, limit) };
            return 0;
        }
    }
    // The kernel's errors are -4095 to -1. Source: syscall(2), "Architecture calling conventions".
    if (-4095..0).contains(&result) {
        // SAFETY: the C library gives each thread an errno to write to.
        unsafe { *libc::__errno_location() = -result as c_int };
        return -1;
    }
    result
}

/// # Safety
/// `to` points to a `struct rlimit64` that may be written.
unsafe fn store(to: *mut RawLimit, limit: Limit) {
    // SAFETY: the caller's promise. Written without reading, so it need not be initialised.
    unsafe { to.write(RawLimit { current: limit.current, maximum: limit.maximum }) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_answers_is_passed_on() {
        let mut limit = RawLimit { current: 0, maximum: 0 };
        // SAFETY: `limit` may be written; no limit is set.
        let result = unsafe { prlimit64(0, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) };
        assert_eq!(result, 0);
        let told = limits::of_process(std::process::id() as c_int, libc::RLIMIT_NOFILE as usize).unwrap();
        assert_eq!((limit.current, limit.maximum), (told.current, told.maximum));
    }

    #[test]
    fn an_error_is_minus_one_and_errno() {
        let mut limit = RawLimit { current: 0, maximum: 0 };
        // SAFETY: `limit` may be written; there is no process with this id.
        let result = unsafe { prlimit(i32::MAX, libc::RLIMIT_NOFILE, std::ptr::null(), &mut limit) };
        assert_eq!(result, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn other_system_calls_go_straight_through() {
        // SAFETY: getpid takes nothing and changes nothing.
        let pid = unsafe { syscall(libc::SYS_getpid, 0, 0, 0, 0, 0, 0) };
        assert_eq!(pid, c_long::from(std::process::id() as c_int));
    }
}
