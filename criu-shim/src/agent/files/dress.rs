//! Gives what was unpacked its owner, mode, extended attributes and times. It never decides what is unpacked.

use crate::agent::files::archive::Attributes;
use crate::agent::files::attributes;
use crate::agent::files::listing::{Facts, Stamp, TreePath};
use rustix::fs::{Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, fchmod, fchown, futimens};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc;

/// How many files with their content and not yet their attributes go to the other thread at once. Each is open; waking the other
/// for one takes longer than what it does.
const UNDRESSED: usize = 32;

/// A file that has all its content.
pub(super) struct Undressed {
    pub(super) path: TreePath,
    pub(super) file: OwnedFd,
    /// What it was before it was written to.
    pub(super) before: Facts,
    pub(super) attributes: Attributes,
}

/// What could not be done to which file.
pub(super) type Failed = (TreePath, Errno);

/// Files on their way to [`dress_all`].
pub(super) struct Dressing {
    files: Vec<Undressed>,
    other: mpsc::SyncSender<Vec<Undressed>>,
}

impl Dressing {
    /// To whom `other` leads.
    pub(super) fn new(other: mpsc::SyncSender<Vec<Undressed>>) -> Self {
        Self { files: Vec::new(), other }
    }

    /// One more.
    ///
    /// # Errors
    /// Where the other thread has failed, whose reason is the one that counts.
    pub(super) fn add(&mut self, file: Undressed) -> Result<(), Failed> {
        self.files.push(file);
        if self.files.len() < UNDRESSED { Ok(()) } else { self.flush() }
    }

    /// Nothing comes that is worth waiting for.
    ///
    /// # Errors
    /// As [`Dressing::add`].
    pub(super) fn flush(&mut self) -> Result<(), Failed> {
        let files = std::mem::take(&mut self.files);
        let path = files.last().map(|file| file.path.clone()).unwrap_or_default();
        self.other.send(files).map_err(|_| (path, Errno::CANCELED))
    }
}

/// Gives files their attributes, which writing to them may have changed. A thread of its own does: that takes as long as the
/// content of a small file, and is part of the freeze.
///
/// # Errors
/// With the first that can't be given its own.
pub(super) fn dress_all(files: &mpsc::Receiver<Vec<Undressed>>) -> Result<(), Failed> {
    let mut scratch = attributes::Scratch::default();
    for Undressed { path, file, before, attributes } in files.iter().flatten() {
        let dressed = dress(file.as_fd(), &before, &attributes, &mut scratch);
        dressed.and_then(|()| futimens(&file, &times(attributes.modified))).map_err(|errno| (path, errno))?;
    }
    Ok(())
}

/// Owner, mode and extended attributes of an open file that was as `before`; the mode after the owner, which clears setuid, and
/// the extended attributes after both, which clear capabilities.
///
/// # Errors
/// Where one of them can't be set.
pub(super) fn dress(
    file: BorrowedFd<'_>,
    before: &Facts,
    attributes: &Attributes,
    scratch: &mut attributes::Scratch,
) -> Result<(), Errno> {
    if (before.uid, before.gid) != (attributes.uid, attributes.gid) {
        fchown(file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
    }
    if before.mode != attributes.mode || attributes.mode & 0o6000 != 0 {
        fchmod(file, Mode::from_raw_mode(attributes.mode))?;
    }
    attributes::File::Open(file).write(&attributes.extended, scratch)
}

/// The time of modification alone.
pub(super) fn times(modified: Stamp) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: modified.seconds, tv_nsec: i64::from(modified.nanos) },
    }
}
