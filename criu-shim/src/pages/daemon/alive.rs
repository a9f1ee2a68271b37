//! Whether a daemon, or its guard, is alive: both hold a lock in the work directory, and let go of it in no other way than
//! by ending.

use std::fs::{File, TryLockError};
use std::io::Result;
use std::path::Path;

/// Name of the lock's file.
const LOCK: &str = "pages.lock";

/// Takes the lock, which a former daemon of the same directory may still have for a moment.
///
/// # Errors
/// Where the file can't be made or locked.
pub(super) fn say(work: &Path) -> Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(work.join(LOCK))?;
    file.lock()?;
    Ok(file)
}

/// Whether anybody has it.
///
/// # Errors
/// Where that can't be told.
pub fn is_alive(work: &Path) -> Result<bool> {
    let file = match File::open(work.join(LOCK)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        file => file?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_has_ended_is_not_alive() {
        let work = tempfile::tempdir().expect("a directory");
        assert!(!is_alive(work.path()).expect("no file"));
        let alive = say(work.path()).expect("a lock");
        assert!(is_alive(work.path()).expect("a file"));
        drop(alive);
        assert!(!is_alive(work.path()).expect("a file"));
    }
}
