//! A clock whose reading never jumps.
//!
//! Deadlines, delays and the window of the start limit are measured by it. The kernel's monotonic clock alone will not do:
//! a container that is restored on another node without a time namespace finds another one there, a frozen container's
//! goes on while nothing in it can run, and both would fire a watchdog that was in no danger. So each reading adds to the last
//! one what can have passed, judged by three things that seldom err together: the monotonic clock, the wall clock, and how
//! long init had asked to sleep. Time in which init could not run (freezer, used-up CPU quota) could not be used by the
//! application either, which is in the same cgroup, and is not counted.

use std::ops::Add;
use std::time::Duration;

/// How much longer than asked a sleep may have taken before the rest is taken for time that was not lived.
pub const SLACK: Duration = Duration::from_secs(1);

/// How far apart the wall clocks of two nodes may be, before a step back is taken for somebody setting the clock.
const SKEW: Duration = Duration::from_secs(5);

/// A point in the time of one init.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// How long after `earlier` this is; nothing if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// What the kernel's clocks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Raw {
    /// CLOCK_MONOTONIC.
    pub monotonic: Duration,
    /// CLOCK_REALTIME, since 1970.
    pub real: Duration,
}

/// The clock. It starts at [`Moment::default`].
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    last: Raw,
    now: Moment,
}

impl Clock {
    /// A clock that starts now.
    pub fn new(raw: Raw) -> Self {
        Self { last: raw, now: Moment::default() }
    }

    /// The next reading. `asked` is how long init meant to sleep at most since the last one; `None` for no bound.
    ///
    /// Never less than the reading before it, and never more than `asked` and [`SLACK`] above that.
    pub fn read(&mut self, raw: Raw, asked: Option<Duration>) -> Moment {
        let monotonic = raw.monotonic.checked_sub(self.last.monotonic);
        let real = match raw.real.checked_sub(self.last.real) {
            None if self.last.real - raw.real <= SKEW => Some(Duration::ZERO),
            passed => passed,
        };
        self.last = raw;
        let passed = match (monotonic, real) {
            (Some(monotonic), Some(real)) => monotonic.min(real),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => Duration::ZERO,
        };
        self.now = self.now + asked.map_or(passed, |asked| passed.min(asked.saturating_add(SLACK)));
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn raw(monotonic: u64, real: u64) -> Raw {
        Raw { monotonic: seconds(monotonic), real: seconds(real) }
    }

    fn passed(before: Raw, after: Raw, asked: Option<Duration>) -> Duration {
        let mut clock = Clock::new(before);
        clock.read(after, asked).since(Moment::default())
    }

    #[test]
    fn time_that_both_clocks_saw_counts() {
        assert_eq!(passed(raw(100, 1_000_000), raw(400, 1_000_300), None), seconds(300));
    }

    #[test]
    fn a_node_that_has_been_up_longer_or_shorter_makes_no_jump() {
        assert_eq!(passed(raw(100, 1_000_000), raw(9_000_000, 1_000_002), None), seconds(2));
        assert_eq!(passed(raw(9_000_000, 1_000_000), raw(100, 1_000_002), None), seconds(2));
        // Its wall clock is behind besides.
        assert_eq!(passed(raw(100, 1_000_000), raw(9_000_000, 999_998), None), seconds(0));
    }

    #[test]
    fn a_wall_clock_that_somebody_sets_makes_no_jump() {
        assert_eq!(passed(raw(100, 1_000_000), raw(101, 2_000_000), None), seconds(1));
        assert_eq!(passed(raw(100, 2_000_000), raw(101, 1_000_000), None), seconds(1));
    }

    #[test]
    fn time_in_which_init_was_frozen_does_not_count() {
        assert_eq!(passed(raw(100, 1_000_000), raw(700, 1_000_600), Some(seconds(1))), seconds(1) + SLACK);
    }

    proptest! {
        #[test]
        fn no_reading_goes_back_or_beyond_what_was_slept(
            readings in proptest::collection::vec((0..u64::MAX / 2, 0..u64::MAX / 2, proptest::option::of(0..10_000u64)), 1..50)
        ) {
            let mut clock = Clock::new(raw(5, 5));
            let mut last = Moment::default();
            for (monotonic, real, asked) in readings {
                let asked = asked.map(Duration::from_millis);
                let raw = Raw { monotonic: Duration::from_nanos(monotonic), real: Duration::from_nanos(real) };
                let now = clock.read(raw, asked);
                prop_assert!(now >= last);
                if let Some(asked) = asked {
                    prop_assert!(now.since(last) <= asked + SLACK);
                }
                last = now;
            }
        }

        #[test]
        fn an_undisturbed_clock_loses_nothing(steps in proptest::collection::vec(0..1_000_000u64, 1..50)) {
            let mut clock = Clock::new(raw(5, 1_000_000));
            let mut total = Duration::ZERO;
            let mut now = Moment::default();
            for step in steps {
                total += Duration::from_millis(step);
                let raw = Raw { monotonic: seconds(5) + total, real: DAY * 20_000 + total };
                if now == Moment::default() {
                    clock = Clock::new(Raw { monotonic: seconds(5), real: DAY * 20_000 });
                }
                now = clock.read(raw, None);
                prop_assert_eq!(now.since(Moment::default()), total);
            }
        }
    }
}
