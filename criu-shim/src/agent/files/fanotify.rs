//! fanotify(7) and file handles. It holds the `unsafe` of both and nothing else.
//!
//! A group reports by file handles, so that nothing is open meanwhile. What this process does itself is passed over.

use crate::agent::files::listing::FileId;
use crate::agent::files::walk::facts_of_open;
use rustix::io::{Errno, read};
use std::ffi::{c_int, c_uint};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes of events that are read at once.
const AT_ONCE: usize = 64 << 10;
/// Length of the head of an event, `struct fanotify_event_metadata` of linux/fanotify.h.
const HEAD: usize = 24;
/// Length of the head of a piece of information about it, `struct fanotify_event_info_header` of the same.
const INFO_HEAD: usize = 4;
/// What a file handle has before it there: `struct fanotify_event_info_fid` of the same.
const BEFORE_HANDLE: usize = 12;
/// Length and kind of a handle, `struct file_handle` of linux/exportfs.h.
const HANDLE_HEAD: usize = 8;
/// Longest file handle with its length and kind before it, `MAX_HANDLE_SZ` of the same, in words of four bytes.
const HANDLE_WORDS: usize = 2 + 128 / 4;

/// `struct file_handle`: the length of the handle proper, its kind, and the handle.
pub(super) type Handle = Vec<u8>;

/// What is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// What happened: `FAN_OPEN` and others.
    pub(super) mask: u64,
    /// Handle of the file that it happened to, where that is told.
    pub(super) file: Option<&'a [u8]>,
    /// Handle of the directory that it happened in, and the name there, where that is told. `.` is the directory itself.
    pub(super) name: Option<(&'a [u8], &'a [u8])>,
}

/// A group of marks.
#[derive(Debug)]
pub(super) struct Group {
    events: OwnedFd,
    /// The process whose doing is passed over.
    passed_over: Option<i32>,
}

impl Group {
    /// One that tells what `reports` says: `FAN_REPORT_FID` and others.
    ///
    /// # Errors
    /// Where the kernel can't.
    pub(super) fn new(reports: c_uint) -> Result<Self, Errno> {
        let flags = libc::FAN_CLASS_NOTIF | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC | libc::FAN_UNLIMITED_MARKS;
        // SAFETY: no pointers are passed.
        let events = unsafe { libc::fanotify_init(flags | reports, 0) };
        if events < 0 {
            return Err(last_error());
        }
        // SAFETY: it is new, and nobody else's.
        let events = unsafe { OwnedFd::from_raw_fd(events) };
        Ok(Self { events, passed_over: Some(std::process::id().cast_signed()) })
    }

    /// What this process does is reported too.
    pub(super) fn pass_over_nobody(&mut self) {
        self.passed_over = None;
    }

    /// Watches a directory, or all of the file system that it is on, as `flags` say, for what is in `mask`.
    ///
    /// # Errors
    /// Where the kernel can't, or can't say which files of this file system.
    pub(super) fn mark(&self, directory: BorrowedFd<'_>, flags: c_uint, mask: u64) -> Result<(), Errno> {
        let (group, place) = (self.events.as_raw_fd(), directory.as_raw_fd());
        // SAFETY: both descriptors are open, and without a path the directory itself is meant.
        let marked = unsafe { libc::fanotify_mark(group, libc::FAN_MARK_ADD | flags, mask, place, std::ptr::null()) };
        if marked < 0 { Err(last_error()) } else { Ok(()) }
    }

    /// Gives everything that was reported since to `each`. False where some events were lost, or can't be understood.
    ///
    /// # Errors
    /// Where they can't be read.
    pub(super) fn take(&self, mut each: impl FnMut(Event<'_>)) -> Result<bool, Errno> {
        let (mut buffer, mut understood) = (vec![0; AT_ONCE], true);
        loop {
            match read(&self.events, &mut buffer[..]) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(understood),
                Ok(count) => understood &= self.give(buffer.get(..count).unwrap_or_default(), &mut each),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn give(&self, events: &[u8], each: &mut impl FnMut(Event<'_>)) -> bool {
        let (mut rest, mut understood) = (events, true);
        while !rest.is_empty() {
            let Some((length, mask, pid)) = head(rest) else { return false };
            let Some((event, others)) = rest.split_at_checked(length) else { return false };
            rest = others;
            if mask & libc::FAN_Q_OVERFLOW != 0 {
                understood = false;
            } else if Some(pid) != self.passed_over {
                match infos(event.get(HEAD..).unwrap_or_default(), mask) {
                    Some(event) => each(event),
                    None => understood = false,
                }
            }
        }
        understood
    }
}

/// Length of an event, what it is of, and the process that it is of.
fn head(event: &[u8]) -> Option<(usize, u64, i32)> {
    let length = u32::from_ne_bytes(event.get(..4)?.try_into().ok()?);
    let mask = u64::from_ne_bytes(event.get(8..16)?.try_into().ok()?);
    let pid = i32::from_ne_bytes(event.get(20..HEAD)?.try_into().ok()?);
    let length = usize::try_from(length).ok().filter(|length| *length >= HEAD)?;
    (event.get(4) == Some(&libc::FANOTIFY_METADATA_VERSION)).then_some((length, mask, pid))
}

/// What is told about an event. None where nothing is, or it can't be understood.
fn infos(mut rest: &[u8], mask: u64) -> Option<Event<'_>> {
    let mut event = Event { mask, ..Event::default() };
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes(rest.get(2..INFO_HEAD)?.try_into().ok()?));
        let (info, others) = rest.split_at_checked(length).filter(|_| length > BEFORE_HANDLE)?;
        rest = others;
        let found = info.get(BEFORE_HANDLE..)?;
        let length = usize::try_from(u32::from_ne_bytes(found.get(..4)?.try_into().ok()?)).ok()?;
        let (handle, after) = found.split_at_checked(HANDLE_HEAD + length).filter(|_| length > 0)?;
        match info.first().copied()? {
            libc::FAN_EVENT_INFO_TYPE_FID => event.file = Some(handle),
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME => {
                event.name = Some((handle, after.split(|byte| *byte == 0).next().unwrap_or_default()));
            }
            _ => return None,
        }
    }
    (event.file.is_some() || event.name.is_some()).then_some(event)
}

/// The handle of an open directory, as events have it.
///
/// # Errors
/// Where its file system has none.
pub(super) fn handle_of(directory: BorrowedFd<'_>) -> Result<Handle, Errno> {
    let mut words = [0_u32; HANDLE_WORDS];
    if let Some(length) = words.first_mut() {
        *length = ((HANDLE_WORDS - 2) * 4) as u32;
    }
    let mut mount: c_int = 0;
    let (place, start) = (directory.as_raw_fd(), words.as_mut_ptr());
    // SAFETY: the path is empty, so the directory itself is meant; there is as much room as the first word says, and one number for
    // the mount.
    let found = unsafe {
        libc::syscall(libc::SYS_name_to_handle_at, place, c"".as_ptr(), start, &raw mut mount, libc::AT_EMPTY_PATH)
    };
    if found < 0 {
        return Err(last_error());
    }
    let length = HANDLE_HEAD + words.first().map_or(0, |length| *length as usize);
    Ok(words.iter().flat_map(|word| word.to_ne_bytes()).take(length).collect())
}

/// The file of a handle, on the file system that `directory` is on.
///
/// # Errors
/// `ESTALE` where it is gone.
pub(super) fn file_of(directory: BorrowedFd<'_>, handle: &[u8]) -> Result<FileId, Errno> {
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
