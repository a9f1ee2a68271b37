//! How far a run is, and how long it will still take.

use std::time::{Duration, Instant};

/// A run under way.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    /// What all of it takes, by the estimates, and what is done.
    total: Duration,
    done: Duration,
}

impl Progress {
    /// Of parts that take `total` by their estimates, from now on.
    pub fn start(total: Duration) -> Self {
        Self { start: Instant::now(), total, done: Duration::ZERO }
    }

    /// The part `name` is done, which takes `estimate`.
    pub fn done(&mut self, name: &str, estimate: Duration) {
        self.done += estimate;
        let (elapsed, percent) = (self.start.elapsed(), self.done.as_secs_f64() / self.total.as_secs_f64() * 100.0);
        let left = minutes(remaining(self.total, self.done, elapsed));
        eprintln!("{name} done: {percent:.0} % after {}, about {left} to go", minutes(elapsed));
    }
}

/// Time that is left, where what is `done` of the `total` by the estimates took `elapsed`.
fn remaining(total: Duration, done: Duration, elapsed: Duration) -> Duration {
    let left = total.saturating_sub(done);
    if done.is_zero() { left } else { left.mul_f64(elapsed.as_secs_f64() / done.as_secs_f64()) }
}

/// In whole minutes, upwards.
pub fn minutes(duration: Duration) -> String {
    format!("{} min", duration.as_secs().div_ceil(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_much_longer_as_what_is_done_did() {
        let seconds = Duration::from_secs;
        assert_eq!(remaining(seconds(100), seconds(20), seconds(40)), seconds(160));
        assert_eq!(remaining(seconds(100), seconds(0), seconds(40)), seconds(100));
        assert_eq!(remaining(seconds(100), seconds(100), seconds(7)), seconds(0));
    }

    #[test]
    fn a_second_more_is_a_minute_more() {
        assert_eq!(minutes(Duration::from_secs(61)), "2 min");
    }
}
