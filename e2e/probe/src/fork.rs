//! Copies of this process, which share its memory until one of them writes. Owns every fork of the probe.

use std::io;

/// Makes `count` copies, which do nothing for ever. Returns their numbers.
pub(crate) fn copies(count: usize) -> io::Result<Vec<libc::pid_t>> {
    (0..count).map(|_| copy()).collect()
}

fn copy() -> io::Result<libc::pid_t> {
    // SAFETY: whatever other threads of the parent hold, the child calls nothing but pause(2), which needs none of it.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => loop {
            // SAFETY: takes no argument and touches no memory.
            unsafe { libc::pause() };
        },
        pid => Ok(pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_children_with_the_same_program() {
        let pids = copies(2).expect("copies");
        assert_eq!(pids.len(), 2);
        for pid in pids {
            let of = |whose: &str| std::fs::read_link(format!("/proc/{whose}/exe")).expect("a program");
            assert_eq!(of(&pid.to_string()), of("self"));
            // SAFETY: a child of this process that nobody else waits for; no status is asked for.
            unsafe {
                assert_eq!(libc::kill(pid, libc::SIGKILL), 0);
                assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), 0), pid);
            }
        }
    }
}
