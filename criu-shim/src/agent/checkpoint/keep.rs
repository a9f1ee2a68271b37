//! Which stored checkpoints stay. Pure.

use super::about::About;
use std::collections::BTreeSet;

/// The numbers of those of one container that go where `keep` good ones stay: older good ones, and poisoned ones that are older
/// than a good one. A poisoned one that is the newest stays, to be looked at.
pub fn superfluous(stored: &[About], keep: u32) -> BTreeSet<u64> {
    let mut good: Vec<u64> = stored.iter().filter(|one| one.poisoned.is_none()).map(|one| one.number).collect();
    good.sort_unstable();
    let newest = good.last().copied();
    let kept = good.split_off(good.len().saturating_sub(keep.max(1) as usize));
    let goes = |about: &&About| match about.poisoned {
        None => !kept.contains(&about.number),
        Some(_) => newest.is_some_and(|newest| about.number < newest),
    };
    stored.iter().filter(goes).map(|about| about.number).collect()
}

/// The numbers of those of one container that go so that `expected` bytes more are within `quota`, where all containers together
/// have `total`: the oldest first, poisoned before good, and never its newest good one. None where that does not suffice.
pub fn make_room(stored: &[About], total: u64, expected: u64, quota: u64) -> Option<BTreeSet<u64>> {
    let newest = stored.iter().filter(|one| one.poisoned.is_none()).map(|one| one.number).max();
    let mut order: Vec<&About> = stored.iter().filter(|one| Some(one.number) != newest).collect();
    order.sort_by_key(|one| (one.poisoned.is_none(), one.number));
    let (mut total, mut gone) = (total, BTreeSet::new());
    let mut order = order.into_iter();
    while total.saturating_add(expected) > quota {
        let next = order.next()?;
        total = total.saturating_sub(next.bytes);
        gone.insert(next.number);
    }
    Some(gone)
}

#[cfg(test)]
mod tests {
    use super::super::about::tests::{about, poisoned};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_newest_good_ones_stay_and_old_poison_goes() {
        let numbers = |stored: &[About], keep| superfluous(stored, keep).into_iter().collect::<Vec<_>>();
        assert_eq!(numbers(&[about(1, 1), about(2, 1), about(3, 1)], 2), [1]);
        assert_eq!(numbers(&[about(1, 1), poisoned(2, 1), about(3, 1)], 2), [2]);
        assert_eq!(numbers(&[about(1, 1), poisoned(2, 1)], 1), [0; 0], "the poisoned one does not count");
        assert_eq!(numbers(&[poisoned(1, 1), poisoned(2, 1)], 1), [0; 0]);
    }

    #[test]
    fn room_is_made_of_a_containers_own_old_ones() {
        let stored = [about(1, 10), poisoned(2, 10), about(3, 10)];
        let made = |total, expected, quota| make_room(&stored, total, expected, quota).map(Vec::from_iter);
        assert_eq!(made(30, 10, 40), Some(vec![]));
        assert_eq!(made(30, 10, 39), Some(vec![2]));
        assert_eq!(made(30, 10, 29), Some(vec![1, 2]));
        assert_eq!(made(30, 10, 19), None, "the newest good one stays");
        assert_eq!(made(90, 10, 40), None, "the others have it");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_goes_the_newest_good_one_stays_and_the_quota_is_kept(
            marks in proptest::collection::vec((any::<bool>(), 1_u64..100), 0..12),
            keep in 0_u32..4, others in 0_u64..300, expected in 0_u64..200, quota in 0_u64..900,
        ) {
            let one = |(number, (bad, bytes)): (usize, (bool, u64))| {
                let number = number as u64 + 1;
                if bad { poisoned(number, bytes) } else { about(number, bytes) }
            };
            let stored: Vec<About> = marks.into_iter().enumerate().map(one).collect();
            let good: Vec<u64> = stored.iter().filter(|one| one.poisoned.is_none()).map(|one| one.number).collect();
            let gone = superfluous(&stored, keep);
            prop_assert!(good.last().is_none_or(|newest| !gone.contains(newest)));
            let left = good.iter().filter(|number| !gone.contains(number)).count();
            prop_assert_eq!(left, good.len().min(keep.max(1) as usize));
            let bytes = |gone: &BTreeSet<u64>| -> u64 {
                stored.iter().filter(|one| !gone.contains(&one.number)).map(|one| one.bytes).sum()
            };
            let total = others + bytes(&BTreeSet::new());
            if let Some(gone) = make_room(&stored, total, expected, quota) {
                prop_assert!(good.last().is_none_or(|newest| !gone.contains(newest)));
                prop_assert!(others + bytes(&gone) + expected <= quota);
            }
        }
    }
}
