//! The real runtime behind the shim.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use thiserror::Error;

/// Runtimes that will do, the preferred one first.
const NAMES: [&str; 2] = ["runc", "crun"];

/// Where to look when PATH is not set.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// There is no runtime to stand in front of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("neither runc nor crun is on PATH")]
pub(super) struct NoRuntime;

/// The real runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Runtime {
    program: PathBuf,
}

impl Runtime {
    /// The first runc on PATH, or the first crun where there is no runc.
    pub(super) fn find(path: Option<&OsStr>) -> Result<Self, NoRuntime> {
        let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
        NAMES
            .iter()
            .find_map(|name| {
                std::env::split_paths(path).map(|directory| directory.join(name)).find(|at| is_program(at))
            })
            .map(|program| Self { program })
            .ok_or(NoRuntime)
    }

    /// Becomes the runtime. Returns only if that fails.
    pub(super) fn become_it(&self, arguments: &[OsString]) -> std::io::Error {
        Command::new(&self.program).args(arguments).exec()
    }

    /// The runtime as a child that has this process' standard input and output.
    pub(super) fn command(&self, arguments: &[OsString]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command
    }
}

/// The exit code that passes an exit on: the code itself, or 128 + the number of the signal.
pub(super) fn exit_code(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1)
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(directory: &Path, name: &str, mode: u32) {
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(directory.join(name), "").unwrap();
        std::fs::set_permissions(directory.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn runc_is_preferred_and_must_be_executable() {
        let root = tempfile::tempdir().unwrap();
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        program(&a, "runc", 0o644);
        program(&a, "crun", 0o755);
        program(&b, "runc", 0o755);
        let path = std::env::join_paths([&a, &b]).unwrap();
        assert_eq!(Runtime::find(Some(&path)).unwrap().program, b.join("runc"));
        assert_eq!(Runtime::find(Some(a.as_os_str())).unwrap().program, a.join("crun"));
        assert_eq!(Runtime::find(Some(OsStr::new("/nowhere"))), Err(NoRuntime));
    }

    #[test]
    fn a_signal_shows_in_the_exit_code() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
