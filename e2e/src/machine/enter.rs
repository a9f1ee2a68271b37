//! Runs a program inside a machine.
//!
//! Owns the order of joining: cgroups first, then all namespaces of the machine's first process at once, then a child,
//! because only a child is in the new pid namespace.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use nix::sched::{CloneFlags, setns};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::machine::cgroup::{self, CgroupError};
use crate::machine::init;
use crate::machine::spec::MachineSpec;
use crate::process::{ProcessError, ProcessId};

/// Why a program was not run.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The machine's record is unreadable.
    #[error(transparent)]
    Record(#[from] ProcessError),
    /// The machine is down.
    #[error("the machine is not running: start it with `lab node start`")]
    Down,
    /// The machine's description could not be read.
    #[error("read the machine's description {path}")]
    Spec {
        /// The description.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The machine's cgroups could not be joined.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A namespace could not be entered.
    #[error("enter the machine's namespaces")]
    Namespaces(#[source] io::Error),
    /// The program could not be started.
    #[error("start {program:?} in the machine")]
    Start {
        /// The program.
        program: OsString,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// Runs `program` with `arguments` in the machine with this `record` and `spec`, on our own standard streams, and
/// returns the exit code a shell would show.
///
/// This process moves into the machine and must have a single thread.
///
/// # Errors
/// Names the step.
pub fn enter(record: &Path, spec: &Path, program: &OsString, arguments: &[OsString]) -> Result<u8, EnterError> {
    let first = ProcessId::load(record)?.filter(ProcessId::is_alive).ok_or(EnterError::Down)?;
    let spec = read_spec(spec)?;
    let pid = Pid::from_raw(first.pid).ok_or(EnterError::Down)?;
    let namespaces = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| EnterError::Namespaces(errno.into()))?;
    cgroup::join(&spec.cgroups.hierarchies, &spec.cgroups.directory)?;
    let all = CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    setns(namespaces, all).map_err(|errno| EnterError::Namespaces(errno.into()))?;
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", init::PATH)
        .env("HOME", "/root")
        .env("TERM", std::env::var_os("TERM").unwrap_or_else(|| "dumb".into()))
        .current_dir("/")
        .spawn()
        .map_err(|source| EnterError::Start { program: program.clone(), source })?;
    let status = child.wait().map_err(|source| EnterError::Start { program: program.clone(), source })?;
    Ok(shell_code(status))
}

fn read_spec(path: &Path) -> Result<MachineSpec, EnterError> {
    let failed = |source| EnterError::Spec { path: path.to_owned(), source };
    let bytes = fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
}

/// 128 and the signal's number for a killed program, as shells do.
fn shell_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_program_shows_as_in_a_shell() {
        assert_eq!(shell_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(shell_code(ExitStatus::from_raw(3 << 8)), 3);
    }
}
