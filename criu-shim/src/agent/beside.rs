//! What a freeze takes beside the pages that cross in it: dump without memory, restore, commit.
//!
//! It is the cost of the smallest process, measured on this node, and what size adds to it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What the smallest process takes before any freeze was measured here. Source: the medians of `make bench` for processes that
/// write next to nothing, 102 ms with 64 MiB and 91 ms with 256 MiB on two cores.
const UNMEASURED: Duration = Duration::from_millis(100);
/// The least that is expected, whatever was measured: an estimate of what crosses may have been too high. Source: the floor of
/// a freeze is estimated at 18 ms.
const LEAST: Duration = Duration::from_millis(15);
/// What each GiB adds: CRIU walks the page tables twice. Source: the steps of a dump without memory, 7 ms with 64 MiB and 30 ms
/// with 1 GiB.
const FOR_EACH_GIB: Duration = Duration::from_millis(25);
/// What each process but the first adds, to the dump and to the restore. Source: CRIU's own figures, 8.3 and 1.7 ms.
const FOR_EACH_PROCESS: Duration = Duration::from_millis(10);
/// What each GiB adds that is read and compared. Source: 18 ms for 64 MiB, on one thread.
const FOR_EACH_COMPARED_GIB: Duration = Duration::from_millis(288);
/// How many of the last freezes are remembered.
const REMEMBERED: usize = 5;
/// With fewer freezes than this, one of them alone does not decide what is expected.
const ENOUGH: usize = 3;

/// How large a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Resident memory, bytes.
    pub resident: u64,
    /// Processes.
    pub processes: usize,
    /// Memory that is read and compared in the freeze, bytes.
    pub compared: u64,
}

impl Size {
    fn adds(self) -> Duration {
        let processes = u32::try_from(self.processes.saturating_sub(1)).unwrap_or(u32::MAX);
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        FOR_EACH_GIB
            .mul_f64(gib(self.resident))
            .saturating_add(FOR_EACH_COMPARED_GIB.mul_f64(gib(self.compared)))
            .saturating_add(FOR_EACH_PROCESS.saturating_mul(processes))
    }
}

/// What freezes on this node have taken beside their pages, less what size adds.
#[derive(Debug, Default)]
pub struct Beside(Mutex<VecDeque<Duration>>);

impl Beside {
    /// What a freeze will take beside its pages.
    pub fn predict(&self, size: Size) -> Duration {
        let mut seen: Vec<Duration> = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        if seen.len() < ENOUGH {
            seen.push(UNMEASURED);
        }
        seen.sort();
        let smallest = seen.get(seen.len() / 2).copied().unwrap_or(UNMEASURED).max(LEAST);
        smallest.saturating_add(size.adds())
    }

    /// Remembers a freeze that ended in a commit: how long it was, and how long what was sent in it takes to cross.
    pub fn learn(&self, size: Size, freeze: Duration, crossing: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push_back(freeze.saturating_sub(crossing).saturating_sub(size.adds()));
        if seen.len() > REMEMBERED {
            seen.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Size = Size { resident: 0, processes: 1, compared: 0 };

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn what_was_measured_here_counts_more_than_what_was_measured_elsewhere() {
        let beside = Beside::default();
        assert_eq!(beside.predict(SMALL), UNMEASURED);
        beside.learn(SMALL, millis(50), millis(10));
        assert_eq!(beside.predict(SMALL), UNMEASURED, "one alone may have met anything");
        beside.learn(SMALL, millis(51), millis(10));
        assert_eq!(beside.predict(SMALL), millis(41));
    }

    #[test]
    fn one_freeze_that_met_a_hiccup_is_not_believed() {
        let beside = Beside::default();
        for freeze in [40, 41, 900, 42, 43] {
            beside.learn(SMALL, millis(freeze), Duration::ZERO);
        }
        assert_eq!(beside.predict(SMALL), millis(42));
    }

    #[test]
    fn no_freeze_is_expected_to_take_no_time() {
        let beside = Beside::default();
        (0..2).for_each(|_| beside.learn(SMALL, millis(50), millis(80)));
        assert_eq!(beside.predict(SMALL), LEAST);
    }

    #[test]
    fn old_freezes_are_forgotten() {
        let beside = Beside::default();
        for freeze in [900; 5].into_iter().chain([40; 5]) {
            beside.learn(SMALL, millis(freeze), Duration::ZERO);
        }
        assert_eq!(beside.predict(SMALL), millis(40));
    }

    #[test]
    fn size_adds_to_it_and_what_it_adds_is_not_learnt_as_the_cost_of_others() {
        let beside = Beside::default();
        let large = Size { resident: 4 << 30, processes: 3, compared: 2 << 30 };
        let adds = 4 * FOR_EACH_GIB + 2 * FOR_EACH_COMPARED_GIB + 2 * FOR_EACH_PROCESS;
        assert_eq!(beside.predict(large), UNMEASURED + adds);
        (0..2).for_each(|_| beside.learn(large, millis(50) + adds, Duration::ZERO));
        assert_eq!(beside.predict(SMALL), millis(50));
    }
}
