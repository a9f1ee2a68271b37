//! The directories of images in flight, and their removal.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// Removes an attempt's directory, and its Migration's once that is empty. What is not there is removed already.
///
/// # Errors
/// Where something can't be removed.
pub fn remove(attempt: &Path) -> Result<(), Error> {
    let removed = match std::fs::remove_dir_all(attempt) {
        // The shim has left its mark there meanwhile; it does so once.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => std::fs::remove_dir_all(attempt),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match attempt.parent().map(std::fs::remove_dir) {
        Some(Err(error)) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => Err(error),
        _ => Ok(()),
    }
}

/// Makes the directory of all images where there is none, and removes what belongs to Migrations that the journal does not
/// know: an agent was ended before it had written anything down, so nothing of it can be in use.
///
/// # Errors
/// Where something can't be listed or removed.
pub fn remove_unknown(images: &Path, known: &HashSet<String>) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(images)?;
    for entry in images.read_dir()? {
        let entry = entry?;
        if !known.contains(entry.file_name().to_string_lossy().as_ref()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_knows_is_removed_at_the_start() {
        let images = tempfile::tempdir().expect("dir");
        for name in ["a/1", "b/1", "b/2"] {
            std::fs::create_dir_all(images.path().join(name)).expect("dir");
        }
        remove_unknown(images.path(), &HashSet::from(["b".to_owned()])).expect("remove");
        assert!(!images.path().join("a").exists());
        remove(&images.path().join("b/1")).expect("remove");
        assert!(images.path().join("b/2").exists());
        remove(&images.path().join("b/2")).expect("remove");
        remove(&images.path().join("b/2")).expect("removing twice is no error");
        assert!(!images.path().join("b").exists());
        remove_unknown(&images.path().join("new"), &HashSet::new()).expect("made");
        assert!(images.path().join("new").is_dir());
    }
}
