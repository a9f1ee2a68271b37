//! A range of addresses, and lists of them.

use serde::{Deserialize, Serialize};

/// Page-aligned addresses of a process, bytes; `end` is the first that is no longer in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
}

impl Range {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// True of a range without a byte.
    pub fn is_empty(&self) -> bool {
        self.end <= self.start
    }

    /// True when every byte of `other` is in this range.
    pub fn contains(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

/// The same bytes in ascending order, with ranges that touch or overlap made one and empty ones dropped.
pub fn coalesce(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable();
    let mut whole: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match whole.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => whole.push(range),
        }
    }
    whole
}

/// True when every byte of `range` is in `ranges`, which [`coalesce`] has returned.
pub fn covers(ranges: &[Range], range: &Range) -> bool {
    let after = ranges.partition_point(|known| known.start <= range.start);
    after.checked_sub(1).and_then(|index| ranges.get(index)).is_some_and(|known| known.contains(range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(list: &[(u64, u64)]) -> Vec<Range> {
        list.iter().map(|&(start, end)| Range { start, end }).collect()
    }

    #[test]
    fn ranges_that_touch_or_overlap_become_one() {
        let whole = coalesce(ranges(&[(8, 9), (4, 6), (1, 2), (2, 3), (5, 7), (3, 3)]));
        assert_eq!(whole, ranges(&[(1, 3), (4, 7), (8, 9)]));
    }

    #[test]
    fn a_range_over_a_gap_is_not_covered() {
        let known = ranges(&[(1, 3), (4, 7)]);
        assert!(covers(&known, &Range { start: 4, end: 7 }));
        assert!(covers(&known, &Range { start: 2, end: 3 }));
        assert!(!covers(&known, &Range { start: 2, end: 5 }));
        assert!(!covers(&known, &Range { start: 0, end: 2 }));
        assert!(!covers(&[], &Range { start: 0, end: 2 }));
    }
}
