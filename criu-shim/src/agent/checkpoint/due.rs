//! When a checkpoint of a container is taken. Pure: times are arguments, milliseconds since 1970.

use crate::supervised::Checkpoints;
use tideover_init::record::{Line, Outcome};

/// What is known of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Since when its application has been running.
    pub running: u64,
    /// When its newest checkpoint was taken, or the last one was tried.
    pub last: Option<u64>,
}

/// Since when what a container runs has been running in it, whose place was made at `made`: what was restored into it ran from `ran`
/// on, and what was moved does not count before `moved`, when it was seen to be moved last.
pub fn here_since(made: u64, ran: Option<u64>, moved: Option<u64>) -> u64 {
    made.max(ran.unwrap_or_default()).max(moved.unwrap_or_default())
}

/// Since when the application of a container has been running that was made at `made`; none where it does not run.
pub fn running_since(made: u64, lines: &[Line]) -> Option<u64> {
    let Some(last) = lines.iter().max_by_key(|line| line.sequence) else { return Some(made) };
    match last.outcome {
        Outcome::Restart { delay_millis, .. } => Some(made.max(last.at_millis.saturating_add(delay_millis))),
        _ => None,
    }
}

/// Whether one is to be taken at `now`. Not of a run that has not shown yet that it lasts: that is not what anybody wants back.
pub fn is_due(rules: &Checkpoints, times: Times, now: u64) -> bool {
    let lasts = now.saturating_sub(times.running) >= rules.proven_millis;
    let rested = times.last.is_none_or(|last| now.saturating_sub(last) >= rules.interval_millis);
    lasts && rested
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::restarts::fixture::{crash, exit, stop};

    const RULES: Checkpoints = Checkpoints { interval_millis: 300_000, keep: 2, proven_millis: 60_000 };

    #[test]
    fn a_restore_and_a_move_take_time_that_proves_nothing() {
        assert_eq!(here_since(10, None, None), 10);
        assert_eq!(here_since(10, Some(30), None), 30);
        assert_eq!(here_since(10, Some(30), Some(50)), 50);
        assert_eq!(here_since(60, Some(30), Some(50)), 60);
    }

    #[test]
    fn one_is_due_an_interval_after_the_last_of_a_run_that_lasts() {
        // Running since, the last one, now, whether it is due.
        let table = [
            (0, None, 59_999, false),
            (0, None, 60_000, true),
            (0, Some(60_000), 359_999, false),
            (0, Some(60_000), 360_000, true),
            (350_000, Some(60_000), 360_000, false),
            (350_000, Some(60_000), 410_000, true),
            // A clock that was set back.
            (500_000, None, 410_000, false),
        ];
        for (running, last, now, expected) in table {
            assert_eq!(is_due(&RULES, Times { running, last }, now), expected, "{running} {last:?} {now}");
        }
    }

    #[test]
    fn a_run_begins_after_the_delay_of_the_one_before() {
        assert_eq!(running_since(7, &[]), Some(7));
        let mut crashed = crash(1);
        crashed.at_millis = 50;
        assert_eq!(running_since(7, &[crashed.clone()]), Some(150));
        assert_eq!(running_since(7000, &[crashed.clone()]), Some(7000));
        assert_eq!(running_since(7, &[crashed.clone(), exit(2)]), None);
        assert_eq!(running_since(7, &[crashed, stop(2)]), None);
    }
}
