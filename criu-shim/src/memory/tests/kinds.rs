//! Kinds of memory: which of them are followed before the freeze, by whichever engine, and which are left to the dump.

use super::child::{Child, MIB};
use super::{Kind, kinds, pages};
use crate::memory::{AttachError, Obstacle, Range, Tracker};
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

#[test]
fn pages_of_a_private_file_mapping_that_were_written_are_left_to_the_dump() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(LENGTH).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let mut child = Child::new();
    let text = child.bytes(path.as_bytes_with_nul());
    let fd = child.good(libc::SYS_openat, &[libc::AT_FDCWD as u64, text, libc::O_RDWR as u64]);
    let area = mapped(&mut child, libc::MAP_PRIVATE, fd).unwrap();
    child.store(area.start, 1);
    check(&child, "a file", area, false);
}

#[test]
fn a_process_with_a_userfaultfd_of_its_own_is_refused_by_name() {
    const USER_MODE_ONLY: u64 = 1;
    let mut child = Child::new();
    child.good(libc::SYS_userfaultfd, &[USER_MODE_ONLY]);
    let refused = Tracker::attach(child.pid);
    assert!(matches!(refused, Err(AttachError::Obstacle { source: Obstacle::Userfaultfd { .. }, .. })), "{refused:?}");
}
