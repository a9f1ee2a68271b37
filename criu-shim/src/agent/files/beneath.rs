//! A tree's directories, opened name by name: no link is followed, no mount is entered, nothing outside is reached.

use crate::agent::files::listing::TreePath;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A tree's root, and the directories on the way to the one that was asked for last.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    way: Vec<(Vec<u8>, OwnedFd)>,
}

impl Beneath {
    /// Opens the root, which is where the path leads, links and all.
    ///
    /// # Errors
    /// Where it is no directory, or can't be opened.
    pub fn open(root: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: openat(CWD, root, flags, Mode::empty())?, way: Vec::new() })
    }

    /// Opens a directory of the tree.
    ///
    /// # Errors
    /// Where something on the way is no directory, or another mount.
    pub fn directory(&mut self, path: &TreePath) -> Result<BorrowedFd<'_>, Errno> {
        let names = path.names();
        let mut depth = 0;
        for name in names {
            if self.way.get(depth).is_none_or(|(opened, _)| opened != name) {
                self.way.truncate(depth);
                let parent = self.way.last().map_or(self.root.as_fd(), |(_, directory)| directory.as_fd());
                let directory = open_directory(parent, name)?;
                self.way.push((name.to_vec(), directory));
            }
            depth += 1;
        }
        // What is open below stays open as long as it is on the way to what is asked for next; it does no harm.
        Ok(match depth.checked_sub(1).and_then(|last| self.way.get(last)) {
            Some((_, directory)) => directory.as_fd(),
            None => self.root.as_fd(),
        })
    }

    /// The same tree, for another thread.
    ///
    /// # Errors
    /// Where no more files can be open.
    pub fn again(&self) -> Result<Self, Errno> {
        Ok(Self { root: open_directory(self.root.as_fd(), b".")?, way: Vec::new() })
    }

    /// Forgets the directories that were opened: one of them is about to be removed or replaced.
    pub fn forget(&mut self) {
        self.way.clear();
    }
}

/// Opens a directory in a directory.
///
/// # Errors
/// Where it is none, or the root of another mount.
pub fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(
        parent,
        name,
        flags,
        Mode::empty(),
        ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

/// A path to a name in an open directory, for the system calls that take no descriptor of one. It means that name and
/// nothing else as long as the last name is not followed.
pub fn way_to(directory: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(std::ffi::OsStr::from_bytes(name))
}

/// A name for the kernel. Names from directories and paths have no zero byte.
///
/// # Errors
/// `EINVAL` where it has one.
pub fn c_name(name: &[u8]) -> Result<CString, Errno> {
    CString::new(name).map_err(|_| Errno::INVAL)
}
