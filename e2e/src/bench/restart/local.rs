//! Restarts by supervisors on this machine, without a cluster.
//!
//! Each supervisor is the first process of a PID namespace with a /proc of its own, as in a container, and has all its files in
//! memory, as those under /run are. One runs at a time.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::packages::Packages;
use super::stamps::Stamps;
use super::{LIFE, environment};
use crate::command::program;
use crate::scenario::until;

/// A file system in memory.
const MEMORY: &str = "/dev/shm";
/// Descriptor that s6-supervise listens on until the service is ready. One that was never ready is always started a second late.
const READY_DESCRIPTOR: &str = "3";
/// How long a supervisor may take for its restarts beyond the runs between them.
const LIMIT: Duration = Duration::from_secs(30);

/// Who restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervisor {
    /// `tideover-init` with `delay: 0` and no start limit.
    Tideover,
    /// Debian's s6-supervise.
    S6,
    /// Debian's runsv.
    Runit,
    /// The crasher's own loop of fork, exec and wait: the least that can restart anything.
    Floor,
}

/// What is needed to run them.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The directory of `tideover-init` and `crasher`, static as in the images.
    pub own: PathBuf,
    /// s6 and runit.
    pub packages: Packages,
}

impl Supervisor {
    /// All of them, in the order in which they take turns.
    pub const ALL: [Self; 4] = [Self::Tideover, Self::S6, Self::Runit, Self::Floor];

    /// The case of its figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tideover => "tideover",
            Self::S6 => "s6",
            Self::Runit => "runit",
            Self::Floor => "floor",
        }
    }

    /// Starts the crasher under it, has it crash `crashes` times, and returns how long each restart took, milliseconds.
    ///
    /// # Errors
    /// When the supervisor does not start it again each time.
    pub fn restarts(self, programs: &Programs, crashes: usize) -> Result<Vec<f64>> {
        let home = tempfile::tempdir_in(MEMORY).context("make a directory in memory")?;
        let stamps = home.path().join("stamps");
        let line = self.line(programs, home.path())?;
        let mut command = program("unshare", ["--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.args(line).envs(environment(&stamps, crashes)).env("LD_LIBRARY_PATH", programs.packages.libraries());
        if self == Self::S6 {
            command.env("RESTART_READY", format!("/proc/self/fd/{READY_DESCRIPTOR}"));
        }
        let mut running = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("start unshare")?);
        let all = until(format!("{crashes} restarts by {}", self.name()), LIFE * crashes as u32 + LIMIT, || {
            if let Some(status) = running.0.try_wait()? {
                bail!("{} has ended with {status}", self.name());
            }
            Ok(Some(Stamps::read(&stamps)?).filter(|stamps| stamps.starts.len() > crashes))
        })?;
        all.restarts()
    }

    /// The supervisor and its arguments, with whatever it needs in `home`.
    fn line(self, programs: &Programs, home: &Path) -> Result<Vec<PathBuf>> {
        let crasher = programs.own.join("crasher");
        match self {
            Self::Tideover => {
                let config = home.join("config.json");
                let rules = json!({"policy": "Always", "delay": 0, "startLimit": {"interval": 0}});
                let document = json!({"version": 1, "directory": home, "restart": rules});
                fs::write(&config, document.to_string()).context("write the configuration of init")?;
                Ok(vec![programs.own.join("tideover-init"), config, crasher])
            }
            Self::S6 => {
                let service = service(home, &crasher)?;
                fs::write(service.join("notification-fd"), READY_DESCRIPTOR).context("set up readiness")?;
                Ok(vec![programs.packages.program("s6-supervise"), service])
            }
            Self::Runit => Ok(vec![programs.packages.program("runsv"), service(home, &crasher)?]),
            Self::Floor => Ok(vec![crasher.clone(), "--floor".into(), crasher]),
        }
    }
}

/// A service directory of s6 or runit, whose program is the crasher itself: a script would be one more program to execute.
fn service(home: &Path, crasher: &Path) -> Result<PathBuf> {
    let directory = home.join("service");
    fs::create_dir(&directory).context("make a service directory")?;
    symlink(crasher, directory.join("run")).context("name the service's program")?;
    Ok(directory)
}

/// A supervisor at work. With its PID namespace everything ends that it has started.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("a supervisor is left: {error}");
        }
    }
}
