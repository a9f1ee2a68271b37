//! Rounds by soft-dirty marks: for a process that can't be write-protected, on a kernel that keeps such marks.
//!
//! Marks can be read, and they can be cleared, but not both in one step: what a process that runs writes in between would be lost.
//! So marks are never read in order to be cleared. They are cleared first, and then *all* memory is compared with what was sent, as
//! [`super::compare`] does it. From then on only what is marked can be another, and is compared in each look, until so much of it
//! is marked that it is worth to begin again. A mark only says what is to be compared, so too many of them do no harm, and none is
//! taken away from a look to come. The last look, in the freeze, costs what was written since the marks were cleared last.
//!
//! The marks of a process have no owner. Whoever else clears them takes them away from here, which is noticed by pages that were
//! marked and are not any more: then everything is compared from then on. And who relies on them loses them to us, so that a process
//! that is seen to do so is left alone ([`Obstacle`]).
//!
//! Nothing is left behind but cleared marks: the first write to each page takes the process a fault, as it does after a fork.

use super::compare::{Comparer, Page, add};
use super::marks::Marks;
use super::obstacle::{self, By};
use super::range::{coalesce, covers};
use super::sent::{PAGE, Sent};
use super::{AttachError, LastLook, Range, TrackError};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Marks are cleared again when this part of the memory would have to be compared: less is not worth the time of comparing all.
const WORN: u64 = 4;

/// Compares what is marked of one process with what was sent of it.
///
/// # Guarantees
/// Those of [`Comparer`].
///
/// # Assumptions
/// Those of [`super::Tracker`]; and that nobody else clears the marks of this process and has all pages that were marked written
/// again before it is looked at: that can't be seen.
#[derive(Debug)]
pub struct SoftDirty {
    comparer: Comparer,
    marks: Marks,
    /// None where not all of the memory was compared since the marks were cleared.
    since: Option<Since>,
    /// Bytes that the last look had to compare.
    doubtful: u64,
}

/// What the looks have seen since all memory was compared.
#[derive(Debug, Default)]
struct Since {
    /// The mappings with content, as they were in the last look.
    mappings: Vec<Range>,
    /// What was marked in any of them, coalesced.
    marked: Vec<Range>,
    /// Bytes with content in the last look, and those of them that were compared.
    content: u64,
    doubtful: u64,
}

impl SoftDirty {
    /// Begins with process `pid`, as the caller's `/proc` names it, which does not notice.
    ///
    /// # Errors
    /// Where the kernel keeps no marks, they may not be cleared, something writes without leaving any, or the process has ended.
    pub fn attach(pid: i32) -> Result<Self, AttachError> {
        let marks = Marks::open(pid)?;
        if let Some(source) = obstacle::find(pid, By::Marks)
            .map_err(|source| AttachError::Read { path: PathBuf::from(format!("/proc/{pid}/fd")), source })?
        {
            return Err(AttachError::Obstacle { pid, source });
        }
        Ok(Self { comparer: Comparer::attach(pid)?, marks, since: None, doubtful: 0 })
    }

    /// Where whoever reads the pages notes what they were.
    pub fn sent(&self) -> Arc<Mutex<Sent>> {
        self.comparer.sent()
    }

    /// From now on every round looks.
    pub fn wake(&mut self) {
        self.comparer.wake();
    }

    /// Bytes that the last look compares, as far as is known.
    pub fn bytes(&self) -> u64 {
        if self.since.is_some() { self.doubtful } else { self.comparer.bytes() }
    }

    /// Goes on from what was sent, but without marks.
    pub fn comparer(&self) -> Comparer {
        self.comparer.clone()
    }

    /// One round: see [`Comparer::take_written`].
    ///
    /// # Errors
    /// [`TrackError::Obstacle`] and [`TrackError::Cleared`]: it can go on by comparing. After any other, everything returned so far is
    /// void.
    pub fn take_written(&mut self) -> Result<Option<Vec<Range>>, TrackError> {
        let Self { comparer, marks, since, doubtful } = self;
        comparer.check_space()?;
        let looked = comparer.at_leisure(|comparer| match since.take() {
            Some(before) if !before.is_worn() => go_on(comparer, &before),
            _ => begin(comparer, marks),
        })?;
        let Some((look, now)) = looked else { return Ok(None) };
        *doubtful = now.doubtful;
        *since = Some(now);
        Ok(Some(look.written))
    }

    /// The end, for a process that does not run: see [`super::Tracker::last_look`].
    ///
    /// # Errors
    /// Nothing is covered.
    pub fn last_look(&mut self) -> Result<LastLook, TrackError> {
        let Some(before) = &self.since else { return self.comparer.last_look() };
        match self.comparer.check_space() {
            Err(TrackError::Replaced { .. }) => return Ok(LastLook::default()),
            checked => checked?,
        }
        match go_on(&self.comparer, before) {
            Err(TrackError::Cleared { .. }) => self.comparer.last_look(),
            looked => {
                let (look, now) = looked?;
                self.since = Some(now);
                Ok(look)
            }
        }
    }
}

/// Clears the marks, and compares everything.
fn begin(comparer: &Comparer, marks: &Marks) -> Result<(LastLook, Since), TrackError> {
    let pid = comparer.pid;
    marks.clear()?;
    // After the marks were cleared: a transfer that was under way then still has its descriptor open, and one that has ended is
    // seen by what is compared.
    let path = || PathBuf::from(format!("/proc/{pid}/fd"));
    let found = obstacle::find(pid, By::Marks).map_err(|source| super::tracker::read_error(pid, path(), source))?;
    if let Some(source) = found {
        return Err(TrackError::Obstacle { pid, source });
    }
    let mut now = Since::default();
    let look = comparer.look(|page| {
        now.see(page);
        true
    })?;
    // What the next look compares, if nothing more is written.
    now.doubtful = now.marked.iter().map(Range::len).sum();
    Ok((look, now))
}

/// Compares what may have changed since `before`.
fn go_on(comparer: &Comparer, before: &Since) -> Result<(LastLook, Since), TrackError> {
    let (mut now, mut cleared) = (Since::default(), false);
    let look = comparer.look(|page| {
        now.see(page);
        cleared |= before.has_lost_a_mark(page);
        let is_same = before.knows(page);
        now.doubtful += if is_same { 0 } else { PAGE };
        !is_same
    })?;
    if cleared {
        return Err(TrackError::Cleared { pid: comparer.pid });
    }
    now.marked.extend_from_slice(&before.marked);
    now.marked = coalesce(now.marked);
    Ok((look, now))
}

impl Since {
    fn see(&mut self, page: &Page<'_>) {
        if self.mappings.last() != Some(&page.vma.range) {
            self.mappings.push(page.vma.range);
        }
        if page.entry.is_soft_dirty() {
            add(&mut self.marked, page.number);
        }
        self.content += PAGE;
    }

    fn is_worn(&self) -> bool {
        self.doubtful > self.content / WORN
    }

    /// True of a page that is as it was sent. What is positively known counts: where a page was thrown away and is one of zeroes by
    /// now, nothing is marked, but the page of zeroes is nobody's alone, nor is a guard page.
    fn knows(&self, page: &Page<'_>) -> bool {
        !page.entry.is_soft_dirty() && self.keeps_marks(page) && page.sent.has(page.number)
    }

    /// True of a page that was marked and is not any more, as if somebody had cleared it.
    fn has_lost_a_mark(&self, page: &Page<'_>) -> bool {
        let range = Range { start: page.number * PAGE, end: (page.number + 1) * PAGE };
        !page.entry.is_soft_dirty() && self.keeps_marks(page) && covers(&self.marked, &range)
    }

    /// Whether a page still has every mark that it got. One that the kernel merges with others like it (KSM) loses it, and so, on
    /// kernels before 6.19, does a mapping that becomes a part of another.
    fn keeps_marks(&self, page: &Page<'_>) -> bool {
        page.entry.is_exclusive()
            && !page.vma.flags.contains(b"mg")
            && self.mappings.binary_search(&page.vma.range).is_ok()
    }
}
