//! What `/proc/PID/status` says against stopping a process.

use crate::memory::AttachError;
use std::io::ErrorKind;
use std::path::PathBuf;

/// The lines of `/proc/PID/status` that matter here. Source: proc_pid_status(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Letter of the first thread's state.
    pub letter: char,
    /// Threads of the process.
    pub threads: u32,
    /// Process that traces the first thread, 0 for none.
    pub tracer: i32,
    /// True when the first thread has a seccomp filter, or is in strict mode.
    pub seccomp: bool,
}

impl State {
    /// # Errors
    /// The reason why a process in this state is left alone.
    pub fn refuse(&self, pid: i32) -> Result<(), AttachError> {
        match self.letter {
            'Z' | 'X' if self.threads > 1 => Err(AttachError::LeaderExited { pid }),
            'Z' | 'X' => Err(AttachError::Gone { pid }),
            _ if self.tracer != 0 => Err(AttachError::Traced { pid, tracer: self.tracer }),
            'T' => Err(AttachError::Stopped { pid }),
            _ => Ok(()),
        }
    }
}

/// The state of process `pid` now.
pub fn read(pid: i32) -> Result<State, AttachError> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let text = std::fs::read(&path).map_err(|source| match source.kind() {
        ErrorKind::NotFound => AttachError::Gone { pid },
        _ if source.raw_os_error() == Some(libc::ESRCH) => AttachError::Gone { pid },
        _ => AttachError::Read { path: path.clone(), source },
    })?;
    let text = String::from_utf8_lossy(&text).into_owned();
    parse(&text).ok_or(AttachError::Unexpected { path, content: text })
}

fn parse(text: &str) -> Option<State> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim);
    Some(State {
        letter: value("State")?.chars().next()?,
        threads: value("Threads")?.parse().ok()?,
        tracer: value("TracerPid")?.parse().ok()?,
        // Absent from a kernel without seccomp.
        seccomp: value("Seccomp").is_some_and(|mode| mode != "0"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(letter: char, threads: u32, tracer: i32) -> Result<(), AttachError> {
        State { letter, threads, tracer, seccomp: false }.refuse(7)
    }

    #[test]
    fn a_status_is_read() {
        let text = "Name:\ta\nState:\tS (sleeping)\nTracerPid:\t12\nThreads:\t3\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        assert_eq!(parse(text), Some(State { letter: 'S', threads: 3, tracer: 12, seccomp: true }));
        assert_eq!(parse("Name:\ta\n"), None);
    }

    #[test]
    fn the_reason_is_named() {
        assert!(check('R', 1, 0).is_ok());
        assert!(matches!(check('S', 2, 9), Err(AttachError::Traced { pid: 7, tracer: 9 })));
        assert!(matches!(check('T', 2, 0), Err(AttachError::Stopped { pid: 7 })));
        assert!(matches!(check('Z', 2, 0), Err(AttachError::LeaderExited { pid: 7 })));
        assert!(matches!(check('Z', 1, 0), Err(AttachError::Gone { pid: 7 })));
    }

    #[test]
    fn a_process_that_is_not_there_is_gone() {
        assert!(matches!(read(i32::MAX), Err(AttachError::Gone { .. })));
    }
}
