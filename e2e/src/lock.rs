//! A lock between `lab` processes.
//!
//! Owns flock(2) on a file. The kernel drops it with its holder, so a killed `lab` leaves none behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Why a lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file could not be made or locked.
    #[error("lock {path}")]
    Acquire {
        /// The lock file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("another lab command (process {holder}) is at work on this lab: wait for it, or end it")]
    Busy {
        /// The holder's process id as it noted it, or `?`.
        holder: String,
    },
}

impl Lock {
    /// Waits until the lock is ours.
    ///
    /// # Errors
    /// When the file cannot be made or locked.
    pub fn acquire(path: &Path) -> Result<Self, LockError> {
        let file = open(path)?;
        file.lock().map_err(|source| LockError::Acquire { path: path.to_owned(), source })?;
        Ok(Self { _file: file })
    }

    /// Takes the lock or says who has it.
    ///
    /// # Errors
    /// [`LockError::Busy`] when it is taken.
    pub fn try_acquire(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Acquire { path: path.to_owned(), source };
        let mut file = open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(path).unwrap_or_default();
                let holder = if holder.is_empty() { "?".to_owned() } else { holder };
                return Err(LockError::Busy { holder });
            }
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

fn open(path: &Path) -> Result<File, LockError> {
    let failed = |source| LockError::Acquire { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_lock_names_its_holder_and_is_free_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::try_acquire(&path).unwrap();
        let error = Lock::try_acquire(&path).unwrap_err();
        assert!(error.to_string().contains(&std::process::id().to_string()));
        drop(held);
        assert!(Lock::try_acquire(&path).is_ok());
    }
}
