//! A point that has not been passed, for the agent that comes after a kill: a file that is there until right before.
//!
//! It is not in the journal, which goes to the disk each time: the freeze can't wait for that, and need not. What may be done while
//! the point is not passed is only of use to an agent that finds processes of this boot, so that the kernel's own view of the
//! file system is enough. Of another boot it says nothing.

use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Another one for each boot of the kernel. Source: random(4).
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// Proof that a point has not been passed, and the right to what may be done only before it.
#[derive(Debug)]
pub struct Unpassed {
    /// The file, where there is one.
    path: Option<PathBuf>,
}

impl Unpassed {
    /// Begins with what has not been passed. Blocking.
    ///
    /// # Errors
    /// Where the file, or the directories to it, can't be written: whoever comes after a kill would take the point for passed.
    pub fn write(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, boot()?)?;
        Ok(Self { path: Some(path.to_owned()) })
    }

    /// Of a point that nobody has come to, or of which it is certain that nothing is left of what followed it.
    pub fn for_certain() -> Self {
        Self { path: None }
    }

    /// What an agent before this one has left, in this boot. Where that can't be told the point counts as passed. Blocking.
    pub fn left(path: &Path) -> Option<Self> {
        let (of, now) = (std::fs::read_to_string(path).ok()?, boot().ok()?);
        (of == now).then(|| Self { path: Some(path.to_owned()) })
    }

    /// Passes the point: from here on it is passed, whatever becomes of this process. Blocking, for as long as it takes to
    /// remove a name.
    ///
    /// # Errors
    /// Where the file can't be removed. The point may not be passed then, and the right stays.
    pub fn pass(self) -> std::result::Result<(), (Self, Error)> {
        match self.path.as_ref().map_or(Ok(()), std::fs::remove_file) {
            Ok(()) => Ok(()),
            // Gone with its directory: nobody who comes can take the point for one that was not passed.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err((self, error)),
        }
    }
}

/// The boot of this kernel: no process outlasts it.
///
/// # Errors
/// Where the kernel does not say.
pub fn boot() -> Result<String> {
    match std::fs::read_to_string(BOOT)?.trim() {
        "" => Err(ErrorKind::UnexpectedEof.into()),
        boot => Ok(boot.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_unpassed_for_whoever_comes_until_it_is_passed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("uid/1/point");
        assert!(Unpassed::left(&path).is_none(), "nobody has begun");
        let unpassed = Unpassed::write(&path).expect("written");
        assert!(Unpassed::left(&path).is_some());
        unpassed.pass().expect("passed");
        assert!(Unpassed::left(&path).is_none());
    }

    #[test]
    fn a_point_of_another_boot_counts_as_passed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("point");
        for other in ["", "00000000-0000-0000-0000-000000000000\n"] {
            std::fs::write(&path, other).expect("written");
            assert!(Unpassed::left(&path).is_none(), "{other:?}");
        }
    }

    #[test]
    fn what_can_not_be_passed_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("point");
        let unpassed = Unpassed::write(&path).expect("written");
        std::fs::remove_file(&path).expect("removed");
        std::fs::create_dir(&path).expect("something that is no file");
        let (unpassed, _) = unpassed.pass().expect_err("can't be removed");
        std::fs::remove_dir(&path).expect("removed");
        unpassed.pass().expect("nobody finds it");
    }
}
