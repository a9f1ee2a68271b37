//! The mark that a restore has let its processes run, for an agent that is not there to be told.
//!
//! The shim leaves it in the working directory of the attempt. An agent that comes later, perhaps when the restored
//! container has ended already, must not restore the same images once more: that would take the application back to where
//! it was before it ran here.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const MARK: &str = "ran";

/// Leaves the mark in the `work` directory of an attempt. On return it is on the disk. A directory that is gone needs
/// none: an agent that knows has removed it.
///
/// # Errors
/// Where it can't be written.
pub fn mark_ran(work: &Path) -> Result<()> {
    let write = || {
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(work.join(MARK))?.sync_all()?;
        File::open(work)?.sync_all()
    };
    match write() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

/// Whether the mark is there.
pub fn has_ran_mark(work: &Path) -> bool {
    work.join(MARK).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_until_its_directory_is_removed() {
        let attempt = tempfile::tempdir().unwrap();
        let work = attempt.path().join("work");
        mark_ran(&work).expect("a directory that is gone is no error");
        assert!(!has_ran_mark(&work));
        std::fs::create_dir(&work).unwrap();
        mark_ran(&work).unwrap();
        mark_ran(&work).unwrap();
        assert!(has_ran_mark(&work));
        std::fs::remove_dir_all(&work).unwrap();
        assert!(!has_ran_mark(&work));
    }
}
