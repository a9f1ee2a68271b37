//! Rounds of asking what was written, over the mappings as they are now.

use super::obstacle::By;
use super::pagemap::{self, Pagemap, Wanted};
use super::range::{coalesce, covers};
use super::uffd::Userfaultfd;
use super::{
    AttachError, Injector, Obstacle, Range, Reason, TrackError, Vma, is_private_file, obstacle, protecting, vma,
};
use std::io::ErrorKind;
use std::path::PathBuf;

/// Tracks which pages a process writes. It never reads or changes their content.
///
/// # Guarantees
/// A page that was written after a round returned it is returned again, by the next round or by the last look. What that
/// can't be said of is not covered by the last look.
///
/// # Assumptions
/// Its threads share one table of descriptors, and no other process runs in its address space. After fork(2) only the
/// parent is tracked.
///
/// Dropping it ends the tracking, which takes 19 ms for 1 GiB that was tracked (measured) and holds up the process'
/// own changes of mappings: thaw first.
#[derive(Debug)]
pub struct Tracker {
    pid: i32,
    userfaultfd: Userfaultfd,
    /// The address space that `userfaultfd` was made in.
    space: AddressSpace,
    /// What was under tracking when the last round ended, coalesced. The kernel may have dropped some of it since.
    tracked: Vec<Range>,
    /// True from the first page that a round protects until the round is returned.
    lost: bool,
    /// True when the kernel knows [`pagemap::GUARD`].
    knows_guards: bool,
}

/// What there is at the end, of a process that does not run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastLook {
    /// Pages of `covered` that were written after they were returned last, or never returned.
    pub written: Vec<Range>,
    /// Whole mappings, of which everything that is not in `written` has been returned before and is unchanged. Mappings
    /// that are not here must be dumped in the plain way.
    pub covered: Vec<Range>,
    /// Pages of `covered` that have content of the process' own. All others there are what was mapped, whatever was returned of them
    /// before: zeroes, or what the file has.
    pub present: Vec<Range>,
}

/// What tells the address spaces apart that a process has one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressSpace {
    process_start: u64,
    code_start: u64,
    code_end: u64,
    stack_start: u64,
}

impl Tracker {
    /// Starts to track process `pid`, as the caller's `/proc` names it. Its first thread is stopped for less than a
    /// millisecond and made to call userfaultfd(2); afterwards the process is as before.
    ///
    /// Calls that return early whenever they are interrupted do so (a long getrandom(2), say); those that would return
    /// EINTR go on, with their time limit begun anew. That is `injector`'s work.
    ///
    /// # Errors
    /// Each says why this process, or this kernel, can't be tracked. The process runs on as before.
    pub fn attach(pid: i32, injector: &Injector) -> Result<Self, AttachError> {
        let knows_guards = probe(pid)?;
        if let Some(source) = find_obstacle(pid).map_err(|(path, source)| AttachError::Read { path, source })? {
            return Err(AttachError::Obstacle { pid, source });
        }
        // Read before: a program that is executed in between then shows as another one.
        let path = PathBuf::from(format!("/proc/{pid}/stat"));
        let stat = std::fs::read_to_string(&path).map_err(|source| AttachError::Read { path, source })?;
        let space = address_space(&stat).ok_or(AttachError::Gone { pid })?;
        let descriptor = injector.userfaultfd(pid)?;
        let userfaultfd = Userfaultfd::tracking(descriptor).map_err(AttachError::Features)?;
        Ok(Self { pid, userfaultfd, space, tracked: Vec::new(), lost: false, knows_guards })
    }

    /// One round: the pages that must be sent (again), coalesced and in ascending order, bytes.
    ///
    /// Returned are pages with content that were written since the round that returned them last, and all pages with
    /// content of mappings that were not tracked before. Their protection is renewed in the same step, so read them
    /// after this call, not before.
    ///
    /// # Errors
    /// Tracking is over, and everything returned so far is void.
    pub fn take_written(&mut self) -> Result<Vec<Range>, TrackError> {
        if self.lost {
            return Err(TrackError::Lost { pid: self.pid });
        }
        self.check_space()?;
        let pagemap = self.pagemap()?;
        let (anonymous, of_files) = self.track_new(&pagemap)?;
        self.lost = true;
        let mut written = Vec::new();
        for (ranges, foreign) in [(&anonymous, 0), (&of_files, pagemap::FILE)] {
            let wanted = Wanted {
                all: pagemap::WP_ALLOWED | pagemap::WRITTEN,
                any: pagemap::PRESENT | pagemap::SWAPPED,
                none: pagemap::ZERO | foreign | self.guard(),
                told: pagemap::WRITTEN,
                protect: true,
            };
            for range in ranges {
                let regions = pagemap.scan(*range, wanted).map_err(|source| self.scan_error(source))?;
                written.extend(regions.iter().map(pagemap::Region::range));
            }
        }
        // After the scan: a transfer that was under way then still has its descriptor open.
        if let Some(source) = find_obstacle(self.pid).map_err(|(path, source)| self.read_error(path, source))? {
            return Err(TrackError::Obstacle { pid: self.pid, source });
        }
        self.check_space()?;
        self.tracked = coalesce([anonymous, of_files].concat());
        self.lost = false;
        Ok(coalesce(written))
    }

    /// The end, for a process whose cgroup the caller has frozen: what is still to be sent, and which mappings need no
    /// plain dump then. Protection is not renewed; after a thaw, [`Tracker::take_written`] goes on where it was.
    ///
    /// Whatever there is a doubt about is not covered. When the process has executed another program, nothing is.
    ///
    /// # Errors
    /// Nothing is covered.
    pub fn last_look(&mut self) -> Result<LastLook, TrackError> {
        if self.lost {
            return Err(TrackError::Lost { pid: self.pid });
        }
        match self.check_space() {
            Err(TrackError::Replaced { .. }) => return Ok(LastLook::default()),
            other => other?,
        }
        let pagemap = self.pagemap()?;
        let mut look = LastLook::default();
        for vma in self.mappings("maps")?.iter().filter(|vma| protecting(vma).is_ok()) {
            if !self.is_tracked(&pagemap, vma)? {
                continue;
            }
            let wanted = Wanted {
                all: pagemap::WP_ALLOWED,
                any: pagemap::PRESENT | pagemap::SWAPPED,
                none: pagemap::ZERO | foreign(vma),
                told: pagemap::WRITTEN | pagemap::SWAPPED | self.guard(),
                protect: false,
            };
            let regions = pagemap.scan(vma.range, wanted).map_err(|source| self.scan_error(source))?;
            if regions.iter().any(|region| region.is(pagemap::GUARD)) {
                continue;
            }
            // What was thrown away of a file leaves a marker that reads as an unwritten page in swap, and the file's content is
            // there again. Source: `zap_install_uffd_wp_if_needed` in linux `mm/memory.c`.
            if is_private_file(vma) && regions.iter().any(|region| region.is(pagemap::SWAPPED)) {
                continue;
            }
            look.covered.push(vma.range);
            look.present.extend(regions.iter().map(pagemap::Region::range));
            let written = regions.iter().filter(|region| region.is(pagemap::WRITTEN));
            look.written.extend(written.map(pagemap::Region::range));
        }
        look.present = coalesce(look.present);
        look.written = coalesce(look.written);
        Ok(look)
    }

    /// Registers the mappings that qualify and are not tracked yet; returns everything that is tracked now: anonymous memory, and what is
    /// of files.
    ///
    /// smaps, whose flags decide, costs the kernel a walk through all page tables (10 ms for 1 GiB), so it is read only
    /// when there is something to decide.
    fn track_new(&self, pagemap: &Pagemap) -> Result<(Vec<Range>, Vec<Range>), TrackError> {
        let (mut tracked, mut fresh) = (Vec::new(), false);
        for vma in self.mappings("maps")?.into_iter().filter(|vma| protecting(vma).is_ok()) {
            match self.is_tracked(pagemap, &vma)? {
                true => tracked.push(vma),
                false => fresh |= self.has_own_pages(pagemap, &vma)?,
            }
        }
        if fresh {
            let known = coalesce(tracked.iter().map(|vma| vma.range).collect());
            for vma in self.mappings("smaps")?.into_iter().filter(|vma| !covers(&known, &vma.range)) {
                if self.may_register(&vma) && self.has_own_pages(pagemap, &vma)? && self.register(vma.range)? {
                    tracked.push(vma);
                }
            }
        }
        let (of_files, anonymous): (Vec<Vma>, Vec<Vma>) = tracked.into_iter().partition(is_private_file);
        let ranges = |vmas: Vec<Vma>| coalesce(vmas.iter().map(|vma| vma.range).collect());
        Ok((ranges(anonymous), ranges(of_files)))
    }

    /// True for a mapping that is under our registration from its first to its last byte.
    ///
    /// The kernel's answer alone would take another's registration for ours, and ours alone would miss that the mapping
    /// was moved away and another put in its place.
    fn is_tracked(&self, pagemap: &Pagemap, vma: &Vma) -> Result<bool, TrackError> {
        let registered = pagemap.first_is(vma.range, pagemap::WP_ALLOWED).map_err(|source| self.scan_error(source))?;
        Ok(registered && covers(&self.tracked, &vma.range))
    }

    /// False for a mapping of a file that has nothing but the file's pages, as most of a library's: to protect it would make the kernel
    /// map those one by one.
    fn has_own_pages(&self, pagemap: &Pagemap, vma: &Vma) -> Result<bool, TrackError> {
        let wanted = Wanted {
            any: pagemap::PRESENT | pagemap::SWAPPED,
            none: pagemap::ZERO | pagemap::FILE,
            told: pagemap::PRESENT,
            ..Wanted::default()
        };
        let found = || pagemap.has_any(vma.range, wanted).map_err(|source| self.scan_error(source));
        Ok(!is_private_file(vma) || found()?)
    }

    fn may_register(&self, vma: &Vma) -> bool {
        match protecting(vma) {
            Ok(()) => true,
            // Perhaps one of ours that has grown. The kernel refuses if it is another's.
            Err(Reason::Userfaultfd) => {
                self.tracked.iter().any(|known| known.start < vma.range.end && vma.range.start < known.end)
                    && protecting(&Vma { flags: Vec::new(), ..vma.clone() }).is_ok()
            }
            Err(_) => false,
        }
    }

    /// False when the mapping has changed since it was read, or is another's: the next round sees it anew.
    fn register(&self, range: Range) -> Result<bool, TrackError> {
        match self.userfaultfd.start(range) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(TrackError::Replaced { pid: self.pid }),
            Err(_) => Ok(false),
        }
    }

    fn check_space(&self) -> Result<(), TrackError> {
        self.space.check(self.pid)
    }

    /// Opened for each scan, because the file stays with the address space it was opened for.
    fn pagemap(&self) -> Result<Pagemap, TrackError> {
        let path = PathBuf::from(format!("/proc/{}/pagemap", self.pid));
        Pagemap::open(&path).map_err(|source| self.read_error(path, source))
    }

    fn mappings(&self, file: &str) -> Result<Vec<Vma>, TrackError> {
        mappings(self.pid, file)
    }

    fn guard(&self) -> u64 {
        if self.knows_guards { pagemap::GUARD } else { 0 }
    }

    fn scan_error(&self, source: std::io::Error) -> TrackError {
        TrackError::Scan { pid: self.pid, source }
    }

    fn read_error(&self, path: PathBuf, source: std::io::Error) -> TrackError {
        read_error(self.pid, path, source)
    }
}

impl AddressSpace {
    /// An error unless it is still the one of process `pid`.
    pub(super) fn check(&self, pid: i32) -> Result<(), TrackError> {
        let path = PathBuf::from(format!("/proc/{pid}/stat"));
        let stat = std::fs::read_to_string(&path).map_err(|source| read_error(pid, path, source))?;
        match address_space(&stat) {
            None => Err(TrackError::Gone { pid }),
            Some(space) if space == *self => Ok(()),
            Some(space) if space.process_start == self.process_start => Err(TrackError::Replaced { pid }),
            Some(_) => Err(TrackError::Gone { pid }),
        }
    }
}

/// Pages of `vma` that are not the process's own. Anonymous memory has none, and to ask would have the kernel look at each page itself,
/// not only at its entry in the page table: 1 ms for 64 MiB.
fn foreign(vma: &Vma) -> u64 {
    if is_private_file(vma) { pagemap::FILE } else { 0 }
}

/// The mappings of process `pid` by its `maps` or `smaps`.
pub(super) fn mappings(pid: i32, file: &str) -> Result<Vec<Vma>, TrackError> {
    let text = mappings_text(pid, file)?;
    vma::parse(&String::from_utf8_lossy(&text)).map_err(|line| TrackError::Unexpected {
        path: PathBuf::from(format!("/proc/{pid}/{file}")),
        content: line.to_owned(),
    })
}

/// The text of `maps` or `smaps` of process `pid`.
pub(super) fn mappings_text(pid: i32, file: &str) -> Result<Vec<u8>, TrackError> {
    let path = PathBuf::from(format!("/proc/{pid}/{file}"));
    std::fs::read(&path).map_err(|source| read_error(pid, path, source))
}

pub(super) fn read_error(pid: i32, path: PathBuf, source: std::io::Error) -> TrackError {
    if is_gone(&source) { TrackError::Gone { pid } } else { TrackError::Read { path, source } }
}

/// Whether the kernel knows guard pages. Comes before anything is done to the process.
fn probe(pid: i32) -> Result<bool, AttachError> {
    let path = PathBuf::from(format!("/proc/{pid}/pagemap"));
    let pagemap = Pagemap::open(&path).map_err(|source| match is_gone(&source) {
        true => AttachError::Gone { pid },
        false => AttachError::Read { path, source },
    })?;
    let page = Range { start: 0, end: 4096 };
    if pagemap.first_is(page, pagemap::GUARD).is_ok() {
        return Ok(true);
    }
    pagemap.first_is(page, pagemap::PRESENT).map(|_| false).map_err(|source| AttachError::Scan { pid, source })
}

fn find_obstacle(pid: i32) -> Result<Option<Obstacle>, (PathBuf, std::io::Error)> {
    obstacle::find(pid, By::Protection).map_err(|source| (PathBuf::from(format!("/proc/{pid}/fd")), source))
}

pub(super) fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Fields 22, 26, 27 and 28 of the text of `/proc/PID/stat`; none for a process that has ended.
/// Source: proc_pid_stat(5).
pub(super) fn address_space(stat: &str) -> Option<AddressSpace> {
    // The second field is the command in brackets, which may itself hold brackets and blanks.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    if ["Z", "X", "x"].contains(fields.first()?) {
        return None;
    }
    let field = |number: usize| fields.get(number - 3)?.parse().ok();
    Some(AddressSpace {
        process_start: field(22)?,
        code_start: field(26)?,
        code_end: field(27)?,
        stack_start: field(28)?,
    })
}
