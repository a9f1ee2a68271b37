//! What happens in the directories of a tree between two looks, so that a look in the freeze need not list all of it.
//!
//! Every directory is marked before it is listed. What comes into being in it, goes, or changes is reported by the name there,
//! and so is what is opened: whoever writes without a word of the kernel, through a mapping or by a ring, had the file open
//! before, and counts as who held it. Where anything was lost or can't be understood, anything may have happened.
//!
//! Overlayfs opens and writes the files of its upper directory by itself, and it depends on the kernel whether that is reported
//! there. So it is tried once, on an overlay that nobody else sees.

use crate::agent::files::TreeKind;
use crate::agent::files::fanotify::{Event, Group, Handle, file_of, handle_of};
use crate::agent::files::listing::FileId;
use rustix::fs::FsWord;
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Most directories that are watched: each keeps an inode of the kernel's, about 1 KiB.
const MOST_DIRECTORIES: usize = 16 << 10;
/// File systems that only this node writes to, by what statfs(2) says of them: ext2 to ext4, XFS, Btrfs and tmpfs, of
/// linux/magic.h. What another machine writes is not reported.
const LOCAL: [FsWord; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];
/// That a directory has come.
const NEW_DIRECTORY: u64 = libc::FAN_CREATE | libc::FAN_ONDIR;
/// What is reported of a directory, and of what is in it.
const MASK: u64 = libc::FAN_OPEN
    | libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MOVED_FROM
    | libc::FAN_MOVED_TO
    | libc::FAN_EVENT_ON_CHILD
    | libc::FAN_ONDIR;

/// After how many of its own events a look must have them taken, so that there is room for those of others.
pub const OWN_EVENTS: usize = 1 << 10;

/// What has happened in a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Happened {
    /// Names that somebody has touched, each in a directory.
    pub names: HashSet<(FileId, Box<[u8]>)>,
    /// Directories that somebody has touched themselves.
    pub directories: HashSet<FileId>,
    /// Files that have got a name meanwhile, whichever it was.
    pub named: HashSet<FileId>,
}

impl Happened {
    /// What both say, but for names in directories that are not `there`: none of those is in the tree, or the name of one on the way
    /// to it was reported too.
    fn and(mut self, other: &Self, there: &HashSet<FileId>) -> Self {
        self.names.extend(other.names.iter().cloned());
        self.names.retain(|(directory, _)| there.contains(directory));
        self.directories.extend(&other.directories);
        self.named.extend(&other.named);
        self
    }
}

/// A watch on the directories of one tree.
#[derive(Debug)]
pub struct Watched {
    group: Group,
    reported: Mutex<Reported>,
    /// What happened between the last two times that it was asked; none if that is not known.
    before: Option<Happened>,
}

/// What was reported since it was asked last.
#[derive(Debug, Default)]
struct Reported {
    /// The directories by their handles, as the last look found them. None once one could not be watched.
    directories: Option<HashMap<Handle, FileId>>,
    /// As the look before found them, while one is under way.
    earlier: HashMap<Handle, FileId>,
    happened: Happened,
    /// Handles of files that have got a name.
    named: HashSet<Handle>,
    /// Something is not known.
    is_lost: bool,
}

impl Reported {
    fn directory(&self, handle: &[u8]) -> Option<FileId> {
        let now = self.directories.as_ref().and_then(|directories| directories.get(handle));
        now.or_else(|| self.earlier.get(handle)).copied()
    }

    fn add(&mut self, event: &Event<'_>) {
        if event.mask & NEW_DIRECTORY == NEW_DIRECTORY {
            // Nothing watches it yet: a name that a file had there for a moment, and what was written by that name, nobody tells.
            self.is_lost = true;
        }
        match (event.name.and_then(|(handle, _)| self.directory(handle)), event.name) {
            (Some(directory), Some((_, b"." | b""))) => drop(self.happened.directories.insert(directory)),
            (Some(directory), Some((_, name))) => drop(self.happened.names.insert((directory, name.into()))),
            _ => self.is_lost = true,
        }
        if event.mask & libc::FAN_CREATE != 0 {
            self.named.extend(event.file.map(<[u8]>::to_vec));
        }
    }
}

impl Watched {
    /// One that watches nothing yet, for a tree whose root is `directory`. None where not everything would be reported.
    pub fn new(directory: BorrowedFd<'_>, kind: TreeKind) -> Option<Self> {
        let is_local = rustix::fs::fstatfs(directory).is_ok_and(|found| LOCAL.contains(&found.f_type));
        if !is_local || (kind == TreeKind::Layer && !reports_overlays()) {
            return None;
        }
        let group = Group::new(libc::FAN_REPORT_DFID_NAME_TARGET).ok()?;
        let reported = Reported { directories: Some(HashMap::new()), ..Reported::default() };
        Some(Self { group, reported: Mutex::new(reported), before: Some(Happened::default()) })
    }

    /// What this process does is told too.
    #[cfg(test)]
    pub fn pass_over_nobody(&mut self) {
        self.group.pass_over_nobody();
    }

    /// What has happened since it was asked the time before last: what was opened just before it was asked may have been on its way
    /// from one process to another when somebody looked who held it. None where that can't be told. `root` is the tree's.
    pub fn take(&mut self, root: BorrowedFd<'_>) -> Option<Happened> {
        self.drain();
        let mut reported = self.lock();
        let directories = reported.directories.take();
        let there: Option<HashSet<FileId>> = directories.as_ref().map(|all| all.values().copied().collect());
        let taken = std::mem::replace(&mut *reported, Reported { directories, ..Reported::default() });
        drop(reported);
        let since = if taken.is_lost { None } else { with_named(taken.happened, &taken.named, root) };
        let before = std::mem::replace(&mut self.before, since.clone());
        Some(since?.and(&before?, &there?))
    }

    /// A look begins, which marks every directory.
    pub fn begin(&self) {
        let mut reported = self.lock();
        reported.earlier = reported.directories.replace(HashMap::new()).unwrap_or_default();
    }

    /// Watches this directory from now on.
    pub fn mark(&self, directory: BorrowedFd<'_>, id: FileId) {
        let mut reported = self.lock();
        let Some(known) = reported.directories.as_mut() else { return };
        let marked = self.group.mark(directory, 0, MASK).and_then(|()| handle_of(directory));
        match marked {
            Ok(handle) if known.len() < MOST_DIRECTORIES => drop(known.insert(handle, id)),
            _ => reported.directories = None,
        }
        if reported.directories.as_ref().is_some_and(|known| known.len().is_multiple_of(OWN_EVENTS)) {
            drop(reported);
            self.drain();
        }
    }

    /// Whether every directory of the last look is watched.
    pub fn is_complete(&self) -> bool {
        self.lock().directories.is_some()
    }

    /// Takes what was reported out of the kernel, which keeps no more than so much.
    pub fn drain(&self) {
        let mut reported = self.lock();
        let understood = self.group.take(|event| reported.add(&event));
        reported.is_lost |= understood != Ok(true);
    }

    fn lock(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With the files that have got a name, of these handles. None where one can't be told.
fn with_named(mut happened: Happened, named: &HashSet<Handle>, root: BorrowedFd<'_>) -> Option<Happened> {
    for handle in named {
        match file_of(root, handle) {
            Ok(file) => drop(happened.named.insert(file)),
            // It is gone.
            Err(Errno::STALE) => {}
            Err(_) => return None,
        }
    }
    Some(happened)
}

/// Whether a write to a file of an overlay is reported of its upper directory.
fn reports_overlays() -> bool {
    static REPORTS: OnceLock<bool> = OnceLock::new();
    *REPORTS.get_or_init(|| {
        let tried = std::thread::scope(|scope| scope.spawn(try_overlay).join());
        tried.is_ok_and(|tried| tried.unwrap_or(false))
    })
}

/// Tries it, in a mount namespace that goes with this thread.
fn try_overlay() -> std::io::Result<bool> {
    // SAFETY: this thread does nothing but this, and no file descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Every container has it.
    let place = Path::new("/dev");
    mount("tmpfs", place, "tmpfs", MountFlags::empty(), None)?;
    let at = |name: &str| place.join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(at(name))?;
    }
    std::fs::write(at("upper/file"), "")?;
    let options = c"lowerdir=/dev/lower,upperdir=/dev/upper,workdir=/dev/work";
    mount("overlay", at("merged"), "overlay", MountFlags::empty(), Some(options))?;
    let reports = reports_a_write(&at("upper"), &at("merged/file"));
    unmount(at("merged"), UnmountFlags::DETACH)?;
    unmount(place, UnmountFlags::DETACH)?;
    reports
}

fn reports_a_write(upper: &Path, file: &Path) -> std::io::Result<bool> {
    let upper = File::open(upper)?;
    let mut group = Group::new(libc::FAN_REPORT_DFID_NAME_TARGET)?;
    group.pass_over_nobody();
    group.mark(upper.as_fd(), 0, MASK)?;
    let seen = |wanted: u64| -> std::io::Result<bool> {
        let mut seen = false;
        group.take(|event| seen |= event.mask & wanted != 0 && event.name.is_some_and(|(_, name)| name == b"file"))?;
        Ok(seen)
    };
    let mut file = OpenOptions::new().write(true).open(file)?;
    let opened = seen(libc::FAN_OPEN)?;
    file.write_all(b"1")?;
    Ok(opened && seen(libc::FAN_MODIFY)?)
}
