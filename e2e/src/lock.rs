//! A lock between `lab` processes.
//!
//! Owns flock(2) on a file. The kernel drops it with its holder, so a killed `lab` leaves none behind.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: File,
}

/// Why a lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file could not be made, locked or removed.
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
        loop {
            let file = open(path)?;
            file.lock().map_err(failed(path))?;
            if let Some(lock) = Self::held(path, file)? {
                return Ok(lock);
            }
        }
    }

    /// Takes the lock or says who has it.
    ///
    /// # Errors
    /// [`LockError::Busy`] when it is taken.
    pub fn try_acquire(path: &Path) -> Result<Self, LockError> {
        loop {
            let file = open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => {
                    let holder = fs::read_to_string(path).unwrap_or_default();
                    let holder = if holder.is_empty() { "?".to_owned() } else { holder };
                    return Err(LockError::Busy { holder });
                }
                Err(fs::TryLockError::Error(source)) => return Err(failed(path)(source)),
            }
            if let Some(lock) = Self::held(path, file)? {
                return Ok(lock);
            }
        }
    }

    /// Removes the lock's file and lets go. Who waits for it meanwhile notices that the file is gone and starts anew.
    ///
    /// # Errors
    /// The operating system's reason.
    pub fn remove(self) -> Result<(), LockError> {
        fs::remove_file(&self.path).map_err(failed(&self.path))
    }

    /// The lock, unless its file was removed or replaced between opening and locking it: then it guards nothing.
    fn held(path: &Path, mut file: File) -> Result<Option<Self>, LockError> {
        let ours = file.metadata().map_err(failed(path))?;
        match fs::metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {}
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(path)(source)),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()))
            .map_err(failed(path))?;
        Ok(Some(Self { path: path.to_owned(), _file: file }))
    }
}

fn open(path: &Path) -> Result<File, LockError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed(path))?;
    }
    OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(io::Error) -> LockError + use<'_> {
    move |source| LockError::Acquire { path: path.to_owned(), source }
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

    #[test]
    fn a_lock_on_a_removed_file_is_not_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let early = open(&path).unwrap();
        Lock::acquire(&path).unwrap().remove().unwrap();
        assert!(Lock::held(&path, early).unwrap().is_none());
        assert!(Lock::try_acquire(&path).is_ok());
    }
}
