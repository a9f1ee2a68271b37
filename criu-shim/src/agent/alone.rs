//! One agent at a time on a node.
//!
//! Two pods of the DaemonSet may overlap: kubelet loses sight of a container that was being started when containerd was
//! restarted, and an installation may begin while the one before it still ends. Two agents would drive one move twice.

use std::fs::{File, TryLockError};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tracing::warn;

/// The lock's file. Below /run: what held it before a boot is gone.
pub const LOCK: &str = "/run/tideover/agent.lock";

/// Why it can't be known whether another agent runs.
#[derive(Debug, Error)]
#[error("lock {path:?}")]
pub struct AloneError {
    path: PathBuf,
    #[source]
    source: Error,
}

/// Being the only agent, until this is dropped or the process ends in whatever way.
#[derive(Debug)]
pub struct Alone {
    _held: File,
}

impl Alone {
    /// Waits until no other agent runs. Blocks the thread.
    ///
    /// # Errors
    /// When the file can't be made or locked.
    pub fn wait(path: &Path) -> Result<Self, AloneError> {
        lock(path).map(|held| Self { _held: held }).map_err(|source| AloneError { path: path.to_owned(), source })
    }
}

fn lock(path: &Path) -> Result<File, Error> {
    loop {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                warn!("another agent still runs on this node: waiting for its end");
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever took Tideover off the node has removed the file meanwhile: a lock on it keeps nobody out.
        match std::fs::metadata(path) {
            Ok(there) if there.ino() == file.metadata()?.ino() => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    /// Longer than a thread needs for a lock that is free.
    const SHORT: Duration = Duration::from_millis(200);
    const LIMIT: Duration = Duration::from_secs(10);

    fn waiter(path: &Path) -> mpsc::Receiver<Alone> {
        let (sender, receiver) = mpsc::channel();
        let path = path.to_owned();
        std::thread::spawn(move || sender.send(Alone::wait(&path).expect("a lock")));
        receiver
    }

    #[test]
    fn the_second_waits_for_the_end_of_the_first() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let first = Alone::wait(&path).expect("a lock");
        let second = waiter(&path);
        assert!(second.recv_timeout(SHORT).is_err(), "two at a time");
        drop(first);
        second.recv_timeout(LIMIT).expect("the second's turn");
    }

    #[test]
    fn a_lock_that_was_removed_keeps_nobody_out_and_lets_nobody_in_beside_the_new_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let leaving = Alone::wait(&path).expect("a lock");
        let waiting = waiter(&path);
        assert!(waiting.recv_timeout(SHORT).is_err());
        std::fs::remove_file(&path).expect("the first takes the file away");
        let third = Alone::wait(&path).expect("another file, another lock");
        drop(leaving);
        assert!(waiting.recv_timeout(SHORT).is_err(), "two at a time");
        drop(third);
        waiting.recv_timeout(LIMIT).expect("its turn");
    }
}
