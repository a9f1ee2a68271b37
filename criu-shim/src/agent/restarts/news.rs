//! Which lines of a record are still to be told. Pure.

use crate::supervised::place::Told;
use tideover_init::record::Line;

/// A line to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The line.
    pub line: Line,
    /// How many ends of runs before it nobody was told of: they were too many.
    pub untold: u64,
}

/// The lines after number `last`, as far as their numbers go up: the container numbers them, and one that goes down is none.
pub fn upwards(mut last: u64, lines: &[Line]) -> impl Iterator<Item = &Line> {
    lines.iter().filter(move |line| {
        let later = line.sequence > last;
        last = last.max(line.sequence);
        later
    })
}

/// What is to be told of `lines`, in order, where as much as `told` was told: the newest of them, `allowed` at most.
pub fn news(told: Told, lines: &[Line], allowed: usize) -> Vec<Item> {
    let mut fresh: Vec<&Line> = upwards(told.sequence, lines).collect();
    let mut before = told.sequence;
    let chosen = fresh.split_off(fresh.len().saturating_sub(allowed));
    let item = |line: &Line| {
        // Numbers go up, so there is no overflow.
        let untold = line.sequence - before - 1;
        before = line.sequence;
        Item { line: line.clone(), untold }
    };
    chosen.into_iter().map(item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::restarts::fixture::exit;
    use proptest::prelude::*;

    #[track_caller]
    fn check(told: u64, sequences: &[u64], allowed: usize, expected: &[(u64, u64)]) {
        let lines: Vec<Line> = sequences.iter().copied().map(exit).collect();
        let news = news(Told { sequence: told, counted: 0 }, &lines, allowed);
        let news: Vec<(u64, u64)> = news.iter().map(|item| (item.line.sequence, item.untold)).collect();
        assert_eq!(news, expected);
    }

    #[test]
    fn each_line_is_told_once() {
        check(0, &[1, 2], 9, &[(1, 0), (2, 0)]);
        check(2, &[1, 2], 9, &[]);
        check(2, &[1, 2, 3], 9, &[(3, 0)]);
    }

    #[test]
    fn where_there_are_too_many_the_newest_are_told_and_the_rest_counted() {
        check(1, &[2, 3, 4, 5, 6], 2, &[(5, 3), (6, 0)]);
        check(1, &[2, 3], 0, &[]);
        check(1, &[90, 91], 9, &[(90, 88), (91, 0)]);
    }

    #[test]
    fn a_restored_container_goes_on_where_its_source_was() {
        check(0, &[7], 9, &[(7, 6)]);
    }

    #[test]
    fn numbers_that_go_down_are_nobodys() {
        check(0, &[5, 3, 5, 6, 1], 9, &[(5, 4), (6, 0)]);
        check(0, &[0, 0], 9, &[]);
        check(0, &[u64::MAX, u64::MAX], 9, &[(u64::MAX, u64::MAX - 1)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_a_container_writes_is_told_in_order_once_and_within_bounds(
            sequences in proptest::collection::vec(any::<u64>(), 0..50), told: u64, allowed in 0_usize..20,
        ) {
            let lines: Vec<Line> = sequences.into_iter().map(exit).collect();
            let items = news(Told { sequence: told, counted: 0 }, &lines, allowed);
            prop_assert!(items.len() <= allowed);
            prop_assert!(items.windows(2).all(|pair| pair[0].line.sequence < pair[1].line.sequence));
            let last = items.last().map_or(told, |item| item.line.sequence);
            let again = news(Told { sequence: last, counted: 0 }, &lines, 50);
            prop_assert!(items.is_empty() || again.is_empty());
        }
    }
}
