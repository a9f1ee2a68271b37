//! Removes a lab and everything it left on the host.
//!
//! Owns the order: processes first, then what only they held. Works without the lab's description too, from its name
//! alone, so that the remains of a killed `up` go as well. Ends only processes of the lab: recorded ones by number and
//! start time, others because they are in the lab's own cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::index::{self, IndexError};
use crate::lab::{Lab, LabError, Stored};
use crate::layout::{self, Layout};
use crate::lock::{Lock, LockError};
use crate::machine::cgroup::{self, CgroupError};
use crate::network::{self, NetworkError};
use crate::process::ProcessError;
use crate::progress::Progress;
use crate::topology::{LabName, cgroup_of};

const PATIENCE: Duration = Duration::from_secs(20);

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// Another command is at work.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A process cannot be ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A cgroup stays.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Part of the network stays.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The number cannot be given back.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Files stay.
    #[error("remove {path}")]
    Remove {
        /// The directory or file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// Removes the lab called `name`; returns whether there was anything of it.
///
/// # Errors
/// Names what stays; calling again goes on from there.
pub fn down(name: &LabName, progress: &Progress) -> Result<bool, DownError> {
    let layout = Layout::new(name);
    let lock = Lock::try_acquire(&layout.lock())?;
    // A description that cannot be read is as good as none: everything is also found by the lab's name.
    let stored: Result<Option<Stored>, LabError> = Lab::stored(&layout);
    let topology = stored.ok().flatten().map(|stored| stored.topology);
    let existed = topology.is_some() || layout.run().exists() || !network::namespaces_of(name)?.is_empty();

    let step = progress.step("processes");
    end_processes(name)?;
    step.done();
    let step = progress.step("network");
    network::remove(name, topology.as_ref())?;
    step.done();
    let step = progress.step("disks");
    for directory in [layout.run(), layout.data()] {
        remove_directory(directory)?;
    }
    index::update(|index| {
        index.release(name);
        Ok(())
    })?;
    step.done();
    lock.remove()?;
    leave_no_root()?;
    Ok(existed)
}

/// Ends every process in the lab's cgroup, and removes that. Killing in rounds: a process may start another until it
/// is dead itself.
fn end_processes(name: &LabName) -> Result<(), DownError> {
    let (hierarchies, directory) = (cgroup::hierarchies()?, PathBuf::from(cgroup_of(name)));
    for _ in 0..10 {
        let members = cgroup::members(&hierarchies, &directory);
        if members.is_empty() {
            break;
        }
        for process in &members {
            process.signal(Signal::KILL)?;
        }
        cgroup::thaw(&hierarchies, &directory);
        for process in &members {
            process.wait(PATIENCE)?;
        }
    }
    Ok(cgroup::remove(&hierarchies, &directory, PATIENCE)?)
}

fn remove_directory(path: &Path) -> Result<(), DownError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DownError::Remove { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// After the last lab nothing of any lab remains, not even the directories.
fn leave_no_root() -> Result<(), DownError> {
    let index = Lock::acquire(&layout::index_lock())?;
    if index::load()?.names().next().is_some() {
        return Ok(());
    }
    index.remove()?;
    for root in [layout::RUN_ROOT, layout::DATA_ROOT] {
        match fs::remove_dir(root) {
            // Not empty: another lab is being made right now.
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                return Err(DownError::Remove { path: root.into(), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}
