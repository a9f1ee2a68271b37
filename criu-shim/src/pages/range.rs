//! Ranges of whole pages.

use thiserror::Error;

/// Bytes of a page: the size of every page that CRIU restores lazily, which are those of anonymous private memory that
/// is not hugetlb.
pub const PAGE: u64 = 4096;

/// Whole pages of a process, by virtual address. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageRange {
    start: u64,
    end: u64,
}

/// An address and a length that are no range of whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{length} bytes at {start:#x} are no range of whole pages")]
pub struct RangeError {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl PageRange {
    /// `length` bytes from `start` on.
    ///
    /// # Errors
    /// [`RangeError`] if either is not a multiple of [`PAGE`], if the length is 0, or if the end has no address.
    pub fn new(start: u64, length: u64) -> Result<Self, RangeError> {
        let error = RangeError { start, length };
        let end = start.checked_add(length).ok_or(error)?;
        if !start.is_multiple_of(PAGE) || !length.is_multiple_of(PAGE) || length == 0 {
            return Err(error);
        }
        Ok(Self { start, end })
    }

    /// Address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Address after the last byte.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes.
    pub fn length(&self) -> u64 {
        self.end - self.start
    }

    /// The same pages in ascending order, without overlaps, in as few ranges as there can be.
    pub fn merged(ranges: &[Self]) -> Vec<Self> {
        let mut sorted = ranges.to_vec();
        sorted.sort_unstable();
        let mut merged: Vec<Self> = Vec::with_capacity(sorted.len());
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_pages_are_a_range() {
        for (start, length) in [(1, PAGE), (0, 1), (PAGE, 0), (u64::MAX - PAGE + 1, PAGE)] {
            assert_eq!(PageRange::new(start, length), Err(RangeError { start, length }));
        }
        let range = PageRange::new(2 * PAGE, 3 * PAGE).unwrap();
        assert_eq!((range.start(), range.end(), range.length()), (2 * PAGE, 5 * PAGE, 3 * PAGE));
    }

    #[test]
    fn merging_sorts_and_joins_what_touches() {
        let range = |page: u64, pages: u64| PageRange::new(page * PAGE, pages * PAGE).unwrap();
        assert_eq!(
            PageRange::merged(&[range(9, 1), range(4, 2), range(0, 2), range(1, 3), range(7, 1)]),
            [range(0, 6), range(7, 1), range(9, 1)]
        );
        assert_eq!(PageRange::merged(&[range(0, 9), range(1, 1)]), [range(0, 9)]);
    }
}
