//! Keeps the agent running: the container's first process, which starts the agent and starts it again when it is killed.
//!
//! A pod may be frozen when an agent dies, and kubelet lets a container that died lately wait for ten seconds and more. An
//! agent that ends by itself is not started again here: it had a reason, which kubelet should see.

use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;
use thiserror::Error;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tracing::{info, warn};

/// An agent that lived shorter than this is started again after [`PAUSE`] only.
const SHORT_LIFE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_secs(1);

/// Why the agent is not kept running.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// Signals.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
    /// The agent can't be started.
    #[error("start the agent")]
    Start(#[source] std::io::Error),
    /// It can't be waited for.
    #[error("wait for the agent")]
    Wait(#[source] std::io::Error),
    /// It ended by itself.
    #[error("the agent ended with {0}")]
    Ended(ExitStatus),
    /// The tie between keeper and agent can't be made.
    #[error("tie the agent's life to its keeper's")]
    Tie(#[source] rustix::io::Errno),
    /// The keeper was gone before the tie was made.
    #[error("the agent's keeper is gone")]
    Orphan,
}

/// Runs this program with `arguments`, again whenever it is killed, until it ends by itself or this process is told to end.
///
/// # Errors
/// [`KeeperError::Ended`] with whatever it ended with, other than success.
pub async fn keep(arguments: &[&str]) -> Result<(), KeeperError> {
    name("agent-keeper");
    let mut terminate = signal(SignalKind::terminate()).map_err(KeeperError::Signals)?;
    loop {
        let started = Instant::now();
        let mut agent = Command::new("/proc/self/exe")
            .args(std::env::args_os().skip(1))
            .args(arguments)
            .spawn()
            .map_err(KeeperError::Start)?;
        let ended = tokio::select! {
            ended = agent.wait() => ended.map_err(KeeperError::Wait)?,
            _ = terminate.recv() => {
                tell_to_end(&agent);
                let ended = agent.wait().await.map_err(KeeperError::Wait)?;
                info!(%ended, "told to end");
                return Ok(());
            }
        };
        match ended.signal() {
            Some(signal) => warn!(signal, "the agent was killed, starting it again"),
            None if ended.success() => return Ok(()),
            None => return Err(KeeperError::Ended(ended)),
        }
        if started.elapsed() < SHORT_LIFE {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn tell_to_end(agent: &Child) {
    let pid = agent.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // An agent that has ended meanwhile needs no telling.
    pid.map(|pid| kill_process(pid, Signal::TERM).ok());
}

/// Called by the agent first of all: it ends when its keeper does, so that there are never two of them.
///
/// # Errors
/// Where the tie can't be made, or would be too late.
pub fn tie() -> Result<(), KeeperError> {
    name("tideover-agent");
    let keeper = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(KeeperError::Tie)?;
    if getppid() == keeper { Ok(()) } else { Err(KeeperError::Orphan) }
}

/// Names this process for `ps`; the name of the program it was started by is `exe`.
fn name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name)
        && let Err(error) = rustix::thread::set_name(&name)
    {
        warn!(%error, "naming this process");
    }
}
