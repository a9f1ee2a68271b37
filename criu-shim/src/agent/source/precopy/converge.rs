//! Whether another round before the freeze would help. Pure.
//!
//! A round sends what was written while the one before it was under way. Where pages are sent faster than they are written
//! each round is shorter than the last, down to a floor; where they are not, rounds go on for ever and gain nothing.

use std::time::Duration;

/// One round, as it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundSeen {
    /// Bytes that it sent.
    pub bytes: u64,
    /// From its first page until the target had all of it.
    pub took: Duration,
}

/// What follows from the rounds so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// Another round.
    Again,
    /// The freeze would be short enough: as long as this, as far as can be told.
    Converged(Duration),
    /// Another round would not make it shorter.
    Stalled(Duration),
}

/// What a freeze takes beside the pages: dump without memory, restore, commit. Source: the medians of `make bench` for
/// processes that write next to nothing, 102 ms with 64 MiB and 91 ms with 256 MiB on two cores.
const BESIDES: Duration = Duration::from_millis(100);

/// The most rounds; each costs the application some speed.
const MOST: usize = 30;

/// A round that sends at least this much of what the one before it sent has gained nothing.
const GAIN: f64 = 0.8;

/// How many rounds in a row may gain nothing: one may have met a burst.
const PATIENCE: usize = 3;

/// Decides, given the freeze that is aimed for. Without a round there is nothing to tell it from.
pub fn next(rounds: &[RoundSeen], aim: Duration) -> Next {
    let Some(last) = rounds.last() else { return Next::Again };
    let predicted = BESIDES + transfer(rounds, last);
    if rounds.len() > 1 && predicted <= aim {
        return Next::Converged(predicted);
    }
    let gained_nothing = |pair: &[RoundSeen]| pair[1].bytes as f64 >= pair[0].bytes as f64 * GAIN;
    let in_a_row = rounds.windows(2).rev().take_while(|pair| gained_nothing(pair)).count();
    if in_a_row >= PATIENCE || rounds.len() >= MOST { Next::Stalled(predicted) } else { Next::Again }
}

/// How long what is written during a round like the last one takes to cross.
fn transfer(rounds: &[RoundSeen], last: &RoundSeen) -> Duration {
    let rate = rounds.iter().map(|round| round.bytes as f64 / seconds(round)).fold(0.0, f64::max);
    // The last round sent what was written while the one before it was under way. Nothing is known of the first.
    let before = rounds.len().checked_sub(2).and_then(|index| rounds.get(index));
    let written = before.map_or(last.bytes as f64, |before| last.bytes as f64 / seconds(before) * seconds(last));
    if rate > 0.0 { Duration::try_from_secs_f64(written / rate).unwrap_or(Duration::MAX) } else { Duration::ZERO }
}

fn seconds(round: &RoundSeen) -> f64 {
    // Below a millisecond a round measures the scheduler.
    round.took.as_secs_f64().max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AIM: Duration = Duration::from_millis(300);

    fn round(mib: u64, millis: u64) -> RoundSeen {
        RoundSeen { bytes: mib << 20, took: Duration::from_millis(millis) }
    }

    #[test]
    fn one_round_says_nothing_about_what_is_written() {
        assert_eq!(next(&[], AIM), Next::Again);
        assert_eq!(next(&[round(64, 100)], AIM), Next::Again);
    }

    #[test]
    fn a_process_that_writes_little_converges_at_once() {
        assert!(matches!(next(&[round(1024, 2_000), round(5, 10)], AIM), Next::Converged(_)));
        assert!(matches!(next(&[round(1024, 2_000), round(0, 1)], AIM), Next::Converged(_)));
    }

    #[test]
    fn a_process_that_writes_slower_than_it_is_sent_needs_some_rounds() {
        let rounds = [round(4096, 8_000), round(2400, 4_800), round(1440, 2_880)];
        assert_eq!(next(&rounds, AIM), Next::Again);
        assert_eq!(next(&rounds[..2], AIM), Next::Again);
    }

    #[test]
    fn a_process_that_writes_as_fast_as_it_is_sent_stalls() {
        let rounds = [round(1000, 2_000); 4];
        assert!(matches!(next(&rounds, AIM), Next::Stalled(predicted) if predicted > AIM));
        assert_eq!(next(&rounds[..3], AIM), Next::Again);
    }

    proptest! {
        #[test]
        fn rounds_come_to_an_end(bytes in prop::collection::vec(0..u64::MAX / 2, MOST..60), millis in 0..100_000u64) {
            let rounds: Vec<RoundSeen> =
                bytes.iter().map(|bytes| RoundSeen { bytes: *bytes, took: Duration::from_millis(millis) }).collect();
            prop_assert_ne!(next(&rounds, AIM), Next::Again);
        }

        #[test]
        fn what_is_said_to_have_converged_keeps_to_the_aim(
            rounds in prop::collection::vec((0..1u64 << 40, 0..100_000u64), 0..40),
            aim in 0..10_000u64,
        ) {
            let rounds: Vec<RoundSeen> = rounds
                .into_iter()
                .map(|(bytes, millis)| RoundSeen { bytes, took: Duration::from_millis(millis) })
                .collect();
            let aim = Duration::from_millis(aim);
            if let Next::Converged(predicted) = next(&rounds, aim) {
                prop_assert!(predicted <= aim);
            }
        }
    }
}
