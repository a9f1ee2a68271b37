//! One system call, without the C library: its `syscall` is what this library stands in front of.

use std::ffi::c_long;

/// The kernel's own answer: a value, or a negated errno.
///
/// # Safety
/// As for the system call that is made.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn system_call(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: registers as syscall(2) says for x86-64; the kernel destroys rcx and r11 and may read and write the memory
    // that the arguments point to, about which the caller has made a promise.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// The kernel's own answer: a value, or a negated errno.
///
/// # Safety
/// As for the system call that is made.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn system_call(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: registers as syscall(2) says for arm64; the kernel may read and write the memory that the arguments point
    // to, about which the caller has made a promise.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack),
        );
    }
    result
}
