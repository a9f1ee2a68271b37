//! How much of a steady rate is due at each look, exactly, whatever the time between two looks.

use std::time::Duration;

/// The most time that is made up for. What was not done in a longer pause is lost, as a program's work is, and does not
/// come as a burst after it.
const MADE_UP: Duration = Duration::from_millis(10);

const NANOS: u128 = 1_000_000_000;

/// A steady rate.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: u64,
    /// What is due beside whole ones, billionths.
    rest: u128,
}

impl Pace {
    /// Of `per_second`.
    pub(crate) fn new(per_second: u64) -> Self {
        Self { per_second, rest: 0 }
    }

    /// What is due, `elapsed` after this was asked last.
    pub(crate) fn due(&mut self, elapsed: Duration) -> u64 {
        self.rest += elapsed.min(MADE_UP).as_nanos() * u128::from(self.per_second);
        let due = self.rest / NANOS;
        self.rest %= NANOS;
        u64::try_from(due).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uneven_looks_add_up_to_the_rate() {
        for per_second in [1, 164, 2_621, 104_858] {
            let mut pace = Pace::new(per_second);
            // Two looks of 700 and 1,300 microseconds, 500 times: a second.
            let look = |pace: &mut Pace, micros| pace.due(Duration::from_micros(micros));
            let total: u64 = (0..500).map(|_| look(&mut pace, 700) + look(&mut pace, 1_300)).sum();
            assert_eq!(total, per_second);
        }
    }

    #[test]
    fn a_long_pause_is_not_made_up_for() {
        assert_eq!(Pace::new(100_000).due(Duration::from_secs(5)), 1_000);
    }
}
