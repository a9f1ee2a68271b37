//! What the rounds so far say about the freeze to come. Pure.
//!
//! Two figures are estimated: how fast pages cross, and how many are written in a given time. Neither believes one round alone:
//! the first is the median of the last rounds that were long enough to show it, the second of what the last rounds allow.

use super::converge::RoundSeen;
use std::time::Duration;

/// How many of the last rounds the transfer rate is taken from.
const RATED: usize = 5;
/// A round with fewer bytes than this shows the latency of the connection and not its rate.
const RATEABLE: u64 = 1 << 20;
/// How many of the last rounds tell how much is written: with three, the median is none that stands out alone.
const SAMPLES: usize = 3;

/// What the rounds so far say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Bytes that cross in a second.
    pub sent_per_second: f64,
    /// Bytes that are written in a second, each page counted once a round.
    pub written_per_second: f64,
    /// How long what is written during a round like the last takes to cross, as another round or in the freeze.
    pub crossing: Duration,
    /// How long the target takes to put in place what crosses then.
    pub placing: Duration,
    /// How long a freeze takes that begins as soon as another round like the last has landed.
    pub predicted: Duration,
}

/// Estimates from `rounds`; those from number `since` on tell what is written. `beside` is what a freeze takes beside its pages.
/// None without a round.
pub fn estimate(rounds: &[RoundSeen], since: usize, beside: Duration) -> Option<Estimate> {
    let (first, last) = (rounds.first()?, rounds.last()?);
    let sent_per_second = transfer_rate(rounds);
    let samples = match samples(rounds, since) {
        // Nothing newer is known.
        newer if newer.is_empty() => samples(rounds, 0),
        newer => newer,
    };
    let rates = samples.iter().map(|round| round.bytes as f64 / seconds(round.exposed)).collect();
    // Without a sample, all of it may have been written again.
    let written = median(samples.iter().map(|round| most_written(round, last.took)).collect());
    let written = written.unwrap_or(first.bytes as f64);
    let crossing = if sent_per_second > 0.0 { written / sent_per_second } else { 0.0 };
    let crossing = Duration::try_from_secs_f64(crossing).unwrap_or(Duration::MAX);
    let placing = placing(rounds);
    Some(Estimate {
        sent_per_second,
        written_per_second: median(rates).unwrap_or(0.0),
        crossing,
        placing,
        predicted: beside.saturating_add(crossing).saturating_add(placing),
    })
}

/// The median of the last rounds of which it is known. Without one, everything is taken to be as fast as the connection.
fn placing(rounds: &[RoundSeen]) -> Duration {
    let mut known: Vec<Duration> = rounds.iter().rev().filter_map(|round| round.placing).take(SAMPLES).collect();
    known.sort();
    known.get(known.len() / 2).copied().unwrap_or_default()
}

/// Whether any of `rounds` from number `since` on shows what is written.
pub fn shows_writes(rounds: &[RoundSeen], since: usize) -> bool {
    !samples(rounds, since).is_empty()
}

/// The last rounds that show what is written. The first sends everything, whenever that was written.
fn samples(rounds: &[RoundSeen], since: usize) -> Vec<&RoundSeen> {
    let later = rounds.iter().skip(since.max(1)).rev();
    later.filter(|round| round.all_looked).take(SAMPLES).collect()
}

/// The most that is written in `time`, going by one round. A page that is written twice is sent once, so that what is written
/// in a time never grows faster than the time: the rate of a short time holds for a long one as an upper bound, and the whole of
/// what a long time has brought for a short one.
fn most_written(round: &RoundSeen, time: Duration) -> f64 {
    round.bytes as f64 * (seconds(time) / seconds(round.exposed)).max(1.0)
}

/// Bytes in a second: the median of the last rounds, without those that are too small to show it, if there are others.
fn transfer_rate(rounds: &[RoundSeen]) -> f64 {
    let rate = |round: &RoundSeen| round.bytes as f64 / seconds(round.took.saturating_sub(round.held_back));
    let large: Vec<f64> = rounds.iter().filter(|round| round.bytes >= RATEABLE).map(rate).collect();
    let last = large.len().saturating_sub(RATED);
    let all = || rounds.iter().map(rate).fold(0.0, f64::max);
    median(large[last..].to_vec()).unwrap_or_else(all)
}

/// The middle one; of an even number the larger of the middle two.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn seconds(time: Duration) -> f64 {
    // Below a millisecond a round measures the scheduler.
    time.as_secs_f64().max(1e-3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round(mib: u64, took: u64, exposed: u64) -> RoundSeen {
        let millis = Duration::from_millis;
        RoundSeen {
            bytes: mib << 20,
            took: millis(took),
            exposed: millis(exposed),
            held_back: Duration::ZERO,
            all_looked: true,
            placing: None,
        }
    }

    fn predicted(rounds: &[RoundSeen]) -> u128 {
        estimate(rounds, 0, Duration::ZERO).expect("rounds").predicted.as_millis()
    }

    #[test]
    fn one_burst_is_not_believed() {
        let calm = [round(1000, 2_000, 0), round(4, 8, 250), round(4, 8, 250), round(4, 8, 250)];
        let burst = [calm[0], calm[1], round(400, 800, 250), calm[3]];
        assert_eq!(predicted(&calm), predicted(&burst));
    }

    #[test]
    fn one_lull_is_not_believed() {
        let busy = [round(1000, 2_000, 0), round(400, 800, 800), round(400, 800, 800), round(400, 800, 800)];
        let lull = [busy[0], busy[1], round(0, 1, 800), round(400, 800, 800)];
        assert_eq!(predicted(&busy), predicted(&lull));
    }

    #[test]
    fn files_that_the_target_has_yet_to_put_in_place_are_part_of_the_freeze() {
        let even = [round(1000, 2_000, 0), round(100, 200, 200), round(100, 200, 200)];
        let placed = |millis| RoundSeen { placing: Some(Duration::from_millis(millis)), ..even[2] };
        let slow = [even[0], even[1], placed(300)];
        assert_eq!(predicted(&slow), predicted(&even) + 300);
        let burst = [even[0], placed(300), placed(5_000), placed(310)];
        assert_eq!(predicted(&burst), predicted(&even) + 310);
    }

    #[test]
    fn one_slow_round_does_not_make_the_connection_slow() {
        let even = [round(1000, 2_000, 0), round(100, 200, 200), round(100, 200, 200), round(100, 200, 200)];
        let slow = [even[0], even[1], round(100, 2_000, 200), even[3]];
        let rate = |rounds: &[RoundSeen]| estimate(rounds, 0, Duration::ZERO).expect("rounds").sent_per_second;
        assert_eq!(rate(&even), rate(&slow));
    }

    #[test]
    fn a_round_that_did_not_look_says_nothing_of_what_is_written() {
        let busy = [round(1000, 2_000, 0), round(400, 800, 800), round(400, 800, 800)];
        let rested = RoundSeen { all_looked: false, ..round(0, 1, 250) };
        let rounds = [busy[0], busy[1], busy[2], rested, rested, rested];
        let written = |rounds: &[RoundSeen]| estimate(rounds, 0, Duration::ZERO).expect("rounds").written_per_second;
        assert_eq!(written(&rounds), written(&busy));
        assert!(!shows_writes(&rounds, 3));
    }

    #[test]
    fn time_for_which_a_limit_held_data_back_is_no_part_of_the_rate() {
        let free = [round(1000, 2_000, 0), round(100, 200, 200)];
        let held_back = Duration::from_secs(8);
        let limited = free.map(|round| RoundSeen { took: round.took + held_back, held_back, ..round });
        let rate = |rounds: &[RoundSeen]| estimate(rounds, 0, Duration::ZERO).expect("rounds").sent_per_second;
        assert_eq!(rate(&free), rate(&limited));
    }

    #[test]
    fn small_rounds_do_not_make_the_connection_slow() {
        let small = RoundSeen {
            bytes: 4096,
            took: Duration::from_millis(5),
            exposed: Duration::from_millis(250),
            held_back: Duration::ZERO,
            all_looked: true,
            placing: None,
        };
        let rounds = [round(500, 1_000, 0), small, small, small];
        let rate = estimate(&rounds, 0, Duration::ZERO).expect("rounds").sent_per_second;
        assert_eq!(rate, f64::from(500 << 20));
    }

    #[test]
    fn a_pause_between_rounds_does_not_count_as_a_higher_rate_of_writing() {
        let rounds = [round(500, 1_000, 0), round(25, 50, 250), round(25, 50, 250)];
        let estimate = estimate(&rounds, 0, Duration::ZERO).expect("rounds");
        assert_eq!(estimate.written_per_second, f64::from(100 << 20));
        assert_eq!(estimate.predicted.as_millis(), 50, "at most what the pause and the round have brought");
    }

    #[test]
    fn without_a_look_at_what_is_written_all_of_it_may_be() {
        assert_eq!(predicted(&[round(500, 1_000, 0)]), 1_000);
        assert!(!shows_writes(&[round(500, 1_000, 0)], 0));
    }

    fn any_round() -> impl Strategy<Value = RoundSeen> {
        (0..u64::MAX / 2, 0..100_000_u64, 0..100_000_u64).prop_map(|(bytes, took, exposed)| RoundSeen {
            bytes,
            took: Duration::from_millis(took),
            exposed: Duration::from_millis(exposed),
            held_back: Duration::ZERO,
            all_looked: true,
            placing: None,
        })
    }

    proptest! {
        #[test]
        fn a_freeze_is_never_predicted_to_be_shorter_than_without_pages(
            rounds in prop::collection::vec(any_round(), 1..40),
            since in 0..40_usize,
            beside in 0..10_000_u64,
        ) {
            let beside = Duration::from_millis(beside);
            let estimate = estimate(&rounds, since, beside).expect("rounds");
            prop_assert!(estimate.predicted >= beside);
            prop_assert!(estimate.sent_per_second.is_finite() && estimate.written_per_second.is_finite());
        }

        /// Where as much is written in every millisecond, no other page twice, the prediction is not short of the truth.
        #[test]
        fn what_is_written_evenly_is_not_underestimated(
            rate in 1..1_000_u64,
            times in prop::collection::vec((1..5_000_u64, 1..5_000_u64), 4..20),
        ) {
            let rounds: Vec<RoundSeen> = times
                .iter()
                .map(|(took, exposed)| RoundSeen {
                    bytes: rate * exposed * 1_000,
                    took: Duration::from_millis(*took),
                    exposed: Duration::from_millis(*exposed), held_back: Duration::ZERO, all_looked: true, placing: None })
                .collect();
            let last = rounds.last().expect("rounds");
            let truth = (rate * 1_000) as f64 * seconds(last.took) * 1e3;
            for round in &rounds {
                prop_assert!(most_written(round, last.took) >= truth * 0.999);
            }
        }
    }
}
