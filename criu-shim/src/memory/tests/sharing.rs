use super::child::{Child, PAGE};
use crate::memory::{Range, ReadError, Sharing};

const PAGES: u64 = 64;

#[test]
fn what_was_forked_is_shared_until_it_is_written() {
    // Filled before the fork, so that both have it.
    let area = vec![7_u8; ((PAGES + 1) * PAGE) as usize];
    let start = (area.as_ptr() as u64).next_multiple_of(PAGE);
    let whole = Range { start, end: start + PAGES * PAGE };
    let mut child = Child::new();
    let sharing = Sharing::open(child.pid).unwrap();
    assert_eq!(sharing.shared(whole), u64::MAX);
    child.store(start + 3 * PAGE, 1);
    assert_eq!(sharing.shared(whole), !(1 << 3));
    assert_eq!(sharing.shared(Range { start: start + 2 * PAGE, end: start + 4 * PAGE }), 0b01);
}

#[test]
fn memory_of_one_process_alone_and_memory_that_is_not_there_is_not_shared() {
    let mut child = Child::new();
    let area = child.island(PAGES * PAGE);
    child.store(area.start + PAGE, 1);
    let sharing = Sharing::open(child.pid).unwrap();
    assert_eq!(sharing.shared(area), 0);
    child.end();
    assert_eq!(sharing.shared(area), 0);
}

#[test]
fn a_process_that_has_ended_has_no_page_table() {
    let mut child = Child::new();
    let pid = child.pid;
    child.end();
    assert!(matches!(Sharing::open(pid), Err(ReadError::Open { .. })));
}
