//! Soft-dirty marks, on kernels that keep any: what loses or makes up a mark may not lose a page.

use super::child::{Child, MIB, PAGE};
use super::{NONE, pages, soft_dirty};
use crate::memory::{AttachError, Engine, Injector, LastLook, MemoryReader, Obstacle, Range, SoftDirty, TrackError};
use std::path::Path;

/// A process that is followed, and what of it was sent.
struct Followed {
    child: Child,
    engine: SoftDirty,
}

impl Followed {
    /// None where the kernel keeps no marks.
    fn new() -> Option<Self> {
        let child = Child::without_heap();
        let engine = soft_dirty(&child)?;
        Some(Self { child, engine })
    }

    /// A round: what was returned of `area`, as numbers of its pages. All of it is sent.
    fn round(&mut self, area: Range) -> Vec<u64> {
        self.engine.wake();
        let written = self.engine.take_written().unwrap().unwrap();
        let reader = MemoryReader::open(self.child.pid).unwrap().noting(Some(self.engine.sent()));
        let mut buffer = vec![0; MIB as usize];
        for range in &written {
            let mut rest = *range;
            while reader.read_next(&mut rest, &mut buffer).unwrap().is_some() {}
        }
        pages(&written, area)
    }

    /// The last look: what of `area` differs, and what has content.
    fn last(&mut self, area: Range) -> (Vec<u64>, Vec<u64>) {
        let look = self.engine.last_look().unwrap();
        assert!(look.covered.iter().any(|range| range.contains(&area)), "{look:x?}");
        (pages(&look.written, area), pages(&look.present, area))
    }

    fn clear_marks(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.pid), "4").unwrap();
    }
}

/// Runs a test where the kernel keeps marks.
fn with(test: impl FnOnce(Followed)) {
    if let Some(followed) = Followed::new() {
        test(followed);
    }
}

fn all(area: Range) -> Vec<u64> {
    (0..area.len() / PAGE).collect()
}

#[test]
fn the_first_look_compares_everything_and_those_after_it_what_is_marked() {
    with(|mut followed| {
        let area = followed.child.island(4 * MIB);
        followed.child.fill(area, 1);
        assert_eq!(followed.round(area), all(area));
        followed.child.store(area.start + 5 * PAGE, 2);
        assert_eq!(followed.round(area), [5]);
        assert_eq!(followed.round(area), NONE);
        // The child's stack is written too.
        assert!(followed.engine.bytes() < MIB, "{}", followed.engine.bytes());
        followed.child.store(area.start + 6 * PAGE, 2);
        assert_eq!(followed.last(area), (vec![6], all(area)));
        // The last look takes nothing away.
        assert_eq!(followed.last(area).0, [6]);
        assert_eq!(followed.round(area), [6]);
        assert_eq!(followed.last(area).0, NONE);
    });
}

#[test]
fn a_page_that_is_written_between_a_look_and_its_reading_is_looked_at_again() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.store(area.start, 1);
        followed.engine.take_written().unwrap();
        // Another when it is read, and the one that was looked at afterwards.
        followed.child.store(area.start, 2);
        let reader = MemoryReader::open(followed.child.pid).unwrap().noting(Some(followed.engine.sent()));
        let mut rest = Range { start: area.start, end: area.start + PAGE };
        reader.read_next(&mut rest, &mut vec![0; PAGE as usize]).unwrap();
        followed.child.store(area.start, 1);
        assert_eq!(followed.last(area).0, [0]);
    });
}

#[test]
fn where_much_is_marked_the_marks_are_cleared_and_everything_is_compared() {
    with(|mut followed| {
        let area = followed.child.island(4 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        followed.child.fill(area, 2);
        assert_eq!(followed.round(area), all(area));
        assert_eq!(followed.engine.bytes(), area.len() + followed.engine.bytes() % MIB, "all of it is marked");
        followed.child.store(area.start + 3 * PAGE, 3);
        assert_eq!(followed.round(area), [3]);
        assert!(followed.engine.bytes() < MIB, "{}", followed.engine.bytes());
        followed.child.store(area.start + 4 * PAGE, 3);
        assert_eq!(followed.last(area).0, [4]);
    });
}

#[test]
fn a_page_that_was_thrown_away_and_read_again_has_no_mark_and_is_sent_as_zeroes() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        followed.child.good(libc::SYS_madvise, &[area.start, 4 * PAGE, libc::MADV_DONTNEED as u64]);
        // Reading maps the page of zeroes, at two of them.
        followed.child.peek(area.start + PAGE, 2 * PAGE as usize);
        let (written, present) = followed.last(area);
        assert_eq!(written, [1, 2]);
        assert!(!present.contains(&0) && !present.contains(&3) && present.contains(&1));
        assert_eq!(followed.round(area), [1, 2]);
        assert_eq!(followed.last(area).0, NONE);
    });
}

#[test]
fn another_mapping_in_the_place_of_one_and_a_mapping_that_moved_are_compared() {
    with(|mut followed| {
        let (area, place) = (followed.child.island(2 * MIB), followed.child.island(2 * MIB));
        followed.child.fill(area, 1);
        followed.child.fill(place, 2);
        followed.round(area);
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
        followed.child.good(libc::SYS_mremap, &[area.start, area.len(), area.len(), flags, place.start]);
        followed.child.map(area.start, area.len());
        followed.child.store(area.start + 4 * PAGE, 3);
        assert_eq!(followed.last(place), (all(place), all(place)));
        assert_eq!(followed.last(area), (vec![4], vec![4]));
        assert_eq!(followed.round(place), all(place));
        assert_eq!(followed.last(place).0, NONE);
    });
}

#[test]
fn what_grows_shrinks_and_is_unmapped_in_part_is_compared() {
    with(|mut followed| {
        let room = followed.child.island(4 * MIB);
        let area = Range { end: room.start + 2 * MIB, ..room };
        followed.child.fill(area, 1);
        followed.child.good(libc::SYS_munmap, &[area.end, room.end - area.end]);
        followed.round(area);
        let grown = followed.child.good(libc::SYS_mremap, &[area.start, area.len(), room.len(), 0]);
        assert_eq!(grown, room.start);
        followed.child.store(area.end + PAGE, 2);
        assert_eq!(followed.last(room).0, [area.len() / PAGE + 1]);
        followed.child.good(libc::SYS_munmap, &[room.start + MIB, PAGE]);
        let rest = Range { start: room.start + MIB + PAGE, ..room };
        assert_eq!(followed.last(rest).0, [MIB / PAGE], "the same page, from another beginning");
        followed.round(rest);
        assert_eq!(followed.last(rest).0, NONE);
    });
}

#[test]
fn memory_that_loses_its_access_and_gets_it_back_keeps_its_marks() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        let access = [libc::PROT_READ, libc::PROT_READ | libc::PROT_WRITE];
        followed.child.store(area.start + PAGE, 2);
        for protection in access {
            followed.child.good(libc::SYS_mprotect, &[area.start, area.len(), protection as u64]);
        }
        // The kernel may make pages writable again without waiting for a fault: not those whose marks are cleared.
        followed.child.store(area.start + 2 * PAGE, 2);
        assert_eq!(followed.last(area).0, [1, 2]);
    });
}

#[test]
fn huge_pages_are_marked_whole_and_what_was_split_off_them_stays_marked() {
    with(|mut followed| {
        let area = followed.child.island(6 * MIB);
        let start = area.start.next_multiple_of(2 * MIB);
        let huge = Range { start, end: start + 2 * MIB };
        followed.child.good(libc::SYS_madvise, &[area.start, area.len(), libc::MADV_HUGEPAGE as u64]);
        followed.child.fill(huge, 1);
        followed.round(huge);
        followed.child.store(huge.start + 9 * PAGE, 2);
        assert_eq!(followed.last(huge).0, [9]);
        // A part of it is thrown away, for which the kernel splits it.
        followed.child.good(libc::SYS_madvise, &[huge.start + MIB, PAGE, libc::MADV_DONTNEED as u64]);
        followed.child.store(huge.start + 10 * PAGE, 2);
        let (written, present) = followed.last(huge);
        assert_eq!(written, [9, 10]);
        assert!(!present.contains(&256) && present.contains(&255));
        // All of it is thrown away, and read: the kernel may map its huge page of zeroes.
        followed.child.good(libc::SYS_madvise, &[huge.start, huge.len(), libc::MADV_DONTNEED as u64]);
        followed.child.peek(huge.start, huge.len() as usize);
        let (written, present) = followed.last(huge);
        assert_eq!(written, present, "whatever is there is zeroes, and was sent as something else");
    });
}

#[test]
fn a_guard_page_leaves_its_mapping_to_the_plain_dump() {
    const MADV_GUARD_INSTALL: u64 = 102;
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        if followed.child.call(libc::SYS_madvise, &[area.start, PAGE, MADV_GUARD_INSTALL]) < 0 {
            return;
        }
        let look = followed.engine.last_look().unwrap();
        assert!(!look.covered.iter().any(|range| range.contains(&area)), "{look:x?}");
    });
}

#[test]
fn what_is_shared_with_a_forked_process_is_compared_until_it_is_its_own() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        let grandchild = followed.child.fork();
        // It is another address space: its writes are not this one's.
        followed.child.store(area.start + PAGE, 2);
        assert_eq!(followed.last(area).0, [1]);
        assert_eq!(followed.round(area), [1]);
        followed.child.reap(grandchild);
        followed.child.store(area.start + 2 * PAGE, 2);
        assert_eq!(followed.last(area).0, [2]);
    });
}

#[test]
fn a_write_by_the_kernel_is_marked_too() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        followed.child.good(libc::SYS_uname, &[area.start + 3 * PAGE]);
        assert_eq!(followed.round(area), [3]);
    });
}

#[test]
fn marks_that_somebody_else_clears_are_missed_and_everything_is_compared() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        followed.child.store(area.start + PAGE, 2);
        followed.round(area);
        followed.child.store(area.start + 2 * PAGE, 2);
        followed.clear_marks();
        // The mark of 2 is gone, but so is that of 1, which was seen before.
        assert_eq!(followed.last(area).0, [2]);
        let missed = followed.engine.take_written();
        assert!(matches!(missed, Err(TrackError::Cleared { .. })), "{missed:?}");
        let mut engine = Engine::SoftDirty(Box::new(followed.engine));
        engine.compare_from_now_on(followed.child.pid).unwrap();
        engine.wake();
        assert_eq!(pages(&engine.take_written().unwrap().unwrap(), area), [2], "what was sent is still known");
    });
}

#[test]
fn after_a_look_that_was_broken_off_everything_is_compared() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        followed.child.store(area.start + PAGE, 2);
        followed.round(area);
        followed.clear_marks();
        assert!(followed.engine.take_written().is_err());
        followed.child.store(area.start + 2 * PAGE, 2);
        followed.clear_marks();
        assert_eq!(followed.last(area).0, [2]);
    });
}

#[test]
fn a_process_that_clears_its_marks_itself_is_left_alone() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        let path = followed.child.bytes(c"/proc/self/clear_refs".to_bytes_with_nul());
        followed.child.good(libc::SYS_openat, &[libc::AT_FDCWD as u64, path, libc::O_WRONLY as u64]);
        let refused = SoftDirty::attach(followed.child.pid);
        let is_named =
            |error: &AttachError| matches!(error, AttachError::Obstacle { source: Obstacle::Marks { .. }, .. });
        assert!(refused.as_ref().is_err_and(is_named), "{refused:?}");
        // One that begins to later is seen before its marks are cleared once more.
        followed.child.fill(area, 2);
        followed.round(area);
        let refused = followed.engine.take_written();
        assert!(matches!(refused, Err(TrackError::Obstacle { .. })), "{refused:?}");
    });
}

#[test]
fn another_program_has_nothing_that_was_sent_and_an_ended_one_no_memory() {
    with(|mut followed| {
        let area = followed.child.island(2 * MIB);
        followed.child.fill(area, 1);
        followed.round(area);
        followed.child.execute_another();
        assert_eq!(followed.engine.last_look().unwrap(), LastLook::default());
        assert!(matches!(followed.engine.take_written(), Err(TrackError::Replaced { .. })));
        assert!(SoftDirty::attach(followed.child.pid).unwrap().take_written().is_ok());
        let pid = followed.child.pid;
        followed.child.end();
        assert!(matches!(followed.engine.take_written(), Err(TrackError::Gone { .. })));
        assert!(matches!(SoftDirty::attach(pid), Err(AttachError::Gone { .. })));
    });
}

#[test]
fn a_process_without_a_free_descriptor_is_followed_by_marks_where_there_are_any() {
    let mut child = Child::new();
    let limit = child.words(&[0, 0]);
    child.good(libc::SYS_prlimit64, &[0, u64::from(libc::RLIMIT_NOFILE), limit, 0]);
    let attached = Engine::attach(child.pid, &Injector::Here).unwrap();
    let instead = attached.instead;
    match (attached.engine, &instead[..]) {
        (Engine::SoftDirty(_), [AttachError::NoUserfaultfd { .. }]) => {
            assert!(Path::new("/proc/self/clear_refs").exists())
        }
        (Engine::ReadAndCompare(_), [AttachError::NoUserfaultfd { .. }, AttachError::NoMarks]) => {}
        other => panic!("{other:?}"),
    }
}
