//! Which files of a file system were opened, whoever did it. It holds the `unsafe` of fanotify(7) and nothing else that has any.
//!
//! Whoever maps a file has opened it before. So on a tmpfs, where a mapping that comes, writes and goes leaves no timestamp, only
//! files that somebody held, or has opened since, can have changed without one. A mark on the whole file system sees all of
//! its mounts, keeps none of them from being taken down, and reports file handles, so that nothing is open meanwhile.

use crate::agent::files::listing::FileId;
use crate::agent::files::walk::facts_of_open;
use rustix::io::{Errno, read};
use std::collections::HashSet;
use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes of events that are read at once.
const AT_ONCE: usize = 64 << 10;
/// Length of the head of an event, `struct fanotify_event_metadata` of linux/fanotify.h.
const HEAD: usize = 24;
/// What an event's file handle has before it: `struct fanotify_event_info_fid` of the same.
const BEFORE_HANDLE: usize = 12;
/// Longest file handle with its length and kind before it, `MAX_HANDLE_SZ` of linux/exportfs.h, in words of four bytes.
const HANDLE_WORDS: usize = 2 + 128 / 4;

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
    events: Group,
    /// What was opened between the last two times that it was asked.
    before: Touched,
}

impl Opened {
    /// Watches the file system that `directory` is on, from now on.
    ///
    /// # Errors
    /// Where the kernel can't, or can't say which files of this file system.
    pub fn watch(directory: BorrowedFd<'_>) -> Result<Self, Errno> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC;
        // SAFETY: no pointers are passed.
        let events = unsafe { libc::fanotify_init(flags, 0) };
        if events < 0 {
            return Err(last_error());
        }
        // SAFETY: it is new, and nobody else's.
        let events = unsafe { OwnedFd::from_raw_fd(events) };
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        let (group, place) = (events.as_raw_fd(), directory.as_raw_fd());
        // SAFETY: both descriptors are open, and without a path the directory itself is meant.
        let marked = unsafe { libc::fanotify_mark(group, flags, libc::FAN_OPEN, place, std::ptr::null()) };
        if marked < 0 {
            return Err(last_error());
        }
        Ok(Self { events: Group(Some(events)), before: Touched::These(HashSet::new()) })
    }

    /// The files that others have opened since it was asked the time before last: what was opened just before it was asked may
    /// have been on its way from one process to another when somebody looked who held it. `directory` is on the file system.
    pub fn take(&mut self, directory: BorrowedFd<'_>) -> Touched {
        let since = self.since(directory).unwrap_or(Touched::Any);
        let before = std::mem::replace(&mut self.before, since.clone());
        since.and(&before)
    }

    fn since(&self, directory: BorrowedFd<'_>) -> Result<Touched, Errno> {
        let (mut handles, mut buffer) = (HashSet::new(), vec![0; AT_ONCE]);
        let mut all = false;
        loop {
            match read(self.events.descriptor()?, &mut buffer[..]) {
                Ok(0) | Err(Errno::AGAIN) => break,
                Ok(count) => all |= !handles_in(buffer.get(..count).unwrap_or_default(), &mut handles),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        if all {
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

/// A group of fanotify's marks. The kernel ends one only when nobody can be reading its marks any more, some 20 ms after the last
/// descriptor is closed: a thread waits for that, because whoever drops a watch may be in a freeze.
#[derive(Debug)]
struct Group(Option<OwnedFd>);

impl Group {
    fn descriptor(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.0.as_ref().map(AsFd::as_fd).ok_or(Errno::BADF)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let events = self.0.take();
        // Without a thread it is closed here.
        std::thread::Builder::new().name("fanotify-end".into()).spawn(move || drop(events)).ok();
    }
}

/// Takes the file handles out of events of other processes than this. False where some events were lost, or can't be understood.
fn handles_in(events: &[u8], handles: &mut HashSet<Vec<u8>>) -> bool {
    let own = std::process::id().cast_signed();
    let (mut rest, mut understood) = (events, true);
    while !rest.is_empty() {
        let Some((length, mask, pid)) = head(rest) else { return false };
        let Some((event, others)) = rest.split_at_checked(length) else { return false };
        rest = others;
        if mask & libc::FAN_Q_OVERFLOW != 0 {
            understood = false;
        } else if pid != own {
            match handle(event) {
                Some(handle) => handles.extend([handle.to_vec()]),
                None => understood = false,
            }
        }
    }
    understood
}

/// Length of an event, what it is of, and the process that it is of.
fn head(event: &[u8]) -> Option<(usize, u64, i32)> {
    let length = u32::from_ne_bytes(event.get(..4)?.try_into().ok()?);
    let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
    let pid = i32::from_ne_bytes(event.get(20..HEAD)?.try_into().ok()?);
    let length = usize::try_from(length).ok().filter(|length| *length >= HEAD)?;
    (event.get(4) == Some(&libc::FANOTIFY_METADATA_VERSION)).then_some((length, mask, pid))
}

/// `struct file_handle` in an event: length of the handle proper, kind, handle.
fn handle(event: &[u8]) -> Option<&[u8]> {
    let info = event.get(HEAD..).filter(|info| info.first() == Some(&libc::FAN_EVENT_INFO_TYPE_FID))?;
    let handle = info.get(BEFORE_HANDLE..)?;
    let length = usize::try_from(u32::from_ne_bytes(handle.get(..4)?.try_into().ok()?)).ok()?;
    handle.get(..8 + length)
}

/// The file of a handle, on the file system that `directory` is on.
fn file_of(directory: BorrowedFd<'_>, handle: &[u8]) -> Result<FileId, Errno> {
    let mut words = MaybeUninit::new([0_u32; HANDLE_WORDS]);
    let room = size_of_val(&words);
    if handle.len() > room {
        return Err(Errno::OVERFLOW);
    }
    let flags: c_int = libc::O_PATH | libc::O_CLOEXEC;
    let start = words.as_mut_ptr().cast::<u8>();
    // SAFETY: what is copied fits, it is aligned as the structure wants it, and the length in it is that of what was copied.
    let file = unsafe {
        std::ptr::copy_nonoverlapping(handle.as_ptr(), start, handle.len());
        libc::open_by_handle_at(directory.as_raw_fd(), start.cast(), flags)
    };
    if file < 0 {
        return Err(last_error());
    }
    // SAFETY: it is new, and nobody else's.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    Ok(facts_of_open(file.as_fd())?.id)
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
