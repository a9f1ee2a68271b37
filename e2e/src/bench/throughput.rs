//! What a program did before, during and after a move. Pure.

use super::status::Span;
use crate::scenario::collector::Sample;

/// How long it is looked at before and after a move, nanoseconds.
pub const WINDOW: i64 = 3_000_000_000;

/// Operations a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Before the Migration was created.
    pub before: f64,
    /// While memory was copied, until the freeze.
    pub during: f64,
    /// In the [`WINDOW`] after the freeze.
    pub after: f64,
}

/// From samples that reach far enough to both sides; `None` where they do not.
pub fn rates(samples: &[Sample], span: &Span, gap_end: i64) -> Option<Rates> {
    Some(Rates {
        before: rate(samples, span.created - WINDOW, span.created)?,
        during: rate(samples, span.copying, span.freezing)?,
        after: rate(samples, gap_end, gap_end + WINDOW)?,
    })
}

/// Operations a second from the first sample not before `from` until the last not after `to`, nanoseconds.
fn rate(samples: &[Sample], from: i64, to: i64) -> Option<f64> {
    let mut inside = samples.iter().filter(|sample| (from..=to).contains(&sample.at));
    let (first, last) = (inside.next()?, inside.next_back()?);
    let seconds = (last.at - first.at) as f64 / 1e9;
    Some(last.work.checked_sub(first.work)? as f64 / seconds)
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
        (0..300).map(|tenth| Sample { at: tenth * SECOND / 10, work: work(tenth) as u64 }).collect()
    }

    #[test]
    fn each_time_has_its_own_rate() {
        let span = Span { created: 10 * SECOND, copying: 10 * SECOND, freezing: 149 * SECOND / 10 };
        let rates = rates(&samples(), &span, 16 * SECOND).expect("rates");
        assert_eq!((rates.before.round(), rates.during.round(), rates.after.round()), (1_000.0, 900.0, 500.0));
    }

    #[test]
    fn one_sample_is_no_rate() {
        assert_eq!(rate(&samples(), 0, SECOND / 20), None);
        assert_eq!(rate(&[], 0, SECOND), None);
    }
}
