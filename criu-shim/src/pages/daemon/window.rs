//! How much is put for a fault. No I/O.

use crate::pages::PAGE;
use std::collections::VecDeque;

/// As much is put at once where faults follow each other, bytes: 24 us were measured for it (median, two busy processors).
pub(super) const WINDOW: u64 = 16 * PAGE;
/// By how much more is put for each fault that follows another one.
const GROWTH: u64 = 4;
/// Places that a program goes through at one time and that are told apart.
const PLACES: usize = 8;

/// Where the last faults of an address space were.
///
/// A thread that waits for one page and goes on elsewhere is not to wait for others; one that goes through its memory is not to wait for
/// each page of it.
#[derive(Debug, Default)]
pub(super) struct Windows {
    lately: VecDeque<Block>,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    start: u64,
    length: u64,
}

impl Block {
    fn has(&self, address: u64) -> bool {
        address >= self.start && address - self.start < self.length
    }

    /// Whether a fault at `address` is right before or behind it, or in it.
    fn is_beside(&self, address: u64) -> bool {
        let end = self.start.saturating_add(self.length);
        address >= self.start.saturating_sub(self.length) && address < end.saturating_add(self.length)
    }
}

impl Windows {
    /// Length of the aligned window around `address` to put for a fault there, bytes.
    pub(super) fn next(&mut self, address: u64) -> u64 {
        let place = self.lately.iter().position(|block| block.is_beside(address));
        let before = place.and_then(|place| self.lately.remove(place));
        let length = match before {
            None => PAGE,
            // It could not be put, or somebody else waits for it too.
            Some(block) if block.has(address) => block.length,
            Some(block) => (block.length * GROWTH).min(WINDOW),
        };
        self.lately.truncate(PLACES - 1);
        self.lately.push_front(Block { start: address - address % length, length });
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of faults at these pages, in pages.
    fn windows(pages: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut windows = Windows::default();
        pages.into_iter().map(|page| windows.next(page * PAGE) / PAGE).collect()
    }

    #[test]
    fn faults_far_from_each_other_get_a_page_each() {
        assert_eq!(windows([1000, 9, 40_000, 77, 200, 3000, 11, 5000, 64_000, 1500]), [1; 10]);
    }

    #[test]
    fn who_goes_through_its_memory_gets_more_each_time_in_either_direction() {
        assert_eq!(windows([100, 101, 104, 112, 128, 144]), [1, 4, 16, 16, 16, 16]);
        assert_eq!(windows([100, 99, 95, 79, 63]), [1, 4, 16, 16, 16]);
    }

    #[test]
    fn places_that_are_gone_through_side_by_side_are_told_apart() {
        assert_eq!(windows([100, 5000, 101, 5001, 104, 5004]), [1, 1, 4, 4, 16, 16]);
        let far = (1..=PLACES as u64).map(|place| place * 10_000);
        assert_eq!(windows([100].into_iter().chain(far).chain([101])).last(), Some(&1), "the oldest is forgotten");
    }

    #[test]
    fn what_is_asked_for_again_is_no_more_than_before() {
        assert_eq!(windows([100, 100, 100, 101, 103, 104]), [1, 1, 1, 4, 4, 16]);
    }

    #[test]
    fn the_ends_of_the_addresses_are_no_matter() {
        assert_eq!(windows([0, u64::MAX / PAGE, 1, u64::MAX / PAGE - 1]), [1, 1, 4, 4]);
    }
}
