//! Starting the application.
//!
//! The new process shares init's memory until it executes the program, as after vfork(2), and init waits for that. So there is
//! no copy of init to be made and thrown away while the application is down, none that would be charged to a container short of
//! memory, and whether the program could be executed is known when init goes on.

use crate::machine::SpawnFailure;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpid, getsid, setpgid, setsid, tcsetpgrp};
use std::ffi::{CString, NulError, OsString, c_char, c_int, c_void};
use std::io::{self, IsTerminal};
use std::iter;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::ptr;

/// Variables of init's own, which are no business of the application's.
const OURS: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Bytes of stack for what happens before the program is executed, besides the list that the C library makes of the arguments
/// where a file without a header is given to a shell. The most is its buffer for paths to search: 4 KiB.
const STACK: usize = 32 << 10;

/// What is started each time: the same, with the environment that init was given.
#[derive(Debug)]
pub(crate) struct Application {
    /// The program and its arguments.
    line: Vec<CString>,
    environment: Vec<CString>,
    /// The signal mask that init was given.
    mask: SigSet,
    /// Whether the end of init is the end of its PID namespace.
    init_is_pid_1: bool,
    /// Of the new process, until it executes the program.
    stack: Vec<u8>,
}

/// What the new process reads, and writes before it fails.
struct Start<'a> {
    line: &'a [*const c_char],
    environment: &'a [*const c_char],
    mask: &'a SigSet,
    has_terminal: bool,
    dies_with_init: bool,
    failure: Option<io::Error>,
}

impl Application {
    /// The program with its arguments; `notify` is NOTIFY_SOCKET, where messages are heard, and `watchdog_usec` WATCHDOG_USEC,
    /// microseconds, 0 for no watchdog. `mask` is the signal mask that init was given.
    ///
    /// # Errors
    /// For a word with a zero byte, which none has that an execve(2) has brought.
    pub(crate) fn new(
        line: impl Iterator<Item = OsString>,
        notify: Option<&Path>,
        watchdog_usec: u128,
        mask: SigSet,
        init_is_pid_1: bool,
    ) -> Result<Self, NulError> {
        let line = line.map(|word| CString::new(word.into_vec())).collect::<Result<Vec<_>, _>>()?;
        // What init itself was given by these names, if anything, is not passed on.
        let mut variables: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(name, _)| OURS.iter().all(|ours| name != ours)).collect();
        variables.extend(notify.map(|path| ("NOTIFY_SOCKET".into(), path.into())));
        variables.extend((watchdog_usec > 0).then(|| ("WATCHDOG_USEC".into(), watchdog_usec.to_string().into())));
        let environment = variables.into_iter().map(|(name, value)| {
            let parts = [name.into_vec(), value.into_vec()];
            CString::new(parts.join(&b'='))
        });
        let environment = environment.collect::<Result<Vec<_>, _>>()?;
        let stack = vec![0; STACK + size_of::<*const c_char>() * line.len()];
        Ok(Self { line, environment, mask, init_is_pid_1, stack })
    }

    /// The program, as it was named.
    pub(crate) fn program(&self) -> &CString {
        &self.line[0]
    }

    /// Starts it; returns its pid.
    pub(crate) fn spawn(&mut self) -> Result<i32, (SpawnFailure, io::Error)> {
        let (line, environment) = (pointers(&self.line), pointers(&self.environment));
        let mut start = Start {
            line: &line,
            environment: &environment,
            mask: &self.mask,
            has_terminal: has_terminal(),
            dies_with_init: !self.init_is_pid_1,
            failure: None,
        };
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        // Aligned as every architecture wants it. Stacks grow downwards.
        let top = self.stack.as_mut_ptr_range().end.map_addr(|end| end & !0xf);
        // SAFETY: `top` is the end of memory that nothing else uses, `start` is what `child` takes, and both outlive the new
        // process' use of them: with CLONE_VFORK this thread, the only one, goes on when that has executed the program or ended.
        let pid = unsafe { libc::clone(child, top.cast(), flags, (&raw mut start).cast()) };
        if pid < 0 {
            let error = io::Error::last_os_error();
            return Err((failure(&error), error));
        }
        if let Some(error) = start.failure {
            // SAFETY: a child of this process that has ended or is about to; no status is asked for.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
            return Err((failure(&error), error));
        }
        // Reaped like any other child, by number.
        Ok(pid)
    }
}

/// The new process. It returns only where it could not execute the program, and then ends.
extern "C" fn child(start: *mut c_void) -> c_int {
    // SAFETY: what `spawn` has passed, and it waits.
    let start = unsafe { &mut *start.cast::<Start<'_>>() };
    let error = match prepare(start) {
        Err(error) => error,
        Ok(()) => {
            // SAFETY: both are lists of C strings that end with a null, and the first has at least one string. Like a shell,
            // it searches PATH.
            unsafe { libc::execvpe(start.line[0], start.line.as_ptr(), start.environment.as_ptr()) };
            io::Error::last_os_error()
        }
    };
    start.failure = Some(error);
    1
}

/// What happens in the new process before the program is executed: system calls only, because the memory is init's.
fn prepare(start: &Start<'_>) -> io::Result<()> {
    if start.dies_with_init {
        // PID 1 takes everything with it; without it, a SIGKILL to init alone would leave the application unsupervised.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
    }
    if start.has_terminal {
        // The session stays init's. If the application led it, its end would hang up the terminal, for the next run too.
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        // Allowed from the background, because SIGTTOU is blocked as yet.
        tcsetpgrp(io::stdin(), getpid())?;
    } else {
        setsid()?;
    }
    // Rust's runtime ignores it in init. What a signal does is not shared, only memory is.
    // SAFETY: installs no handler.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    // Init's blocks everything. No handler of init's can do harm from here on: it has none but the runtime's for faults.
    start.mask.thread_set_mask()?;
    Ok(())
}

/// Whether standard input is the controlling terminal of init's session, which `tty: true` makes it.
fn has_terminal() -> bool {
    let input = io::stdin();
    input.is_terminal()
        && nix::unistd::tcgetpgrp(&input).is_ok()
        && getsid(None).is_ok_and(|session| session == getpid())
}

/// As execve(2) takes them: for as long as `words` are.
fn pointers(words: &[CString]) -> Vec<*const c_char> {
    words.iter().map(|word| word.as_ptr()).chain(iter::once(ptr::null())).collect()
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
