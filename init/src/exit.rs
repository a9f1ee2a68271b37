//! How a run of the application ended, and what kind of end that is.

use crate::config::Settings;
use serde::{Deserialize, Serialize};

/// What the kernel says of a process that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It called exit(2) with this code.
    Code(u8),
    /// This signal ended it.
    Signal {
        /// Number of the signal.
        number: i32,
        /// Whether the kernel calls it a core dump, written or not.
        core: bool,
    },
    /// A main process that another process than init has reaped: nobody tells init. Counts as clean, as with systemd.
    Unknown,
}

impl Exit {
    /// Decodes a status of waitpid(2); `None` for one that is no end (stopped, continued).
    pub fn of_wait(status: i32) -> Option<Self> {
        if libc::WIFEXITED(status) {
            // Eight bits are all that the kernel keeps.
            return Some(Self::Code((libc::WEXITSTATUS(status) & 0xff) as u8));
        }
        libc::WIFSIGNALED(status)
            .then(|| Self::Signal { number: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) })
    }

    /// The status with which init itself ends, so that kubelet sees the application's.
    ///
    /// PID 1 can't die of a signal it sends itself. It need not: containerd reports a container whose process died of
    /// signal S as exit code 128 + S, and that is what init exits with. Source: containerd/go-runc `ExitStatus`,
    /// `exitSignalOffset`.
    pub fn container_status(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal { number, .. } => u8::try_from(128 + number).unwrap_or(u8::MAX),
            Self::Unknown => 0,
        }
    }
}

/// Why a run ended, in the terms of systemd.service(5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Cause {
    /// Exit code 0, SIGHUP, SIGINT, SIGTERM, SIGPIPE, or what `successExitStatus` lists.
    Clean,
    /// Any other exit code.
    UncleanExitCode,
    /// Any other signal, and every core dump.
    UncleanSignal,
    /// It did not start, reload or stop in time, or ran longer than `runtimeMax`.
    Timeout,
    /// It did not answer the watchdog, or triggered it.
    Watchdog,
    /// The kernel killed it for want of memory.
    OomKill,
    /// With `type: Notify`: it ended cleanly before it said READY=1. systemd's result `protocol`.
    Protocol,
}

/// What kind of end `exit` is by itself. `oom_killed` says that the kernel's count of OOM kills in the container's cgroup
/// went up during the run.
pub fn cause_of(exit: Exit, oom_killed: bool, settings: &Settings) -> Cause {
    let listed = settings.success_exit_status.contains(exit);
    match exit {
        Exit::Signal { number: libc::SIGKILL, .. } if oom_killed => Cause::OomKill,
        Exit::Code(0) | Exit::Unknown => Cause::Clean,
        Exit::Code(_) if listed => Cause::Clean,
        Exit::Code(_) => Cause::UncleanExitCode,
        // A core dump is never clean, whatever the list says: systemd's `is_clean_exit` looks at CLD_KILLED only.
        Exit::Signal { core: true, .. } => Cause::UncleanSignal,
        Exit::Signal { number: libc::SIGHUP | libc::SIGINT | libc::SIGTERM | libc::SIGPIPE, .. } => Cause::Clean,
        Exit::Signal { .. } if listed => Cause::Clean,
        Exit::Signal { .. } => Cause::UncleanSignal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExitStatus;

    fn signal(number: i32) -> Exit {
        Exit::Signal { number, core: false }
    }

    #[test]
    fn clean_is_what_systemd_calls_clean() {
        let settings = Settings::default();
        for exit in [Exit::Code(0), signal(1), signal(2), signal(15), signal(13), Exit::Unknown] {
            assert_eq!(cause_of(exit, false, &settings), Cause::Clean, "{exit:?}");
        }
        for exit in [signal(9), signal(3), signal(11), signal(34), Exit::Signal { number: 15, core: true }] {
            assert_eq!(cause_of(exit, false, &settings), Cause::UncleanSignal, "{exit:?}");
        }
        assert_eq!(cause_of(Exit::Code(143), false, &settings), Cause::UncleanExitCode);
    }

    #[test]
    fn the_list_makes_codes_and_signals_clean_but_no_core_dump() {
        let success_exit_status = [ExitStatus::Code(143), ExitStatus::Signal(10)].into_iter().collect();
        let settings = Settings { success_exit_status, ..Settings::default() };
        assert_eq!(cause_of(Exit::Code(143), false, &settings), Cause::Clean);
        assert_eq!(cause_of(signal(10), false, &settings), Cause::Clean);
        assert_eq!(cause_of(Exit::Signal { number: 10, core: true }, false, &settings), Cause::UncleanSignal);
        assert_eq!(cause_of(Exit::Code(10), false, &settings), Cause::UncleanExitCode);
    }

    #[test]
    fn only_a_sigkill_can_be_an_oom_kill() {
        let settings = Settings::default();
        assert_eq!(cause_of(signal(9), true, &settings), Cause::OomKill);
        assert_eq!(cause_of(signal(11), true, &settings), Cause::UncleanSignal);
        assert_eq!(cause_of(Exit::Code(0), true, &settings), Cause::Clean);
    }

    #[test]
    fn the_containers_status_is_what_containerd_would_have_reported() {
        assert_eq!(Exit::Code(42).container_status(), 42);
        assert_eq!(signal(9).container_status(), 137);
        assert_eq!(Exit::Signal { number: 11, core: true }.container_status(), 139);
        assert_eq!(signal(64).container_status(), 192);
    }
}
