//! A preload for CRIU that keeps the processes which it restores in its own IPC namespace.
//!
//! System V objects are dumped with the namespace that they are in, and CRIU restores them into a new one. A container's IPC
//! namespace is its pod's and exists already. CRIU can be told to join it, and then it leaves out the objects, and can't restore
//! a mapping of one. So CRIU is started inside the pod's namespace, and this library takes the flag for a new one out of
//! `clone3(2)`: what CRIU does next, in the belief to be in a new namespace, it does in the pod's.
//!
//! CRIU makes that call by the C library's `syscall`, on every kernel since 5.5 (`clone3_with_pid_noasan` in CRIU's
//! `criu/clone-noasan.c`). Everything else goes on as it came, to whoever stands behind this library.

use std::ffi::{c_long, c_void};
use std::sync::atomic::{AtomicPtr, Ordering};

/// `syscall` of the C library or of a preload behind this one.
type Syscall = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// Where that is, once looked up.
static NEXT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Run when the library is loaded: a child of a fork should not have to ask the loader.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[used]
static LOADED: extern "C" fn() = {
    extern "C" fn loaded() {
        next();
    }
    loaded
};

/// syscall(2). About the arguments of a C function that takes any number of them see `rlimit-preload`.
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
    if number == libc::SYS_clone3 {
        // SAFETY: the caller's promise: `a` and `b` are what clone3(2) takes.
        unsafe { stay(a as *mut u64, b) };
    }
    let Some(next) = next() else {
        // SAFETY: the C library gives each thread an errno to write to.
        unsafe { *libc::__errno_location() = libc::ENOSYS };
        return -1;
    };
    // SAFETY: the caller's promise, handed on.
    unsafe { next(number, a, b, c, d, e, f) }
}

/// Takes the flag for a new IPC namespace out of clone3's arguments, of which the flags are the first.
///
/// # Safety
/// `arguments` is null or has `size` bytes that may be written.
unsafe fn stay(arguments: *mut u64, size: c_long) {
    if !arguments.is_null() && size >= size_of::<u64>() as c_long {
        // SAFETY: the caller's promise. The kernel asks for no alignment, so none is relied on.
        unsafe { arguments.write_unaligned(arguments.read_unaligned() & !(libc::CLONE_NEWIPC as u64)) };
    }
}

fn next() -> Option<Syscall> {
    let mut found = NEXT.load(Ordering::Relaxed);
    if found.is_null() {
        // SAFETY: a C string, and a handle that stands for the libraries behind this one.
        found = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        NEXT.store(found, Ordering::Relaxed);
    }
    // SAFETY: a function of this name has C's `long syscall(long, ...)`, whose arguments are passed like fixed ones.
    (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Syscall>(found) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A child with `flags` beside its own: whether it was in another IPC namespace.
    fn leaves(flags: u64) -> bool {
        // Without the heap, which another thread may hold locked in the moment of the fork.
        let own = || {
            let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
            // SAFETY: a path that ends in zero, and room for what the kernel says of it. Zeros are such a structure too.
            unsafe {
                libc::stat(c"/proc/thread-self/ns/ipc".as_ptr(), stat.as_mut_ptr());
                stat.assume_init().st_ino
            }
        };
        let before = own();
        assert_ne!(before, 0);
        // Flags, and the signal at its end. Source: clone(2), `struct clone_args`.
        let mut arguments = [0_u64; 8];
        (arguments[0], arguments[4]) = (flags, libc::SIGCHLD as u64);
        let size = size_of_val(&arguments) as c_long;
        // SAFETY: a fork by another name; the child only looks at a file and ends. It is waited for.
        unsafe {
            let child = syscall(libc::SYS_clone3, arguments.as_mut_ptr() as c_long, size, 0, 0, 0, 0);
            if child == 0 {
                libc::_exit(i32::from(own() != before));
            }
            assert!(child > 0, "{}", std::io::Error::last_os_error());
            let mut status = 0;
            assert_eq!(libc::waitpid(child as i32, &mut status, 0), child as i32);
            libc::WEXITSTATUS(status) != 0
        }
    }

    #[test]
    fn a_child_stays_in_the_ipc_namespace_whatever_it_is_asked_for() {
        assert!(!leaves(libc::CLONE_NEWIPC as u64));
    }

    #[test]
    fn other_flags_are_kept() {
        let mut flags = [(libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64 | libc::CLONE_PARENT as u64];
        // SAFETY: eight bytes that may be written.
        unsafe { stay(flags.as_mut_ptr(), 8) };
        assert_eq!(flags[0], (libc::CLONE_NEWUTS | libc::CLONE_PARENT) as u64);
    }

    #[test]
    fn what_follows_is_the_c_librarys() {
        // SAFETY: getpid takes nothing and changes nothing.
        assert_eq!(unsafe { syscall(libc::SYS_getpid, 0, 0, 0, 0, 0, 0) }, c_long::from(std::process::id() as i32));
        // SAFETY: a descriptor that is none.
        assert_eq!(unsafe { syscall(libc::SYS_close, -1, 0, 0, 0, 0, 0) }, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
    }
}
