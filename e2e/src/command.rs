//! Runs programs of the host and keeps what they said when they fail.
//!
//! Owns the shape of such failures. Never decides what to run and never retries.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program could not be started: not found, not executable.
    #[error("start `{line}`")]
    Start {
        /// The command line, as a person would type it.
        line: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The program ran and reported failure.
    #[error("`{line}` ended with {status}: {stderr}")]
    Failed {
        /// The command line, as a person would type it.
        line: String,
        /// Exit code or signal.
        status: ExitStatus,
        /// The end of what it wrote to standard error (or output), at most [`KEPT_OUTPUT`] bytes.
        stderr: String,
    },
    /// What a long-running program said could not be kept.
    #[error("keep the messages of `{line}` in {path}")]
    Log {
        /// The command line, as a person would type it.
        line: String,
        /// The log.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// Bytes of a failed program's messages that are kept in the error; a compiler's whole output helps nobody.
pub const KEPT_OUTPUT: usize = 4096;

/// Runs `command` to its end with its output captured.
///
/// # Errors
/// When it cannot be started or ends with anything but success.
pub fn run(command: &mut Command) -> Result<Output, CommandError> {
    let output = command.output().map_err(|source| CommandError::Start { line: line_of(command), source })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Err(CommandError::Failed { line: line_of(command), status: output.status, stderr: tail(said) })
}

/// Runs a long `command`: everything it says goes to the file `log`, each line to `on_line` as it appears.
///
/// # Errors
/// As [`run`], and when the log cannot be written.
pub fn run_logged(command: &mut Command, log: &Path, mut on_line: impl FnMut(&str)) -> Result<(), CommandError> {
    let line = line_of(command);
    let keep = |source| CommandError::Log { line: line.clone(), path: log.to_owned(), source };
    let mut file = File::create(log).map_err(keep)?;
    let (reader, writer) = io::pipe().map_err(keep)?;
    let both = writer.try_clone().map_err(keep)?;
    let started = command.stdin(Stdio::null()).stdout(both).stderr(writer).spawn();
    // The command holds our ends of the pipe; without this the reader would never see its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = started.map_err(|source| CommandError::Start { line: line.clone(), source })?;
    let mut said = Vec::new();
    let mut reader = BufReader::new(reader);
    let mut current = Vec::new();
    while reader.read_until(b'\n', &mut current).map_err(keep)? > 0 {
        file.write_all(&current).map_err(keep)?;
        on_line(String::from_utf8_lossy(&current).trim());
        said.extend_from_slice(&current);
        said.drain(..said.len().saturating_sub(KEPT_OUTPUT));
        current.clear();
    }
    let status = child.wait().map_err(keep)?;
    if status.success() { Ok(()) } else { Err(CommandError::Failed { line, status, stderr: tail(&said) }) }
}

/// Runs `command` and returns its standard output as text without surrounding white space.
///
/// # Errors
/// As [`run`].
pub fn read(command: &mut Command) -> Result<String, CommandError> {
    Ok(String::from_utf8_lossy(&run(command)?.stdout).trim().to_owned())
}

/// A `Command` for `program` with `args`, so that call sites stay on one line.
pub fn program<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// The command line as a person would type it, for messages.
pub fn line_of(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

fn tail(said: &[u8]) -> String {
    let start = said.len().saturating_sub(KEPT_OUTPUT);
    String::from_utf8_lossy(&said[start..]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_the_line_and_what_was_said() {
        let error = run(&mut program("sh", ["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("sh -c"), "{text}");
        assert!(text.contains("broken"), "{text}");
    }

    #[test]
    fn a_missing_program_is_told_apart_from_a_failed_one() {
        let error = run(&mut program("/nonexistent/program", [""; 0])).unwrap_err();
        assert!(matches!(error, CommandError::Start { .. }));
    }

    #[test]
    fn a_long_program_s_lines_are_seen_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut seen = Vec::new();
        run_logged(&mut program("sh", ["-c", "echo one; echo two >&2"]), &log, |line| seen.push(line.to_owned()))
            .unwrap();
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn only_the_end_of_long_messages_is_kept() {
        assert_eq!(tail(&vec![b'x'; KEPT_OUTPUT * 2]).len(), KEPT_OUTPUT);
    }
}
