//! Tests of what an address space lacks, against a map of single pages.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn extent(address: u64, pages: u64, offset: u64) -> Extent {
    Extent { address: address * PAGE, length: pages * PAGE, offset: offset * PAGE }
}

fn chunk(address: u64, pages: u64, offset: u64) -> Chunk {
    Chunk { address: address * PAGE, length: pages * PAGE, offset: offset * PAGE }
}

fn pages(first: u64, count: u64) -> Range<u64> {
    first * PAGE..(first + count) * PAGE
}

/// Page number to page number in the data file.
fn table(missing: &Missing) -> BTreeMap<u64, u64> {
    let mut table = BTreeMap::new();
    for (&start, piece) in &missing.by_address {
        for page in 0..(piece.end - start) / PAGE {
            table.insert(start / PAGE + page, piece.offset / PAGE + page);
        }
        assert_eq!(missing.by_offset.get(&piece.offset), Some(&start), "both orders name the same pieces");
    }
    assert_eq!(missing.by_offset.len(), missing.by_address.len(), "both orders name the same pieces");
    table
}

#[test]
fn the_fill_follows_the_data_file_and_not_the_addresses() {
    let mut missing = Missing::of(&[extent(10, 4, 6), extent(20, 6, 0)]);
    assert_eq!(missing.first(4 * PAGE), Some(chunk(20, 4, 0)));
    missing.remove(pages(20, 4));
    assert_eq!(missing.first(4 * PAGE), Some(chunk(24, 2, 4)));
    assert_eq!(missing.lowest_offset(), Some(4 * PAGE));
    missing.remove(pages(24, 2));
    assert_eq!(missing.first(4 * PAGE), Some(chunk(10, 4, 6)));
    missing.remove(pages(10, 4));
    assert_eq!((missing.first(PAGE), missing.lowest_offset(), missing.is_empty()), (None, None, true));
}

#[test]
fn a_fault_takes_what_is_missing_beside_it_within_its_window() {
    let mut missing = Missing::of(&[extent(5, 30, 0)]);
    let window = 8 * PAGE;
    assert_eq!(missing.around(6 * PAGE, window), Some(chunk(5, 3, 0)), "not before the piece");
    assert_eq!(missing.around(17 * PAGE, window), Some(chunk(16, 8, 11)), "not out of the window");
    assert_eq!(missing.around(34 * PAGE, window), Some(chunk(32, 3, 27)), "not behind the piece");
    assert_eq!((missing.around(35 * PAGE, window), missing.around(4 * PAGE, window)), (None, None));
    missing.remove(pages(18, 1));
    assert_eq!(missing.around(17 * PAGE, window), Some(chunk(16, 2, 11)), "not over what was put");
    assert_eq!(missing.around(18 * PAGE, window), None);
}

#[test]
fn what_is_left_around_an_address_is_found_piece_by_piece() {
    let mut missing = Missing::of(&[extent(5, 30, 0)]);
    let window = 8 * PAGE;
    missing.remove(pages(18, 1));
    assert_eq!(missing.within(18 * PAGE, window), Some(chunk(16, 2, 11)));
    missing.remove(pages(16, 2));
    assert_eq!(missing.within(18 * PAGE, window), Some(chunk(19, 5, 14)), "not out of the window");
    missing.remove(pages(19, 5));
    assert_eq!(missing.within(18 * PAGE, window), None);
    assert_eq!(missing.within(0, window), Some(chunk(5, 3, 0)));
    assert_eq!(missing.within(40 * PAGE, window), None);
}

#[test]
fn what_moves_keeps_its_content() {
    let mut missing = Missing::of(&[extent(10, 6, 0)]);
    missing.remap(12 * PAGE, 100 * PAGE, 2 * PAGE);
    assert_eq!(table(&missing), [(10, 0), (11, 1), (14, 4), (15, 5), (100, 2), (101, 3)].into());
    missing.remap(100 * PAGE, 3 * PAGE, 8 * PAGE);
    assert_eq!(table(&missing), [(3, 2), (4, 3), (10, 0), (11, 1), (14, 4), (15, 5)].into());
}

#[test]
fn a_move_that_is_said_to_be_too_long_harms_no_neighbour() {
    let mut missing = Missing::of(&[extent(10, 4, 0), extent(22, 1, 8)]);
    missing.remap(10 * PAGE, 20 * PAGE, 4 * PAGE);
    assert_eq!(table(&missing), [(20, 0), (21, 1), (22, 8), (23, 3)].into());
}

#[test]
fn halves_are_whole_pages_and_nothing_is_lost() {
    assert_eq!(chunk(4, 5, 1).halves(), (chunk(4, 2, 1), chunk(6, 3, 3)));
    assert_eq!(chunk(4, 1, 1).halves(), (chunk(4, 0, 1), chunk(4, 1, 1)));
}

const PAGES: u64 = 40;

#[derive(Clone, Debug)]
enum Step {
    Remove(u64, u64),
    Remap(u64, u64, u64),
    First(u64),
    Around(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..PAGES, 1u64..12).prop_map(|(first, count)| Step::Remove(first, count)),
        (0..PAGES, 0..PAGES, 1u64..12).prop_map(|(from, to, count)| Step::Remap(from, to, count)),
        (1u64..6).prop_map(Step::First),
        (0..PAGES).prop_map(Step::Around),
    ]
}

proptest! {
    #[test]
    fn a_map_of_single_pages_says_the_same(steps in proptest::collection::vec(step(), 0..40)) {
        let mut missing = Missing::of(&[extent(0, 7, 20), extent(8, 10, 0), extent(19, 3, 40), extent(25, 9, 10)]);
        let mut model = table(&missing);
        for step in steps {
            match step {
                Step::Remove(first, count) => {
                    missing.remove(pages(first, count));
                    model.retain(|page, _| !(first..first + count).contains(page));
                }
                Step::Remap(from, to, count) => {
                    missing.remap(from * PAGE, to * PAGE, count * PAGE);
                    let moved: Vec<(u64, u64)> =
                        model.range(from..from + count).map(|(&page, &place)| (page, place)).collect();
                    model.retain(|page, _| !(from..from + count).contains(page));
                    for (page, place) in moved {
                        model.entry(page - from + to).or_insert(place);
                    }
                }
                Step::First(most) => {
                    let first = missing.first(most * PAGE);
                    prop_assert_eq!(first.is_none(), model.is_empty());
                    if let Some(chunk) = first {
                        prop_assert!((1..=most).contains(&(chunk.length / PAGE)));
                        prop_assert_eq!(model.values().min().copied(), Some(chunk.offset / PAGE));
                        for page in 0..chunk.length / PAGE {
                            let place = model.remove(&(chunk.address / PAGE + page));
                            prop_assert_eq!(place, Some(chunk.offset / PAGE + page));
                        }
                        missing.remove(chunk.address..chunk.address + chunk.length);
                    }
                }
                Step::Around(page) => {
                    let found = missing.around(page * PAGE, 4 * PAGE);
                    prop_assert_eq!(found.is_some(), model.contains_key(&page));
                    if let Some(chunk) = found {
                        let range = chunk.address / PAGE..(chunk.address + chunk.length) / PAGE;
                        prop_assert!(range.contains(&page) && range.start / 4 == (range.end - 1) / 4);
                        for page in range.clone() {
                            prop_assert_eq!(model.get(&page), Some(&(chunk.offset / PAGE + page - range.start)));
                        }
                    }
                }
            }
            prop_assert_eq!(table(&missing), model.clone());
            prop_assert_eq!(missing.is_empty(), model.is_empty());
        }
    }
}
