//! Which files of a file system were opened, whoever did it.
//!
//! Whoever maps a file has opened it before. So on a tmpfs, where a mapping that comes, writes and goes leaves no timestamp, only
//! files that somebody held, or has opened since, can have changed without one. A mark on the whole file system sees all of
//! its mounts, keeps none of them from being taken down, and reports file handles, so that nothing is open meanwhile.

use crate::agent::files::fanotify::{Group, Handle, file_of};
use crate::agent::files::listing::FileId;
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::BorrowedFd;

/// Files that were opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// More than the kernel kept: any may have been.
    Any,
    /// These.
    These(HashSet<FileId>),
}

impl Touched {
    /// Whether this file may have been opened.
    pub fn may_have(&self, file: FileId) -> bool {
        match self {
            Self::Any => true,
            Self::These(files) => files.contains(&file),
        }
    }

    fn and(self, other: &Self) -> Self {
        match (self, other) {
            (Self::These(mut files), Self::These(others)) => {
                files.extend(others);
                Self::These(files)
            }
            _ => Self::Any,
        }
    }
}

/// A watch on a file system.
#[derive(Debug)]
pub struct Opened {
    group: Group,
    /// What was opened between the last two times that it was asked.
    before: Touched,
}

impl Opened {
    /// Watches the file system that `directory` is on, from now on.
    ///
    /// # Errors
    /// Where the kernel can't, or can't say which files of this file system.
    pub fn watch(directory: BorrowedFd<'_>) -> Result<Self, Errno> {
        let group = Group::new(libc::FAN_REPORT_FID)?;
        group.mark(directory, libc::FAN_MARK_FILESYSTEM, libc::FAN_OPEN)?;
        Ok(Self { group, before: Touched::These(HashSet::new()) })
    }

    /// What this process opens is told too.
    #[cfg(test)]
    pub fn pass_over_nobody(&mut self) {
        self.group.pass_over_nobody();
    }

    /// The files that others have opened since it was asked the time before last: what was opened just before it was asked may
    /// have been on its way from one process to another when somebody looked who held it. `directory` is on the file system.
    pub fn take(&mut self, directory: BorrowedFd<'_>) -> Touched {
        let since = self.since(directory).unwrap_or(Touched::Any);
        let before = std::mem::replace(&mut self.before, since.clone());
        since.and(&before)
    }

    fn since(&self, directory: BorrowedFd<'_>) -> Result<Touched, Errno> {
        let mut handles: HashSet<Handle> = HashSet::new();
        let all = self.group.take(|event| handles.extend(event.file.map(<[u8]>::to_vec)))?;
        if !all {
            return Ok(Touched::Any);
        }
        let mut files = HashSet::with_capacity(handles.len());
        for handle in handles {
            match file_of(directory, &handle) {
                Ok(file) => files.extend([file]),
                // It is gone.
                Err(Errno::STALE) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(Touched::These(files))
    }
}
