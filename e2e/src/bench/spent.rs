//! What a case takes its time for: told once it is done, so that what slows a run down is known.

use std::time::{Duration, Instant};

/// Time by what it was spent on.
#[derive(Debug)]
pub struct Spent {
    since: Instant,
    by: Vec<(&'static str, Duration)>,
}

impl Spent {
    /// From now on.
    pub fn start() -> Self {
        Self { since: Instant::now(), by: Vec::new() }
    }

    /// All time since the last call went into `what`.
    pub fn on(&mut self, what: &'static str) {
        let now = Instant::now();
        self.add(what, now - self.since);
        self.since = now;
    }

    fn add(&mut self, what: &'static str, time: Duration) {
        match self.by.iter_mut().find(|(known, _)| *known == what) {
            Some((_, sum)) => *sum += time,
            None => self.by.push((what, time)),
        }
    }

    /// In a line, seconds.
    pub fn line(&self) -> String {
        let parts = self.by.iter().map(|(what, time)| format!("{what} {:.1} s", time.as_secs_f64()));
        parts.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_one_kind_add_up_in_the_order_in_which_they_came_first() {
        let mut spent = Spent::start();
        for (what, millis) in [("start", 2000), ("move", 1100), ("settle", 300), ("move", 400)] {
            spent.add(what, Duration::from_millis(millis));
        }
        assert_eq!(spent.line(), "start 2.0 s, move 1.5 s, settle 0.3 s");
    }
}
