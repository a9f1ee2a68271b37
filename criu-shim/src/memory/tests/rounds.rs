use super::child::{Child, MIB, PAGE};
use super::{NONE, pages};
use crate::memory::{Injector, LastLook, Range, TrackError, Tracker};

fn is_covered(look: &LastLook, area: Range) -> bool {
    look.covered.iter().any(|range| range.contains(&area))
}

fn all(area: Range) -> Vec<u64> {
    (0..area.len() / PAGE).collect()
}

#[test]
fn the_first_round_returns_what_has_content_and_the_next_nothing() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    for page in [0, 1, 7, 511] {
        child.store(area.start + page * PAGE, 1);
    }
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [0, 1, 7, 511]);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), NONE);
    let look = tracker.last_look().unwrap();
    assert!(is_covered(&look, area));
    assert_eq!(pages(&look.written, area), NONE);
    assert_eq!(pages(&look.present, area), [0, 1, 7, 511]);
}

#[test]
fn a_page_that_is_written_is_returned_once_and_no_other() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    assert_eq!(pages(&tracker.take_written().unwrap(), area), all(area));
    child.store(area.start + 5 * PAGE + 9, 2);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [5]);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), NONE);
    child.store(area.start + 6 * PAGE, 2);
    // The last look takes nothing away.
    assert_eq!(pages(&tracker.last_look().unwrap().written, area), [6]);
    assert_eq!(pages(&tracker.last_look().unwrap().written, area), [6]);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [6]);
}

#[test]
fn a_write_by_the_kernel_is_seen_too() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    child.good(libc::SYS_uname, &[area.start + 3 * PAGE]);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [3]);
}

#[test]
fn zeroes_that_were_only_read_are_not_returned_until_written() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    // Reading the file's memory maps the page of zeroes.
    child.peek(area.start, area.len() as usize);
    child.store(area.start, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [0]);
    child.store(area.start + PAGE, 1);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [1]);
    assert_eq!(pages(&tracker.last_look().unwrap().present, area), [0, 1]);
}

#[test]
fn a_new_mapping_is_returned_whole_by_the_next_round() {
    let mut child = Child::new();
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    let area = child.island(2 * MIB);
    child.store(area.start + 3 * PAGE, 1);
    assert!(!is_covered(&tracker.last_look().unwrap(), area));
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [3]);
    assert!(is_covered(&tracker.last_look().unwrap(), area));
}

#[test]
fn a_mapping_in_the_place_of_another_is_not_taken_for_it() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    child.good(libc::SYS_munmap, &[area.start, area.len()]);
    child.map(area.start, area.len());
    child.store(area.start + 4 * PAGE, 2);
    assert!(!is_covered(&tracker.last_look().unwrap(), area));
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [4]);
    let look = tracker.last_look().unwrap();
    assert!(is_covered(&look, area));
    assert_eq!(pages(&look.present, area), [4]);
}

#[test]
fn a_mapping_that_was_moved_is_returned_whole() {
    let mut child = Child::new();
    let (area, place) = (child.island(2 * MIB), child.island(2 * MIB));
    child.fill(area, 1);
    child.fill(place, 3);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    child.good(libc::SYS_mremap, &[area.start, area.len(), area.len(), flags, place.start]);
    child.store(place.start, 2);
    assert!(!is_covered(&tracker.last_look().unwrap(), place));
    assert_eq!(pages(&tracker.take_written().unwrap(), place), all(place));
    assert!(is_covered(&tracker.last_look().unwrap(), place));
}

#[test]
fn a_mapping_that_has_grown_in_its_place_is_tracked_after_one_more_round() {
    let mut child = Child::new();
    let room = child.island(4 * MIB);
    let area = Range { end: room.start + 2 * MIB, ..room };
    child.fill(area, 1);
    child.good(libc::SYS_munmap, &[area.end, room.end - area.end]);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    assert_eq!(child.good(libc::SYS_mremap, &[area.start, area.len(), room.len(), 0]), area.start);
    child.store(area.end, 2);
    assert!(!is_covered(&tracker.last_look().unwrap(), area));
    assert!(pages(&tracker.take_written().unwrap(), room).contains(&(area.len() / PAGE)));
    assert!(is_covered(&tracker.last_look().unwrap(), room));
}

#[test]
fn a_mapping_that_was_split_and_merged_is_still_tracked() {
    let mut child = Child::new();
    let area = child.island(4 * MIB);
    child.fill(area, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    let middle = area.start + 2 * MIB;
    child.good(libc::SYS_mprotect, &[middle, PAGE, libc::PROT_NONE as u64]);
    child.store(area.start, 2);
    let look = tracker.last_look().unwrap();
    assert!(is_covered(&look, Range { end: middle, ..area }));
    assert!(!is_covered(&look, Range { start: middle, end: middle + PAGE }));
    assert_eq!(pages(&look.written, area), [0]);
    child.good(libc::SYS_mprotect, &[middle, PAGE, (libc::PROT_READ | libc::PROT_WRITE) as u64]);
    child.store(middle, 2);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [0, 512]);
    assert!(is_covered(&tracker.last_look().unwrap(), area));
}

#[test]
fn memory_that_was_given_back_is_not_present_any_more() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    child.good(libc::SYS_madvise, &[area.start, 4 * PAGE, libc::MADV_DONTNEED as u64]);
    child.store(area.start + 2 * PAGE, 2);
    let look = tracker.last_look().unwrap();
    assert!(is_covered(&look, area));
    assert_eq!(pages(&look.written, area), [2]);
    assert_eq!(pages(&look.present, area)[..2], [2, 4]);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [2]);
}

#[test]
fn a_guard_page_leaves_its_mapping_to_the_plain_dump() {
    const MADV_GUARD_INSTALL: u64 = 102;
    let mut child = Child::new();
    let (area, other) = (child.island(2 * MIB), child.island(2 * MIB));
    child.store(area.start + PAGE, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    if child.call(libc::SYS_madvise, &[area.start, PAGE, MADV_GUARD_INSTALL]) < 0 {
        return;
    }
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [1]);
    let look = tracker.last_look().unwrap();
    assert!(!is_covered(&look, area));
    assert!(is_covered(&look, other));
}

#[test]
fn huge_pages_are_tracked_page_by_page_once_written() {
    let mut child = Child::new();
    let area = child.island(6 * MIB);
    child.good(libc::SYS_madvise, &[area.start, area.len(), libc::MADV_HUGEPAGE as u64]);
    let aligned =
        Range { start: area.start.next_multiple_of(2 * MIB), end: area.start.next_multiple_of(2 * MIB) + 2 * MIB };
    child.store(aligned.start, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    assert!(pages(&tracker.take_written().unwrap(), aligned).contains(&0));
    assert_eq!(pages(&tracker.take_written().unwrap(), aligned), NONE);
    child.store(aligned.start + 9 * PAGE, 2);
    assert!(pages(&tracker.last_look().unwrap().written, aligned).contains(&9));
    assert!(pages(&tracker.take_written().unwrap(), aligned).contains(&9));
}

#[test]
fn a_fork_is_not_tracked_and_does_not_disturb() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    let forked = child.fork();
    child.reap(forked);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), NONE);
    child.store(area.start + PAGE, 2);
    assert_eq!(pages(&tracker.take_written().unwrap(), area), [1]);
    assert!(is_covered(&tracker.last_look().unwrap(), area));
}

#[test]
fn nothing_is_covered_after_another_program_was_executed() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    child.execute_another();
    assert_eq!(tracker.last_look().unwrap(), LastLook::default());
    assert!(matches!(tracker.take_written(), Err(TrackError::Replaced { .. })));
    assert!(Tracker::attach(child.pid, &Injector::Here).unwrap().take_written().is_ok());
}

#[test]
fn a_process_that_has_ended_is_gone() {
    let mut child = Child::new();
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    child.end();
    assert!(matches!(tracker.take_written(), Err(TrackError::Gone { .. })));
    assert!(matches!(tracker.last_look(), Err(TrackError::Gone { .. })));
}

#[test]
fn direct_io_ends_the_tracking() {
    let mut child = Child::new();
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    tracker.take_written().unwrap();
    let directory = std::env::current_dir().unwrap();
    let path = std::ffi::CString::new(directory.join("Cargo.toml").to_string_lossy().as_bytes()).unwrap();
    let text = child.bytes(path.as_bytes_with_nul());
    if child.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, text, libc::O_DIRECT as u64]) < 0 {
        return;
    }
    assert!(matches!(tracker.take_written(), Err(TrackError::Obstacle { .. })));
    assert!(matches!(tracker.take_written(), Err(TrackError::Lost { .. })));
    assert!(matches!(tracker.last_look(), Err(TrackError::Lost { .. })));
    assert!(matches!(Tracker::attach(child.pid, &Injector::Here), Err(crate::memory::AttachError::Obstacle { .. })));
}
