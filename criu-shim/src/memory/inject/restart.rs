//! Letting a system call that a stop has interrupted go on.

use crate::memory::ptrace::Registers;

/// The kernel's ERESTARTNOHAND, from include/linux/errno.h: to be run again unless a handler is to be called.
const RESTART_WITHOUT_HANDLER: i64 = -514;

/// Calls that return EINTR after a stop, though no signal was handled. Source: signal(7), "Interruption of system calls
/// and library functions by stop signals".
const NOT_RESTARTED: [i64; 7] = [
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_io_getevents,
];

/// The registers with which a thread that was stopped with these goes on as if it had not been.
///
/// Most calls ask the kernel themselves to be restarted. Those that do not are made to: if a signal is about to be
/// handled the kernel still turns that into EINTR. A time limit of such a call begins anew.
pub fn resumed(mut registers: Registers) -> Registers {
    let interrupted = registers.rax.cast_signed() == -i64::from(libc::EINTR);
    if interrupted && NOT_RESTARTED.contains(&registers.orig_rax.cast_signed()) {
        registers.rax = RESTART_WITHOUT_HANDLER.cast_unsigned();
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(call: i64, result: i64) -> i64 {
        let own = crate::memory::ptrace::Registers {
            orig_rax: call.cast_unsigned(),
            rax: result.cast_unsigned(),
            ..crate::memory::ptrace::no_registers()
        };
        resumed(own).rax.cast_signed()
    }

    #[test]
    fn only_an_interrupted_call_that_is_not_restarted_is_changed() {
        assert_eq!(check(libc::SYS_epoll_wait, -4), -514);
        assert_eq!(check(libc::SYS_epoll_wait, 1), 1);
        assert_eq!(check(libc::SYS_nanosleep, -516), -516);
        assert_eq!(check(libc::SYS_read, -4), -4);
        // Not amid a system call.
        assert_eq!(check(-1, -4), -4);
    }
}
