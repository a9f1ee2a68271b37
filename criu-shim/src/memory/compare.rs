//! Rounds of reading and comparing: for a process, or a kernel, with which nothing better works.
//!
//! It takes all of the memory through a processor for each look, 18 ms for 64 MiB (measured), also for the last one, which
//! is in the freeze. In return it needs nothing of the process but that its memory can be read, and it sees every change,
//! whatever made it.

use super::range::{coalesce, covers};
use super::sent::{PAGE, Sent};
use super::tracker::{AddressSpace, address_space, is_gone, mappings, read_error};
use super::{AttachError, LastLook, MemoryReader, Piece, Range, ReadError, TrackError, tracking};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bits of an entry of `/proc/PID/pagemap`: the page is in memory, or in swap. Source: Documentation/admin-guide/mm/pagemap.rst
/// of the kernel.
const HAS_CONTENT: u64 = 1 << 63 | 1 << 62;

/// Entries that are read at once.
const ENTRIES: usize = 8 << 10;

/// While the process runs, looking takes at most one part in so many of one processor.
const LEISURE: u32 = 10;

/// Compares the memory of one process with what was sent of it.
///
/// # Guarantees
/// Those of [`super::Tracker`], if what is sent is what a reader has read that notes it ([`Comparer::sent`]).
#[derive(Debug)]
pub struct Comparer {
    pub(super) pid: i32,
    space: AddressSpace,
    sent: Arc<Mutex<Sent>>,
    /// Not to be looked at again before.
    rest: Option<Instant>,
    /// It is looked at in every round.
    awake: bool,
}

/// What a look has seen of one mapping.
#[derive(Default)]
struct Seen {
    present: Vec<Range>,
    differing: Vec<Range>,
    /// A page can't be read.
    doubtful: bool,
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
        if !self.awake && self.rest.is_some_and(|rest| Instant::now() < rest) {
            return Ok(None);
        }
        let begun = Instant::now();
        let look = self.look()?;
        self.rest = Some(begun + begun.elapsed().max(Duration::from_millis(1)) * LEISURE);
        Ok(Some(look.written))
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
            Ok(()) => self.look(),
        }
    }

    fn look(&self) -> Result<LastLook, TrackError> {
        let path = PathBuf::from(format!("/proc/{}/pagemap", self.pid));
        let pagemap = File::open(&path).map_err(|source| read_error(self.pid, path.clone(), source))?;
        let memory = MemoryReader::open(self.pid).map_err(|error| self.unread(error))?;
        let mut look = LastLook::default();
        for vma in mappings(self.pid, "smaps")?.iter().filter(|vma| tracking(vma).is_ok()) {
            let content = content(&pagemap, vma.range);
            let content = content.map_err(|source| read_error(self.pid, path.clone(), source))?;
            let seen = self.compare(&memory, content)?;
            if !seen.doubtful {
                look.covered.push(vma.range);
            }
            look.present.extend(seen.present);
            look.written.extend(seen.differing);
        }
        // It may have executed another program meanwhile.
        self.space.check(self.pid)?;
        look.present = coalesce(look.present);
        look.written = coalesce(look.written);
        let covered = coalesce(look.covered.clone());
        look.present.retain(|range| covers(&covered, range));
        Ok(look)
    }

    fn compare(&self, memory: &MemoryReader, content: Vec<Range>) -> Result<Seen, TrackError> {
        let mut seen = Seen::default();
        let mut buffer = vec![0; super::read::CHUNK];
        for range in &content {
            let mut rest = *range;
            loop {
                match memory.read_next(&mut rest, &mut buffer).map_err(|error| self.unread(error))? {
                    None => break,
                    Some(Piece::Unreadable(_)) => seen.doubtful = true,
                    Some(Piece::Read(read)) => {
                        let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
                        for (page, bytes) in (read.start / PAGE..read.end / PAGE).zip(buffer.chunks(PAGE as usize)) {
                            if !sent.is(page, bytes) {
                                seen.differing.push(Range { start: page * PAGE, end: (page + 1) * PAGE });
                            }
                        }
                    }
                }
            }
        }
        seen.present = content;
        Ok(seen)
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

/// The pages of `range` that have content, coalesced.
fn content(pagemap: &File, range: Range) -> std::io::Result<Vec<Range>> {
    let mut content: Vec<Range> = Vec::new();
    let mut bytes = vec![0; ENTRIES * size_of::<u64>()];
    let mut page = range.start / PAGE;
    while page < range.end / PAGE {
        let wanted = ENTRIES.min((range.end / PAGE - page) as usize) * size_of::<u64>();
        pagemap.read_exact_at(&mut bytes[..wanted], page * size_of::<u64>() as u64)?;
        for entry in bytes[..wanted].as_chunks().0 {
            if u64::from_ne_bytes(*entry) & HAS_CONTENT != 0 {
                content.push(Range { start: page * PAGE, end: (page + 1) * PAGE });
            }
            page += 1;
        }
        content = coalesce(content);
    }
    Ok(content)
}
