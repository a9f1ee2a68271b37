//! Kinds of memory: which of them are followed before the freeze, by whichever engine, and which are left to the dump.

use super::child::{Child, MIB, PAGE};
use super::{Kind, NONE, kinds, pages};
use crate::memory::{AttachError, Injector, Obstacle, Range, Tracker};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

const LENGTH: u64 = 2 * MIB;

/// Whether `area`, of which something is written, is followed: sent, and covered at the end.
fn is_followed(child: &Child, kind: Kind, area: Range) -> bool {
    let mut engine = kind.attach(child.pid);
    let written = engine.take_written().unwrap().unwrap();
    let covered = engine.last_look().unwrap().covered.iter().any(|range| range.contains(&area));
    assert_eq!(!pages(&written, area).is_empty(), covered, "{kind:?} sends what it says to have, and nothing else");
    covered
}

fn check(child: &Child, what: &str, area: Range, followed: bool) {
    for kind in kinds() {
        assert_eq!(is_followed(child, kind, area), followed, "{what}, {kind:?}");
    }
}

/// A mapping of another kind; none where this machine has none of those.
fn mapped(child: &mut Child, flags: i32, fd: u64) -> Option<Range> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let start = child.call(libc::SYS_mmap, &[0, LENGTH, protection, flags as u64, fd, 0]);
    let start = u64::try_from(start).ok()?;
    Some(Range { start, end: start + LENGTH })
}

#[test]
fn advice_about_forks_and_dumps_and_huge_pages_changes_nothing() {
    let advices = [libc::MADV_DONTFORK, libc::MADV_WIPEONFORK, libc::MADV_DONTDUMP, libc::MADV_HUGEPAGE];
    for advice in advices {
        let mut child = Child::new();
        let area = child.island(LENGTH);
        child.call(libc::SYS_madvise, &[area.start, LENGTH, advice as u64]);
        child.store(area.start, 1);
        check(&child, &format!("advice {advice}"), area, true);
    }
}

#[test]
fn what_is_locked_shared_or_out_of_the_process_reach_is_left_to_the_dump() {
    let mut child = Child::new();
    let area = child.island(LENGTH);
    child.store(area.start, 1);
    check(&child, "private", area, true);
    child.good(libc::SYS_mlock, &[area.start, LENGTH]);
    check(&child, "locked", area, false);
    child.good(libc::SYS_munlock, &[area.start, LENGTH]);
    child.good(libc::SYS_mprotect, &[area.start, LENGTH, libc::PROT_NONE as u64]);
    check(&child, "without access", area, false);

    let shared = mapped(&mut child, libc::MAP_SHARED | libc::MAP_ANONYMOUS, u64::MAX).unwrap();
    child.store(shared.start, 1);
    check(&child, "shared", shared, false);
}

#[test]
fn huge_pages_of_hugetlbfs_are_left_to_the_dump() {
    for sharing in [libc::MAP_PRIVATE, libc::MAP_SHARED] {
        let mut child = Child::new();
        // A machine without any has nothing to leave.
        let Some(area) = mapped(&mut child, sharing | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, u64::MAX) else {
            return;
        };
        child.store(area.start, 1);
        check(&child, "hugetlb", area, false);
    }
}

/// A private mapping of a file full of sevens, of which `written` pages have been.
pub(super) fn library(child: &mut Child, written: &[u64]) -> (tempfile::NamedTempFile, Range) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vec![7; LENGTH as usize]).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let text = child.bytes(path.as_bytes_with_nul());
    let fd = child.good(libc::SYS_openat, &[libc::AT_FDCWD as u64, text, libc::O_RDWR as u64]);
    let area = mapped(child, libc::MAP_PRIVATE, fd).unwrap();
    written.iter().for_each(|page| child.store(area.start + page * PAGE, 1));
    (file, area)
}

#[test]
fn pages_of_a_private_file_mapping_that_were_written_are_followed_by_protection_alone() {
    let mut child = Child::new();
    let (_file, area) = library(&mut child, &[0]);
    for kind in kinds() {
        assert_eq!(is_followed(&child, kind, area), matches!(kind, Kind::WriteProtect), "{kind:?}");
    }
}

#[test]
fn of_a_file_mapping_only_the_pages_of_the_process_itself_are_sent() {
    let mut child = Child::new();
    let (_file, area) = library(&mut child, &[2, 5]);
    // The file's own pages are mapped too.
    child.good(libc::SYS_madvise, &[area.start, LENGTH, libc::MADV_POPULATE_READ as u64]);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [2, 5]);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), NONE);
    // Again, for the first time, and where nothing was mapped.
    child.good(libc::SYS_madvise, &[area.start + 9 * PAGE, PAGE, libc::MADV_DONTNEED as u64]);
    for page in [5, 7, 9] {
        child.store(area.start + page * PAGE, 2);
    }
    let look = tracker.last_look().unwrap();
    assert_eq!((pages(&look.written, area), pages(&look.present, area)), (vec![5, 7, 9], vec![2, 5, 7, 9]));
    assert!(look.covered.iter().any(|range| range.contains(&area)));
}

#[test]
fn a_file_mapping_of_which_nothing_was_written_is_left_alone_until_it_is() {
    let mut child = Child::new();
    let (_file, area) = library(&mut child, &[]);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    let covered = |tracker: &mut Tracker| {
        let look = tracker.last_look().unwrap();
        look.covered.iter().any(|range| range.contains(&area))
    };
    assert!(!covered(&mut tracker));
    child.store(area.start, 1);
    assert!(!covered(&mut tracker), "it is dumped");
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [0]);
    assert!(covered(&mut tracker));
}

#[test]
fn what_a_process_has_thrown_away_of_a_file_mapping_is_not_given_back_to_it() {
    let mut child = Child::new();
    let (_file, area) = library(&mut child, &[2, 5]);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [2, 5]);
    child.good(libc::SYS_madvise, &[area.start + 2 * PAGE, PAGE, libc::MADV_DONTNEED as u64]);
    let doubtful = tracker.last_look().unwrap();
    let covered = doubtful.covered.iter().any(|range| range.contains(&area));
    assert!(!covered || pages(&doubtful.present, area) == [5], "it holds what the file does");
    // Once it is read, nothing is in doubt.
    child.good(libc::SYS_madvise, &[area.start, LENGTH, libc::MADV_POPULATE_READ as u64]);
    let look = tracker.last_look().unwrap();
    assert!(look.covered.iter().any(|range| range.contains(&area)));
    assert_eq!(pages(&look.present, area), [5]);
    child.store(area.start + 2 * PAGE, 3);
    assert_eq!(pages(&tracker.last_look().unwrap().written, area), [2]);
}

#[test]
fn a_process_with_a_userfaultfd_of_its_own_is_refused_by_name() {
    const USER_MODE_ONLY: u64 = 1;
    let mut child = Child::new();
    child.good(libc::SYS_userfaultfd, &[USER_MODE_ONLY]);
    let refused = Tracker::attach(child.pid, &Injector::Here);
    assert!(matches!(refused, Err(AttachError::Obstacle { source: Obstacle::Userfaultfd { .. }, .. })), "{refused:?}");
}
