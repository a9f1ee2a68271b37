//! Starting the application.

use crate::machine::SpawnFailure;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpid, getsid, setpgid, setsid, tcsetpgrp};
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// What is started each time: the same, with the environment that init was given.
#[derive(Debug)]
pub(crate) struct Application {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// NOTIFY_SOCKET, where messages are heard.
    pub(crate) notify: Option<PathBuf>,
    /// WATCHDOG_USEC, microseconds; 0 for no watchdog.
    pub(crate) watchdog_usec: u128,
    /// The signal mask that init was given.
    pub(crate) mask: SigSet,
    /// Whether the end of init is the end of its PID namespace.
    pub(crate) init_is_pid_1: bool,
}

impl Application {
    /// Starts it; returns its pid.
    pub(crate) fn spawn(&self) -> Result<i32, (SpawnFailure, io::Error)> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        // What init itself was given by these names, if anything, is no business of the application's.
        match &self.notify {
            Some(path) => command.env("NOTIFY_SOCKET", path),
            None => command.env_remove("NOTIFY_SOCKET"),
        };
        match self.watchdog_usec {
            0 => command.env_remove("WATCHDOG_USEC"),
            usec => command.env("WATCHDOG_USEC", usec.to_string()),
        };
        command.env_remove("WATCHDOG_PID");
        let has_terminal = has_terminal();
        let dies_with_init = !self.init_is_pid_1;
        let mask = self.mask;
        let prepare = move || prepare(has_terminal, dies_with_init, &mask);
        // SAFETY: init has one thread, so no lock can be held by another one at the fork; `prepare` makes system calls only.
        unsafe { command.pre_exec(prepare) };
        match command.spawn() {
            // Reaped like any other child, by number.
            Ok(child) => Ok(child.id().cast_signed()),
            Err(error) => Err((failure(&error), error)),
        }
    }
}

/// Whether standard input is the controlling terminal of init's session, which `tty: true` makes it.
fn has_terminal() -> bool {
    let input = io::stdin();
    input.is_terminal()
        && nix::unistd::tcgetpgrp(&input).is_ok()
        && getsid(None).is_ok_and(|session| session == getpid())
}

/// What happens in the new process before the program is executed.
fn prepare(has_terminal: bool, dies_with_init: bool, mask: &SigSet) -> io::Result<()> {
    if dies_with_init {
        // PID 1 takes everything with it; without it, a SIGKILL to init alone would leave the application unsupervised.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
    }
    if has_terminal {
        // The session stays init's. If the application led it, its end would hang up the terminal, for the next run too.
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // Allowed from the background, because SIGTTOU is blocked as yet.
        tcsetpgrp(io::stdin(), getpid())?;
    } else {
        setsid()?;
    }
    // The library hands the mask of init on, and that blocks everything.
    mask.thread_set_mask()?;
    Ok(())
}

fn failure(error: &io::Error) -> SpawnFailure {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EINTR | libc::ETXTBSY) => {
            SpawnFailure::NoRoom
        }
        Some(libc::ENOENT) => SpawnFailure::NotExecutable { code: 127 },
        _ => SpawnFailure::NotExecutable { code: 126 },
    }
}
