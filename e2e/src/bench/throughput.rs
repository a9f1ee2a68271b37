//! What a program did before, during and after a move, and how long its client waited. Pure.

use serde::{Deserialize, Serialize};

use super::status::Span;
use crate::scenario::collector::Sample;

/// How long it is looked at before and after a move, nanoseconds.
pub const WINDOW: i64 = 3_000_000_000;

/// What was done around a move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Around {
    /// In the [`WINDOW`] before the Migration was created.
    pub before: Pace,
    /// While memory was copied, until the freeze.
    pub during: Pace,
    /// In the [`WINDOW`] after the freeze.
    pub after: Pace,
}

/// What was done in one of these times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// Operations a second.
    pub rate: f64,
    /// The slowest operation of each 10 ms: the middle of those, milliseconds. Only of a load that tells of its requests.
    pub latency: f64,
    /// The slowest of all, milliseconds.
    pub slowest: f64,
}

/// From samples that reach far enough to both sides; `None` where they do not.
pub fn around(samples: &[Sample], span: &Span, gap_end: i64) -> Option<Around> {
    Some(Around {
        before: pace(samples, span.created - WINDOW, span.created)?,
        during: pace(samples, span.copying, span.freezing)?,
        after: pace(samples, gap_end, gap_end + WINDOW)?,
    })
}

/// From the first sample not before `from` until the last not after `to`, nanoseconds. What the first tells happened before it.
fn pace(samples: &[Sample], from: i64, to: i64) -> Option<Pace> {
    let mut inside = samples.iter().filter(|sample| (from..=to).contains(&sample.at));
    let first = inside.next()?;
    let mut longest: Vec<i64> = inside.clone().map(|sample| sample.longest).collect();
    longest.sort_unstable();
    let millis = |nanos: i64| nanos as f64 / 1e6;
    let last = inside.next_back()?;
    let seconds = (last.at - first.at) as f64 / 1e9;
    Some(Pace {
        rate: last.work.checked_sub(first.work)? as f64 / seconds,
        latency: millis(longest[longest.len() / 2]),
        slowest: millis(longest[longest.len() - 1]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    /// 1,000 a second for 10 s, 900 a second for 5 s, nothing for a second, then 500 a second.
    fn samples() -> Vec<Sample> {
        let work = |tenth: i64| match tenth {
            0..100 => tenth * 100,
            100..150 => 10_000 + (tenth - 100) * 90,
            150..160 => 14_500,
            _ => 14_500 + (tenth - 160) * 50,
        };
        // The slowest request was the one that was asked before the pause and answered after it.
        let longest = |tenth: i64| if tenth == 160 { SECOND } else { (1 + tenth % 3) * 1_000_000 };
        let sample = |tenth: i64| Sample { at: tenth * SECOND / 10, work: work(tenth) as u64, longest: longest(tenth) };
        (0..300).map(sample).collect()
    }

    #[test]
    fn each_time_has_its_own_rate() {
        let freezing = 149 * SECOND / 10;
        let span = Span { created: 10 * SECOND, copying: 10 * SECOND, go: freezing, freezing };
        let around = around(&samples(), &span, 16 * SECOND).expect("rates");
        let rates = [around.before, around.during, around.after].map(|pace| pace.rate.round());
        assert_eq!(rates, [1_000.0, 900.0, 500.0]);
    }

    #[test]
    fn the_request_that_was_asked_before_a_time_is_not_one_of_it() {
        let after = pace(&samples(), 16 * SECOND, 18 * SECOND).expect("a pace");
        assert_eq!((after.latency, after.slowest), (2.0, 3.0));
        let with = pace(&samples(), 15 * SECOND, 18 * SECOND).expect("a pace");
        assert_eq!(with.slowest, 1000.0);
    }

    #[test]
    fn one_sample_is_no_rate() {
        assert_eq!(pace(&samples(), 0, SECOND / 20), None);
        assert_eq!(pace(&[], 0, SECOND), None);
    }
}
