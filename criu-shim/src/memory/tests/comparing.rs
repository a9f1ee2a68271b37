use super::child::{Child, MIB, PAGE, wait_for};
use super::{NONE, pages};
use crate::memory::{AttachError, Comparer, Engine, Injector, LastLook, MemoryReader, Range, TrackError};

/// A round: what was returned of `area`, as numbers of its pages, all of it read.
fn round(comparer: &mut Comparer, area: Range) -> Vec<u64> {
    comparer.wake();
    let written = comparer.take_written().unwrap().unwrap();
    read(comparer, area, &written);
    pages(&written, area)
}

fn read(comparer: &Comparer, area: Range, ranges: &[Range]) {
    let reader = MemoryReader::open(comparer.pid).unwrap().noting(Some(comparer.sent()));
    let mut buffer = vec![0; MIB as usize];
    for range in ranges.iter().filter(|range| range.start < area.end && area.start < range.end) {
        let mut rest = *range;
        while reader.read_next(&mut rest, &mut buffer).unwrap().is_some() {}
    }
}

#[test]
fn what_differs_is_returned_until_it_is_read() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    for page in [0, 1, 7, 511] {
        child.store(area.start + page * PAGE, 1);
    }
    let mut comparer = Comparer::attach(child.pid).unwrap();
    assert_eq!(pages(&comparer.take_written().unwrap().unwrap(), area), [0, 1, 7, 511]);
    assert_eq!(round(&mut comparer, area), [0, 1, 7, 511]);
    assert_eq!(round(&mut comparer, area), NONE);
    child.store(area.start + 7 * PAGE, 2);
    child.good(libc::SYS_uname, &[area.start + 9 * PAGE]);
    assert_eq!(round(&mut comparer, area), [7, 9]);
    child.good(libc::SYS_madvise, &[area.start, PAGE, libc::MADV_DONTNEED as u64]);
    let look = comparer.last_look().unwrap();
    assert_eq!((pages(&look.written, area), pages(&look.present, area)), (vec![], vec![1, 7, 9, 511]));
    assert!(look.covered.contains(&area));
}

#[test]
fn what_counts_is_what_was_read_and_not_what_was_compared() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.store(area.start, 1);
    let mut comparer = Comparer::attach(child.pid).unwrap();
    let written = comparer.take_written().unwrap().unwrap();
    // Between the look and the reading it is another page, and afterwards again the one that was looked at.
    child.store(area.start, 2);
    read(&comparer, area, &written);
    child.store(area.start, 1);
    assert_eq!(pages(&comparer.last_look().unwrap().written, area), [0]);
}

#[test]
fn the_next_look_waits_for_longer_than_the_last_one_took() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.fill(area, 1);
    let mut comparer = Comparer::attach(child.pid).unwrap();
    assert!(comparer.take_written().unwrap().is_some());
    assert_eq!(comparer.take_written().unwrap(), None);
    assert_eq!(pages(&comparer.last_look().unwrap().written, area).len(), 512, "the last look is one all the same");
    comparer.wake();
    (0..2).for_each(|_| assert!(comparer.take_written().unwrap().is_some(), "near the freeze none waits"));
}

#[test]
fn another_program_has_nothing_that_was_sent_and_an_ended_one_no_memory() {
    let mut child = Child::new();
    let mut comparer = Comparer::attach(child.pid).unwrap();
    let list = child.words(&[c"/bin/sleep".as_ptr() as u64, c"600".as_ptr() as u64, 0]);
    let name = std::fs::read_link(format!("/proc/{}/exe", child.pid)).unwrap();
    child.tell(libc::SYS_execve, &[c"/bin/sleep".as_ptr() as u64, list, 0]);
    let exe = format!("/proc/{}/exe", child.pid);
    wait_for(|| std::fs::read_link(&exe).unwrap() != name);
    child.wait_in(libc::SYS_clock_nanosleep);
    assert!(matches!(comparer.take_written(), Err(TrackError::Replaced { .. })));
    assert_eq!(comparer.last_look().unwrap(), LastLook::default());
    child.end();
    assert!(matches!(comparer.take_written(), Err(TrackError::Gone { .. })));
    assert!(matches!(Engine::attach(child.pid, &Injector::Here), Err(AttachError::Gone { .. })));
}

#[test]
fn a_process_that_write_protection_refuses_is_read_and_compared_and_the_refusal_is_the_reason() {
    let mut child = Child::new();
    let attached = Engine::attach(child.pid, &Injector::Here).unwrap();
    assert!(matches!(attached.engine, Engine::WriteProtect(_)) && attached.instead.is_empty());
    drop(attached);
    let directory = std::env::current_dir().unwrap();
    let path = std::ffi::CString::new(directory.join("Cargo.toml").to_string_lossy().as_bytes()).unwrap();
    let text = child.bytes(path.as_bytes_with_nul());
    if child.call(libc::SYS_openat, &[libc::AT_FDCWD as u64, text, libc::O_DIRECT as u64]) < 0 {
        return;
    }
    let mut attached = Engine::attach(child.pid, &Injector::Here).unwrap();
    assert!(matches!(attached.instead[..], [AttachError::Obstacle { .. }, _]), "{:?}", attached.instead);
    assert!(matches!(attached.engine, Engine::ReadAndCompare(_)));
    assert!(attached.engine.take_written().unwrap().is_some_and(|written| !written.is_empty()));
}
