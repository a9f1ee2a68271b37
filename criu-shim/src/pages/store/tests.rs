//! Tests of the page store on a real file system.

use super::super::{PAGE, PageRange};
use super::*;
use std::os::unix::fs::{FileExt, MetadataExt};
use tempfile::TempDir;

const PID: i32 = 17;

fn range(first: u64, count: u64) -> PageRange {
    PageRange::new(first * PAGE, count * PAGE).unwrap()
}

fn page(letter: u8) -> Vec<u8> {
    vec![letter; PAGE as usize]
}

/// A store that takes a letter for each page.
struct Fixture {
    directory: TempDir,
    writer: StoreWriter,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let writer = StoreWriter::create(directory.path(), PID).unwrap();
        Self { directory, writer }
    }

    fn with(mut self, first: u64, letters: &str) -> Self {
        let bytes: Vec<u8> = letters.bytes().flat_map(page).collect();
        self.writer.write(first * PAGE, &bytes).unwrap();
        self
    }

    fn with_zeros(mut self, first: u64, count: u64) -> Self {
        self.writer.zero(first * PAGE, count * PAGE).unwrap();
        self
    }

    fn finish(self, present: &[PageRange]) -> Result<(Finished, Stored), StoreError> {
        let stored = self.writer.finish(present)?;
        Ok((Finished { directory: self.directory }, stored))
    }
}

struct Finished {
    directory: TempDir,
}

impl Finished {
    fn store(&self) -> Store {
        Store::open(self.directory.path(), PID).unwrap()
    }

    /// What is at these pages; a dot for what is not in the store.
    fn letters(&self, first: u64, count: u64) -> String {
        let store = self.store();
        let data = std::fs::File::open(data_path(self.directory.path(), PID)).unwrap();
        let letter = |address: u64| {
            let holds = |extent: &&Extent| (extent.address..extent.address + extent.length).contains(&address);
            let Some(extent) = store.extents().iter().find(holds) else { return '.' };
            let mut bytes = page(0);
            data.read_exact_at(&mut bytes, extent.offset + (address - extent.address)).unwrap();
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a page is whole");
            bytes[0] as char
        };
        (first..first + count).map(|page| letter(page * PAGE)).collect()
    }

    fn blocks(&self) -> u64 {
        std::fs::metadata(data_path(self.directory.path(), PID)).unwrap().blocks()
    }
}

#[test]
fn a_page_that_comes_again_takes_the_place_of_the_former_one() {
    let fixture = Fixture::new().with(10, "abcd").with(11, "BC").with(13, "Def").with(8, "y");
    let (finished, stored) = fixture.finish(&[range(8, 1), range(10, 6)]).unwrap();
    assert_eq!(finished.letters(8, 9), "y.aBCDef.");
    assert_eq!(stored, Stored { data: 7 * PAGE, zero: 0, stale: 0, sums: None });
    assert_eq!(finished.store().length(), 7 * PAGE, "nothing lies in the file twice");
    assert_eq!(finished.store().extents().len(), 2);
}

#[test]
fn zeros_need_no_room_and_may_become_data_again() {
    let fixture = Fixture::new().with(0, "abcdef").with_zeros(1, 4).with(3, "D").with_zeros(9, 100);
    let (finished, stored) = fixture.finish(&[range(0, 6), range(9, 100)]).unwrap();
    assert_eq!(finished.letters(0, 10), "a..D.f....");
    assert_eq!(stored, Stored { data: 3 * PAGE, zero: 103 * PAGE, stale: 0, sums: None });
    assert_eq!(finished.blocks() * 512, 3 * PAGE);
}

#[test]
fn a_page_that_the_image_calls_lazy_and_nobody_sent_is_refused_by_its_address() {
    let fixture = || Fixture::new().with(4, "abc").with_zeros(7, 2);
    let missing = |present: &[PageRange]| match fixture().finish(present) {
        Err(StoreError::Missing { pid: PID, address }) => Some(address / PAGE),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    };
    assert_eq!(missing(&[range(4, 5)]), None);
    assert_eq!(missing(&[range(4, 6)]), Some(9));
    assert_eq!(missing(&[range(5, 1), range(2, 1), range(3, 3)]), Some(2));
    assert_eq!(missing(&[range(20, 1), range(4, 1)]), Some(20));
}

#[test]
fn what_was_refused_has_no_index() {
    let directory = tempfile::tempdir().unwrap();
    let writer = StoreWriter::create(directory.path(), PID).unwrap();
    writer.finish(&[range(0, 1)]).unwrap_err();
    assert!(matches!(Store::open(directory.path(), PID), Err(StoreError::Open { .. })));
}

#[test]
fn a_page_that_the_image_does_not_call_lazy_is_in_no_index() {
    let fixture = Fixture::new().with(0, "abcdefgh").with(20, "stale").with_zeros(40, 8);
    let (finished, stored) = fixture.finish(&[range(2, 3), range(7, 1), range(41, 1)]).unwrap();
    assert_eq!(finished.letters(0, 30), "..cde..h......................");
    assert_eq!(stored, Stored { data: 4 * PAGE, zero: PAGE, stale: 9 * PAGE, sums: None });
}

#[test]
fn an_empty_store_is_a_store() {
    let (finished, stored) = Fixture::new().finish(&[]).unwrap();
    assert_eq!(stored, Stored { data: 0, zero: 0, stale: 0, sums: None });
    assert!(finished.store().extents().is_empty());
    finished.store().used_up().remove().unwrap();
    assert_eq!(std::fs::read_dir(finished.directory.path()).unwrap().count(), 0);
}

#[test]
fn only_whole_pages_are_taken() {
    let mut fixture = Fixture::new();
    for (address, length) in [(1, PAGE), (0, 100), (0, 0)] {
        let written = fixture.writer.write(address, &vec![0; length as usize]);
        assert!(matches!(written, Err(StoreError::Pages { .. })));
        assert!(matches!(fixture.writer.zero(address, length), Err(StoreError::Pages { .. })));
    }
}

#[test]
fn a_store_is_never_made_over_another() {
    let fixture = Fixture::new();
    let again = StoreWriter::create(fixture.directory.path(), PID);
    assert!(matches!(again, Err(StoreError::Create { .. })));
}

#[test]
fn an_index_of_another_process_or_of_other_data_is_refused() {
    let (finished, _) = Fixture::new().with(0, "ab").finish(&[range(0, 2)]).unwrap();
    let directory = finished.directory.path();
    std::fs::copy(index_path(directory, PID), index_path(directory, 18)).unwrap();
    std::fs::copy(data_path(directory, PID), data_path(directory, 18)).unwrap();
    let reason = |pid| match Store::open(directory, pid) {
        Err(StoreError::Index { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(18), "it is that of another process");
    std::fs::OpenOptions::new().write(true).open(data_path(directory, PID)).unwrap().set_len(PAGE).unwrap();
    assert_eq!(reason(PID), "the data file has another length");
}

#[test]
fn memory_is_given_back_piece_by_piece() {
    let (finished, _) = Fixture::new().with(0, "abcd").finish(&[range(0, 4)]).unwrap();
    let store = finished.store();
    store.used_up().free(0..2 * PAGE).unwrap();
    assert_eq!(finished.blocks() * 512, 2 * PAGE);
    assert_eq!(store.length(), 4 * PAGE);
    let has = |offset, length| store.bytes(offset, length, &mut Vec::new()).is_ok();
    assert!(has(3 * PAGE, PAGE));
    assert!(!has(3 * PAGE, 2 * PAGE) && !has(u64::MAX, PAGE));
}

/// A store that lasts, which takes a letter for each page.
fn lasting() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let writer = StoreWriter::lasting(directory.path(), PID).unwrap();
    Fixture { directory, writer }
}

/// Changes one bit of the page at this place in the data file.
fn damage(directory: &Path, place: u64) {
    let data = std::fs::OpenOptions::new().read(true).write(true).open(data_path(directory, PID)).unwrap();
    let mut byte = [0];
    data.read_exact_at(&mut byte, place * PAGE + 100).unwrap();
    data.write_all_at(&[byte[0] ^ 1], place * PAGE + 100).unwrap();
}

fn is_damaged<T>(result: Result<T, StoreError>, place: u64) -> bool {
    matches!(result, Err(StoreError::Damaged { offset, .. }) if offset == place * PAGE)
}

#[test]
fn a_page_that_does_not_lie_there_as_it_came_is_noticed_before_anybody_is_told_that_it_landed() {
    let mut fixture = lasting().with(4, "abc").with(5, "B").with_zeros(6, 1).with(9, "xyz");
    fixture.writer.settle().unwrap();
    let mut fixture = fixture.with(5, "b");
    damage(fixture.directory.path(), 1);
    assert!(is_damaged(fixture.writer.settle(), 1));
}

#[test]
fn a_page_that_was_damaged_since_is_never_given_out() {
    let (finished, _) = lasting().with(0, "abcd").finish(&[range(0, 4)]).unwrap();
    let store = finished.store();
    assert!(store.lasts());
    damage(finished.directory.path(), 2);
    assert!(is_damaged(store.bytes(0, 4 * PAGE, &mut Vec::new()), 2));
    assert!(store.bytes(0, 2 * PAGE, &mut Vec::new()).is_ok() && store.bytes(3 * PAGE, PAGE, &mut Vec::new()).is_ok());
}

#[test]
fn a_page_that_was_damaged_is_made_into_no_other() {
    let fixture = lasting().with(0, "ab");
    damage(fixture.directory.path(), 1);
    assert!(is_damaged(fixture.writer.read(0, 2 * PAGE as usize), 1));
}

#[test]
fn sums_are_known_by_their_digest_and_every_page_by_its_sum() {
    let fixture = lasting().with(0, "abcdefgh").with_zeros(1, 2).with(20, "stale");
    let (finished, stored) = fixture.finish(&[range(0, 8)]).unwrap();
    let (directory, sums) = (finished.directory.path(), stored.sums.expect("sums"));
    sums.check(directory).unwrap();
    sums.compare(directory).expect("also what is in no index");
    damage(directory, 7);
    sums.check(directory).expect("pages are not looked at");
    assert!(is_damaged(sums.compare(directory), 7));
    let path = directory.join("17.sums");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(sums.check(directory), Err(StoreError::OtherSums { .. })));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(sums.check(directory), Err(StoreError::Open { .. })));
}

#[test]
fn what_has_come_so_far_is_shown_elsewhere_and_the_store_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut fixture = lasting().with(0, "abc").with_zeros(3, 1);
    fixture.writer.settle().unwrap();
    assert!(matches!(fixture.writer.show(&[range(0, 5)], directory.path()), Err(StoreError::Missing { .. })));
    fixture.writer.show(&[range(1, 3)], directory.path()).unwrap();
    let shown = Finished { directory };
    assert_eq!(shown.letters(0, 4), ".bc.");
    assert!(shown.store().bytes(PAGE, 2 * PAGE, &mut Vec::new()).is_ok());
    drop(shown);
    let (finished, _) = fixture.with(1, "B").with(3, "d").finish(&[range(0, 4)]).unwrap();
    assert_eq!(finished.letters(0, 4), "aBcd");
}
