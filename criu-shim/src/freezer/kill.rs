//! The processes of a cgroup: listing them, and ending them for good.

use super::{Freezer, FreezerError};
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

impl Freezer {
    /// Ids of all processes in the cgroup and below it, as the caller's PID namespace names them.
    ///
    /// # Errors
    /// [`FreezerError::ForeignProcess`] if one has no id there.
    pub fn pids(&self) -> Result<Vec<i32>, FreezerError> {
        let mut pids = Vec::new();
        collect(&self.directory, &mut pids)?;
        Ok(pids)
    }

    /// Ends everything in the cgroup. The point of no return for a source: call it only after the commit was read.
    ///
    /// Each process gets SIGKILL while it is frozen and the thaw comes after, so that not one instruction of theirs
    /// runs between. After success the cgroup is empty or gone.
    ///
    /// # Errors
    /// [`FreezerError::Survivors`] when `limit` has passed; to call it again is right.
    pub fn kill_all(&self, limit: Duration) -> Result<(), FreezerError> {
        let begin = Instant::now();
        loop {
            let pids = self.pids_or_gone()?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in &pids {
                kill(*pid)?;
            }
            match self.thaw(limit.saturating_sub(begin.elapsed())) {
                Ok(()) => {}
                Err(FreezerError::Gone { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
            if begin.elapsed() >= limit {
                return Err(FreezerError::Survivors { path: self.path_in_node.clone(), left: pids.len(), limit });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn pids_or_gone(&self) -> Result<Vec<i32>, FreezerError> {
        match self.pids() {
            Err(FreezerError::Gone { .. }) => Ok(Vec::new()),
            other => other,
        }
    }
}

fn collect(directory: &Path, pids: &mut Vec<i32>) -> Result<(), FreezerError> {
    let path = directory.join("cgroup.procs");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
            return Err(FreezerError::Gone { path: directory.to_owned() });
        }
        Err(source) => return Err(FreezerError::Read { path, source }),
    };
    for line in text.lines() {
        match line.parse() {
            // The kernel shows 0 for a process without an id here; kill(0) would mean our own process group.
            Ok(0) => return Err(FreezerError::ForeignProcess { path: directory.to_owned() }),
            Ok(pid) => pids.push(pid),
            Err(_) => return Err(FreezerError::Unexpected { path, content: line.to_owned() }),
        }
    }
    let entries =
        std::fs::read_dir(directory).map_err(|source| FreezerError::Read { path: directory.into(), source })?;
    for entry in entries {
        let entry = entry.map_err(|source| FreezerError::Read { path: directory.into(), source })?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match collect(&entry.path(), pids) {
                Ok(()) | Err(FreezerError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn kill(pid: i32) -> Result<(), FreezerError> {
    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    // Init of the caller's namespace is never a container's process.
    if pid <= 1 {
        return Err(FreezerError::Kill { pid, source: ErrorKind::InvalidInput.into() });
    }
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(FreezerError::Kill { pid, source: errno.into() }),
    }
}
