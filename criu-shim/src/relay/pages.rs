//! Starting the daemon that brings memory after the restore.
//!
//! It is the relay's child, so that it lives where the relay does: outside of the agent's container and of the one that
//! is restored. It outlives the relay.

use crate::local::{AHEAD_ENV, BUNDLE_ENV, INSTALL_ROOT, PagesAt, TOKEN_ENV};
use crate::pages::daemon::Status;
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long it may take until it listens. It takes milliseconds.
const LISTENS_WITHIN: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK: Duration = Duration::from_micros(500);

/// Why nobody will bring the memory.
#[derive(Debug, Error)]
pub(super) enum PagesError {
    #[error("open the page daemon's log {path:?}")]
    Log {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("start the page daemon {program:?}")]
    Start {
        program: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("tie the page daemon to this restore")]
    Tie(#[source] std::io::Error),
    #[error("read or remove the page daemon's status")]
    Status(#[source] std::io::Error),
    #[error("the page daemon failed: {0}")]
    Failed(String),
    #[error("the page daemon ended with {0}")]
    Ended(ExitStatus),
    #[error("the page daemon did not listen within {} s", LISTENS_WITHIN.as_secs())]
    Silent,
}

/// A daemon that listens. Dropped before CRIU has come to it, by the end of this process if nothing else, it ends.
#[derive(Debug)]
pub(super) struct PageDaemon {
    tie: File,
}

impl PageDaemon {
    /// Starts it on the stores in `at` and waits until it listens. It may be long before they are complete.
    pub(super) fn start(at: &PagesAt) -> Result<Self, PagesError> {
        let program = Path::new(INSTALL_ROOT).join("bin/criu-pages");
        let path = at.work.join("pages.log");
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let log: File = log.map_err(|source| PagesError::Log { path, source })?;
        // What a daemon of an earlier try has said is not about this one.
        Status::forget(&at.work).map_err(PagesError::Status)?;
        let mut command = Command::new(&program);
        command.arg("--store").arg(&at.store).arg("--work").arg(&at.work);
        // By these the agent knows what belongs to a restore that is under way.
        command.env_remove(TOKEN_ENV).env_remove(BUNDLE_ENV).env_remove(AHEAD_ENV);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| PagesError::Tie(errno.into()))?;
        command.stdin(reader).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().map_err(|source| PagesError::Start { program, source })?;
        let begun = Instant::now();
        while !listens(&mut child, &at.work)? {
            if begun.elapsed() > LISTENS_WITHIN {
                return Err(PagesError::Silent);
            }
            std::thread::sleep(LOOK);
        }
        Ok(Self { tie: File::from(writer) })
    }

    /// Tells it whom it serves, before CRIU comes to it.
    pub(super) fn serve(&mut self, pids: &[i32]) -> Result<(), PagesError> {
        let line: Vec<String> = pids.iter().map(i32::to_string).collect();
        self.tie.write_all(format!("{}\n", line.join(" ")).as_bytes()).map_err(PagesError::Tie)
    }
}

fn listens(child: &mut Child, work: &Path) -> Result<bool, PagesError> {
    match Status::read(work).map_err(PagesError::Status)? {
        Some(Status::Failed(sentence)) => return Err(PagesError::Failed(sentence)),
        Some(_) => return Ok(true),
        None => {}
    }
    // Before it is there, a daemon that has ended can't say why.
    match child.try_wait() {
        Ok(Some(status)) => Err(PagesError::Ended(status)),
        Ok(None) => Ok(false),
        Err(error) => Err(PagesError::Status(error)),
    }
}
