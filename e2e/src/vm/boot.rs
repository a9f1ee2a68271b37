//! Runs the machine and waits for its end.
//!
//! Owns the emulator's process: it never outlives the call.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{self, CommandError};
use crate::vm::report::Report;

/// A boot with all checks takes a few minutes on a machine that has nothing else to do.
const LIMIT: Duration = Duration::from_secs(1800);
/// How often the emulator is asked whether it has ended, and the console for news.
const PAUSE: Duration = Duration::from_millis(100);
/// Characters of the console that an error shows.
const TAIL: usize = 6000;
/// MiB. The initial files are in it too, and every file that the checks write.
const MEMORY: &str = "2048";

/// What a machine is made of.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// The kernel.
    pub kernel: &'a Path,
    /// Its initial files.
    pub ramdisk: &'a Path,
    /// Where its serial lines go: a directory that nobody else writes to.
    pub directory: &'a Path,
}

/// Why it did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The emulator could not be started.
    #[error(transparent)]
    Start(#[from] CommandError),
    /// The emulator could not be waited for.
    #[error("wait for the virtual machine")]
    Wait(#[source] io::Error),
    /// What it has written could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The emulator has failed.
    #[error("the virtual machine ended with {status}; it said last:\n{said}")]
    Failed {
        /// Exit code or signal.
        status: std::process::ExitStatus,
        /// The emulator's own messages and the end of the console.
        said: String,
    },
    /// It was ended after [`LIMIT`].
    #[error("the virtual machine did not end within {} s; it said last:\n{said}", LIMIT.as_secs())]
    Hung {
        /// The end of the console.
        said: String,
    },
}

/// Runs `machine` to its end. Each new last line of its console goes to `on_line`.
///
/// # Errors
/// Where it does not power off by itself in time. It is ended then.
pub fn run(machine: &Machine<'_>, mut on_line: impl FnMut(&str)) -> Result<Report, BootError> {
    let [console, report, messages] = ["console", "report", "messages"].map(|name| machine.directory.join(name));
    let file = fs::File::create(&messages).map_err(|source| BootError::Read { path: messages.clone(), source })?;
    let mut command = emulator(machine, &console, &report);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    let line = command::line_of(&command);
    let child = command.spawn().map_err(|source| CommandError::Start { line, source })?;
    let mut emulator = Emulator(child);
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = emulator.0.try_wait().map_err(BootError::Wait)? {
            break status;
        }
        let said = read(&console).unwrap_or_default();
        if begun.elapsed() > LIMIT {
            return Err(BootError::Hung { said: tail(&said).to_owned() });
        }
        on_line(said.lines().next_back().unwrap_or_default());
        std::thread::sleep(PAUSE);
    };
    if !status.success() {
        let said = [read(&messages)?, read(&console).unwrap_or_default()].concat();
        return Err(BootError::Failed { status, said: tail(&said).to_owned() });
    }
    Ok(Report::parse(&read(&report)?, read(&console)?))
}

/// Ended when dropped.
struct Emulator(Child);

impl Drop for Emulator {
    fn drop(&mut self) {
        // Both fail only where it has ended and was waited for.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn emulator(machine: &Machine<'_>, console: &Path, report: &Path) -> Command {
    let serial = |path: &Path| format!("file:{}", path.display());
    // Not even a SIGKILL to this process leaves it behind.
    let mut command = command::program("setpriv", ["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", MEMORY]);
    // The machine's time is counted by its instructions, and idle time is skipped. However busy the host is, the checks see the
    // same machine, and one that sleeps is not waited for.
    command.args(["-icount", "shift=1,sleep=off"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.arg("-serial").arg(serial(console)).arg("-serial").arg(serial(report));
    command.arg("-kernel").arg(machine.kernel).arg("-initrd").arg(machine.ramdisk);
    // A panic is a reboot, which with -no-reboot is the end.
    command.args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"]);
    command
}

fn read(path: &Path) -> Result<String, BootError> {
    let bytes = fs::read(path).map_err(|source| BootError::Read { path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of `said`.
pub fn tail(said: &str) -> &str {
    let from = said.len().saturating_sub(TAIL);
    let from = (from..=said.len()).find(|at| said.is_char_boundary(*at)).unwrap_or(said.len());
    said[from..].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_console_is_shown() {
        let said = format!("é{}\n", "ü".repeat(TAIL));
        assert_eq!(tail(&said), "ü".repeat(TAIL / 2 - 1));
        assert_eq!(tail("short\n"), "short");
    }
}
