//! Processes that are told apart from later ones with the same number.
//!
//! Owns the pair of process id and start time, and signals through pidfds. Never signals a process whose start time
//! differs from the recorded one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::write_atomic;

/// One process, for as long as the host runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The number on the host.
    pub pid: i32,
    /// Start time in clock ticks since boot, field 22 of proc_pid_stat(5).
    pub started: u64,
}

/// What could not be done with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Its record could not be read.
    #[error("read the process record {path}")]
    ReadRecord {
        /// The record.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Its record could not be understood.
    #[error("understand the process record {path}")]
    ParseRecord {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It could not be signalled.
    #[error("signal process {pid}")]
    Signal {
        /// The number on the host.
        pid: i32,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// It did not end in time.
    #[error("process {pid} did not end within {} s", timeout.as_secs())]
    StillThere {
        /// The number on the host.
        pid: i32,
        /// How long it was given.
        timeout: Duration,
    },
}

impl ProcessId {
    /// The process that now has the number `pid`, if any.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = read_stat(pid)?;
        Some(Self { pid, started: stat.started })
    }

    /// Reads a record; `None` when there is none.
    ///
    /// # Errors
    /// When it is there but cannot be read.
    pub fn load(path: &Path) -> Result<Option<Self>, ProcessError> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| ProcessError::ParseRecord { path: path.to_owned(), source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ProcessError::ReadRecord { path: path.to_owned(), source }),
        }
    }

    /// Writes a record.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn store(&self, path: &Path) -> io::Result<()> {
        write_atomic::json(path, self)
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(&self) -> bool {
        read_stat(self.pid).is_some_and(|stat| stat.started == self.started && !matches!(stat.state, 'Z' | 'X'))
    }

    /// Sends `signal`; `Ok(false)` when the process is no more.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn signal(&self, signal: Signal) -> Result<bool, ProcessError> {
        let failed = |errno: rustix::io::Errno| ProcessError::Signal { pid: self.pid, source: errno.into() };
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(false) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(false),
            Err(errno) => return Err(failed(errno)),
        };
        // Asked after the pidfd is open: from here on the number cannot pass to another process unseen.
        if !self.is_alive() {
            return Ok(false);
        }
        match pidfd_send_signal(fd, signal) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::SRCH) => Ok(false),
            Err(errno) => Err(failed(errno)),
        }
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// [`ProcessError::StillThere`] after `timeout`.
    pub fn wait(&self, timeout: Duration) -> Result<(), ProcessError> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
        if !self.is_alive() {
            return Ok(());
        }
        let limit = Timespec { tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: 0 };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)) {
            Ok(0) => Err(ProcessError::StillThere { pid: self.pid, timeout }),
            Ok(_) => Ok(()),
            Err(errno) => Err(ProcessError::Signal { pid: self.pid, source: errno.into() }),
        }
    }
}

struct Stat {
    state: char,
    started: u64,
}

fn read_stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is a program's name in parentheses and may itself hold blanks and parentheses.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    Some(Stat { state: fields.next()?.chars().next()?, started: fields.nth(18)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_hostile_program_name() {
        let stat = parse_stat("7 (a) b (c)) S 1 7 7 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 4711 99 1").unwrap();
        assert_eq!((stat.state, stat.started), ('S', 4711));
    }

    #[test]
    fn a_recycled_number_is_not_signalled() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let real = ProcessId::of(child.id().cast_signed()).unwrap();
        let earlier = ProcessId { started: real.started - 1, ..real };
        assert!(!earlier.signal(Signal::KILL).unwrap());
        assert!(real.is_alive());
        assert!(real.signal(Signal::KILL).unwrap());
        child.wait().unwrap();
        assert!(!real.is_alive());
        assert!(!real.signal(Signal::KILL).unwrap());
    }

    #[test]
    fn a_zombie_counts_as_ended() {
        let mut child = Command::new("true").spawn().unwrap();
        let id = ProcessId { pid: child.id().cast_signed(), started: 0 };
        let id = ProcessId::of(id.pid).unwrap_or(id);
        id.wait(Duration::from_secs(10)).unwrap();
        assert!(!id.is_alive());
        child.wait().unwrap();
    }
}
