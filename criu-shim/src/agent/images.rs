//! The directories of images in flight, and their removal.

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use std::collections::HashSet;
use std::fs::{DirBuilder, File};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use tracing::debug;

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

/// Makes the directory of all images where there is none ([`spread`]), and removes what belongs to Migrations that the journal does not
/// know: an agent was ended before it had written anything down, so nothing of it can be in use.
///
/// # Errors
/// Where something can't be listed or removed.
pub fn remove_unknown(images: &Path, known: &HashSet<String>) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(0o700).create(images)?;
    if let Err(error) = spread(images) {
        debug!(%error, "the file system does not keep the images of different moves apart");
    }
    for entry in images.read_dir()? {
        let entry = entry?;
        if !known.contains(entry.file_name().to_string_lossy().as_ref()) {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Asks the file system to keep apart on the disk what is in different subdirectories of this one (`chattr +T`): those of moves, which
/// have nothing to do with each other.
///
/// An ext4 without a journal gives no inode out again within a minute of its removal, and looks at each such inode of a block group
/// whenever a file is made in it (`recently_deleted` of the kernel's `fs/ext4/ialloc.c`). An image of 50 processes has 350 files, and
/// all of them are made while the application stands still. Beside what moves before it have removed, that took ten times as long.
///
/// # Errors
/// Where the file system knows nothing of the kind. It need not.
fn spread(images: &Path) -> Result<(), Error> {
    let directory = File::open(images)?;
    let flags = ioctl_getflags(&directory)?;
    if flags.contains(IFlags::TOPDIR) { Ok(()) } else { Ok(ioctl_setflags(&directory, flags | IFlags::TOPDIR)?) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_are_kept_apart_where_the_file_system_can() {
        let parent = tempfile::tempdir().expect("dir");
        let (beside, images) = (parent.path().join("beside"), parent.path().join("images"));
        std::fs::create_dir(&beside).expect("dir");
        remove_unknown(&images, &HashSet::new()).expect("made");
        let flags = |path: &Path| ioctl_getflags(File::open(path).expect("open")).unwrap_or(IFlags::empty());
        let can = spread(&beside).is_ok();
        assert_eq!(flags(&images).contains(IFlags::TOPDIR), can);
        remove_unknown(&images, &HashSet::new()).expect("as it is");
        assert_eq!(flags(&images).contains(IFlags::TOPDIR), can);
    }

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
