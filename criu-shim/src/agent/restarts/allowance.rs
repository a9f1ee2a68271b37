//! How many ends of runs of one container may be told: a token bucket, pure.

use std::time::{Duration, Instant};

/// As many as that at once. kubelet's and client-go's limit for Events about one object is 25.
const BURST: usize = 16;
/// And one more for each such time.
const EACH: Duration = Duration::from_secs(10);

/// What one container may still have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    left: usize,
    /// When the last one was added.
    since: Instant,
}

impl Allowance {
    /// That of a container that is seen for the first time.
    pub fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// How many may be told now.
    pub fn left(&mut self, now: Instant) -> usize {
        while self.left < BURST && now.saturating_duration_since(self.since) >= EACH {
            self.left += 1;
            self.since += EACH;
        }
        if self.left == BURST {
            self.since = now;
        }
        self.left
    }

    /// One was told.
    pub fn take(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loop_is_told_at_first_and_then_now_and_again() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(begin);
        for _ in 0..BURST {
            assert!(allowance.left(begin) > 0);
            allowance.take();
        }
        assert_eq!(allowance.left(begin), 0);
        assert_eq!(allowance.left(begin + EACH - Duration::from_millis(1)), 0);
        assert_eq!(allowance.left(begin + EACH), 1);
        assert_eq!(allowance.left(begin + EACH * 3), 3);
        assert_eq!(allowance.left(begin + EACH * 10_000), BURST);
    }

    #[test]
    fn what_was_not_used_for_a_year_is_no_more_than_a_burst() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(begin);
        let later = begin + Duration::from_secs(366 * 24 * 3600);
        assert_eq!(allowance.left(later), BURST);
        allowance.take();
        assert_eq!(allowance.left(later), BURST - 1);
    }
}
