//! Rounds of reading and comparing: for a process, or a kernel, with which nothing better works.
//!
//! It takes all of the memory through a processor for each look, 18 ms for 64 MiB (measured), also for the last one, which
//! is in the freeze. In return it needs nothing of the process but that its memory can be read, and it sees every change,
//! whatever made it.

use super::entries::{self, Entry};
use super::range::{coalesce, covers};
use super::sent::{PAGE, Sent};
use super::tracker::{AddressSpace, address_space, is_gone, mappings, read_error};
use super::{AttachError, LastLook, MemoryReader, Piece, Range, ReadError, TrackError, Vma, tracking};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// While the process runs, looking takes at most one part in so many of one processor.
const LEISURE: u32 = 10;

/// Compares the memory of one process with what was sent of it.
///
/// # Guarantees
/// Those of [`super::Tracker`], if what is sent is what a reader has read that notes it ([`Comparer::sent`]).
///
/// A clone knows the same of what was sent.
#[derive(Clone, Debug)]
pub struct Comparer {
    pub(super) pid: i32,
    space: AddressSpace,
    sent: Arc<Mutex<Sent>>,
    /// Not to be looked at again before.
    rest: Option<Instant>,
    /// It is looked at in every round.
    awake: bool,
}

/// A page with content, as a look comes to it.
pub(super) struct Page<'a> {
    /// The mapping that it is in, with the flags of smaps.
    pub vma: &'a Vma,
    /// Address divided by the length of a page.
    pub number: u64,
    /// What the kernel says of it.
    pub entry: Entry,
    /// What was sent so far.
    pub sent: &'a Sent,
}

/// What a mapping holds.
#[derive(Default)]
struct Content {
    present: Vec<Range>,
    /// What is to be compared of it.
    doubtful: Vec<Range>,
}

/// What has come of comparing one mapping.
#[derive(Default)]
struct Compared {
    differing: Vec<Range>,
    /// A page can't be read.
    unreadable: bool,
}

impl Comparer {
    /// Begins with process `pid`, as the caller's `/proc` names it, which does not notice.
    ///
    /// # Errors
    /// Where it has ended or may not be looked at.
    pub fn attach(pid: i32) -> Result<Self, AttachError> {
        let path = PathBuf::from(format!("/proc/{pid}/stat"));
        let stat = std::fs::read_to_string(&path).map_err(|source| match is_gone(&source) {
            true => AttachError::Gone { pid },
            false => AttachError::Read { path, source },
        })?;
        let space = address_space(&stat).ok_or(AttachError::Gone { pid })?;
        let sent = Sent::nothing().map_err(|source| AttachError::Read { path: "/dev/urandom".into(), source })?;
        Ok(Self { pid, space, sent: Arc::new(Mutex::new(sent)), rest: None, awake: false })
    }

    /// Where whoever reads the pages notes what they were.
    pub fn sent(&self) -> Arc<Mutex<Sent>> {
        self.sent.clone()
    }

    /// From now on every round looks.
    pub fn wake(&mut self) {
        self.awake = true;
    }

    /// One round: pages that are others than were sent, or were never sent. None where it was looked just now.
    ///
    /// # Errors
    /// Everything returned so far is void.
    pub fn take_written(&mut self) -> Result<Option<Vec<Range>>, TrackError> {
        self.space.check(self.pid)?;
        self.at_leisure(|comparer| Ok(comparer.look(|_| true)?.written))
    }

    /// What `look` returns; none, and no look, where it was looked just now.
    pub(super) fn at_leisure<T>(
        &mut self,
        look: impl FnOnce(&Self) -> Result<T, TrackError>,
    ) -> Result<Option<T>, TrackError> {
        if !self.awake && self.rest.is_some_and(|rest| Instant::now() < rest) {
            return Ok(None);
        }
        let begun = Instant::now();
        let seen = look(self)?;
        self.rest = Some(begun + begun.elapsed().max(Duration::from_millis(1)) * LEISURE);
        Ok(Some(seen))
    }

    /// Bytes that the last look compares, as far as is known.
    pub fn bytes(&self) -> u64 {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).bytes()
    }

    /// The end, for a process that does not run: see [`super::Tracker::last_look`].
    ///
    /// # Errors
    /// Nothing is covered.
    pub fn last_look(&mut self) -> Result<LastLook, TrackError> {
        match self.space.check(self.pid) {
            Err(TrackError::Replaced { .. }) => Ok(LastLook::default()),
            Err(error) => Err(error),
            Ok(()) => self.look(|_| true),
        }
    }

    /// An error where the process has ended or executed another program.
    pub(super) fn check_space(&self) -> Result<(), TrackError> {
        self.space.check(self.pid)
    }

    /// Looks at all mappings, and compares those pages of which `is_doubtful` says so. The others must be known to be as they were
    /// sent.
    pub(super) fn look(&self, mut is_doubtful: impl FnMut(&Page<'_>) -> bool) -> Result<LastLook, TrackError> {
        let path = PathBuf::from(format!("/proc/{}/pagemap", self.pid));
        let pagemap = File::open(&path).map_err(|source| read_error(self.pid, path.clone(), source))?;
        let memory = MemoryReader::open(self.pid).map_err(|error| self.unread(error))?;
        let mut look = LastLook::default();
        for vma in mappings(self.pid, "smaps")?.iter().filter(|vma| tracking(vma).is_ok()) {
            let content = self.content(&pagemap, vma, &mut is_doubtful);
            let content = content.map_err(|source| read_error(self.pid, path.clone(), source))?;
            let compared = self.compare(&memory, &content.doubtful)?;
            if !compared.unreadable {
                look.covered.push(vma.range);
            }
            look.present.extend(content.present);
            look.written.extend(compared.differing);
        }
        // It may have executed another program meanwhile.
        self.space.check(self.pid)?;
        look.present = coalesce(look.present);
        look.written = coalesce(look.written);
        let covered = coalesce(look.covered.clone());
        look.present.retain(|range| covers(&covered, range));
        Ok(look)
    }

    /// What there is of a mapping, coalesced.
    fn content(
        &self,
        pagemap: &File,
        vma: &Vma,
        mut is_doubtful: impl FnMut(&Page<'_>) -> bool,
    ) -> std::io::Result<Content> {
        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut content = Content::default();
        entries::walk(pagemap, vma.range, |number, entry| {
            if entry.has_content() {
                add(&mut content.present, number);
                if is_doubtful(&Page { vma, number, entry, sent: &sent }) {
                    add(&mut content.doubtful, number);
                }
            }
        })?;
        Ok(content)
    }

    fn compare(&self, memory: &MemoryReader, doubtful: &[Range]) -> Result<Compared, TrackError> {
        let mut compared = Compared::default();
        let mut buffer = vec![0; super::read::CHUNK];
        for range in doubtful {
            let mut rest = *range;
            loop {
                match memory.read_next(&mut rest, &mut buffer).map_err(|error| self.unread(error))? {
                    None => break,
                    Some(Piece::Unreadable(_)) => compared.unreadable = true,
                    Some(Piece::Read(read)) => {
                        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
                        for (page, bytes) in (read.start / PAGE..read.end / PAGE).zip(buffer.chunks(PAGE as usize)) {
                            if !sent.is(page, bytes) {
                                add(&mut compared.differing, page);
                            }
                        }
                    }
                }
            }
        }
        Ok(compared)
    }

    fn unread(&self, error: ReadError) -> TrackError {
        match error {
            ReadError::Gone { pid } => TrackError::Gone { pid },
            ReadError::Open { path, source } => read_error(self.pid, path, source),
            ReadError::Read { pid, source, .. } => {
                TrackError::Read { path: PathBuf::from(format!("/proc/{pid}/mem")), source }
            }
        }
    }
}

/// Adds a page to the end of ranges.
pub(super) fn add(ranges: &mut Vec<Range>, page: u64) {
    let range = Range { start: page * PAGE, end: (page + 1) * PAGE };
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
