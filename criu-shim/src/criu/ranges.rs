//! Arithmetic on address ranges: sorted lists of `start..end`, in bytes, that start and end at a page.

use std::ops::Range;

/// Size of a page, bytes. CRIU's images count in these.
pub const PAGE: u64 = 4096;

/// True if the ranges are sorted, apart from each other, not empty, and of whole pages. Ranges may touch.
pub fn is_sorted(ranges: &[Range<u64>]) -> bool {
    let whole = |range: &Range<u64>| {
        range.start < range.end && range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE)
    };
    ranges.iter().all(whole) && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
}

/// What is in both of two sorted lists.
pub fn intersection(left: &[Range<u64>], right: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut i, mut j) = (0, 0);
    let mut both = Vec::new();
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        let common = a.start.max(b.start)..a.end.min(b.end);
        if !common.is_empty() {
            both.push(common);
        }
        if a.end <= b.end {
            i += 1;
        } else {
            j += 1;
        }
    }
    both
}

/// Cuts `range` at the ends of the ranges of a sorted list: each piece, in order, with whether it is in the list. The
/// pieces in the list that touch each other are one.
pub fn cut(range: &Range<u64>, list: &[Range<u64>]) -> Vec<(Range<u64>, bool)> {
    let mut pieces: Vec<(Range<u64>, bool)> = Vec::new();
    let mut add = |piece: Range<u64>, inside: bool| match pieces.last_mut() {
        _ if piece.is_empty() => {}
        Some((last, same)) if *same == inside && last.end == piece.start => last.end = piece.end,
        _ => pieces.push((piece, inside)),
    };
    let mut at = range.start;
    let first = list.partition_point(|listed| listed.end <= range.start);
    for listed in list[first..].iter().take_while(|listed| listed.start < range.end) {
        add(at..listed.start.max(at), false);
        at = listed.end.min(range.end);
        add(listed.start.max(range.start)..at, true);
    }
    add(at..range.end, false);
    pieces
}

/// What of a sorted list is not in another one.
pub fn without(list: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let pieces = list.iter().flat_map(|range| cut(range, other));
    pieces.filter(|(_, inside)| !inside).map(|(piece, _)| piece).collect()
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Sorted lists of ranges within the first 64 pages.
    pub fn lists() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::btree_set(0u64..64, 0..16).prop_map(|ends| {
            let ends: Vec<u64> = ends.into_iter().collect();
            ends.chunks_exact(2).map(|pair| pair[0] * PAGE..pair[1] * PAGE).collect()
        })
    }

    /// The pages of ranges.
    pub fn pages(ranges: &[Range<u64>]) -> BTreeSet<u64> {
        ranges.iter().flat_map(|range| (range.start..range.end).step_by(PAGE as usize)).collect()
    }

    #[test]
    fn what_overlaps_is_empty_or_is_not_of_whole_pages_is_no_list() {
        assert!(is_sorted(&[0..PAGE, PAGE..3 * PAGE]));
        assert!(!is_sorted(&[0..2 * PAGE, PAGE..3 * PAGE]));
        assert!(!is_sorted(&[PAGE..PAGE]));
        assert!(!is_sorted(&[1..PAGE]));
        assert!(!is_sorted(&[2 * PAGE..3 * PAGE, 0..PAGE]));
    }

    proptest! {
        #[test]
        fn the_intersection_has_the_pages_of_both(left in lists(), right in lists()) {
            let both = intersection(&left, &right);
            prop_assert!(is_sorted(&both));
            prop_assert_eq!(pages(&both), &pages(&left) & &pages(&right));
        }

        #[test]
        fn what_is_left_without_another_list_is_in_the_first_and_not_in_the_second(left in lists(), right in lists()) {
            let left_over = without(&left, &right);
            prop_assert!(is_sorted(&left_over));
            prop_assert_eq!(pages(&left_over), &pages(&left) - &pages(&right));
        }

        #[test]
        fn the_pieces_of_a_cut_make_the_whole_again(list in lists(), start in 0u64..60, length in 1u64..20) {
            let range = start * PAGE..(start + length) * PAGE;
            let pieces = cut(&range, &list);
            let (mut at, listed) = (range.start, pages(&list));
            for (piece, inside) in pieces {
                prop_assert_eq!(piece.start, at);
                at = piece.end;
                prop_assert!(pages(&[piece]).iter().all(|page| listed.contains(page) == inside));
            }
            prop_assert_eq!(at, range.end);
        }
    }
}
