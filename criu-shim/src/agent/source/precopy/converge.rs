//! Whether another round before the freeze would help, and what follows where it would not. Pure.
//!
//! A round sends what was written since the look before it. Where pages are sent faster than they are written each round is
//! shorter than the last, down to a floor; where they are not, rounds go on for ever and gain nothing. Then the container may
//! be slowed down, and in the end the policy says whether to move all the same. Time is an argument, never read.

use super::estimate::{Estimate, estimate, shows_writes};
use std::fmt;
use std::time::Duration;
use tideover_crds::{NonConvergence, ResolvedPolicy};

/// One round, as it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RoundSeen {
    /// Bytes that it sent.
    pub bytes: u64,
    /// From its first page until the target had all of it.
    pub took: Duration,
    /// How much of that a limit on the connection held it back: there is none in a freeze.
    pub held_back: Duration,
    /// From the look at what was written before it until its own: what it sent was written in this time. 0 of the first, which
    /// sends everything.
    pub exposed: Duration,
    /// Whether it was looked at everything before it. Where not, it says nothing about what is written.
    pub all_looked: bool,
    /// How long the target took to put its files in place, from when it had all of it; none where nobody has waited for that.
    pub placing: Option<Duration>,
}

/// What a policy asks of the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Aims {
    /// The longest freeze that is wished for.
    pub max_downtime: Duration,
    /// The most rounds before the handover.
    pub max_rounds: usize,
    /// What is done where they don't suffice.
    pub on_non_convergence: NonConvergence,
    /// Whether the container may be slowed down.
    pub auto_converge: bool,
}

impl From<&ResolvedPolicy> for Aims {
    fn from(policy: &ResolvedPolicy) -> Self {
        Self {
            max_downtime: Duration::from_millis(policy.max_downtime_millis),
            max_rounds: policy.pre_copy.max_rounds as usize,
            on_non_convergence: policy.pre_copy.on_non_convergence,
            auto_converge: policy.pre_copy.auto_converge,
        }
    }
}

/// Which freeze it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The handover has not begun; the freeze comes when the replacement waits on the target.
    Before,
    /// The operator has given the go: the replacement waits, and the freeze would come at once.
    AtTheGo,
}

/// How far the rounds have come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Every round that the target has.
    pub rounds: &'a [RoundSeen],
    /// Number of the first of them that counts, from 0: under the cpu time that the container has now, in this stage.
    pub since: usize,
    /// Percent of its cpu time that the container is left with; 100 where it was not slowed down.
    pub cpu_percent: u32,
    /// Which freeze it is about.
    pub stage: Stage,
    /// What a freeze takes beside its pages.
    pub beside: Duration,
    /// What this stage has left of the attempt's time. No round is begun that would not land in it.
    pub left: Duration,
}

/// What is next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// Another round, at once.
    Again,
    /// Another round after a pause: the application may be quieter then.
    Wait,
    /// The freeze, as long as this, as far as can be told. Longer than was wished for only where the policy says to proceed.
    Freeze {
        /// From the first freezer write until it runs on the target.
        predicted: Duration,
    },
    /// Leave the container so much of its cpu time, then another round.
    Throttle {
        /// Percent of what it used before it was slowed down at all. Less at each step.
        percent: u32,
    },
    /// No freeze in this attempt.
    GiveUp(Refusal),
}

/// Why there is no freeze.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refusal {
    /// What rounds came to.
    pub outcome: Outcome,
    /// How long the freeze would be.
    pub predicted: Duration,
    /// How long it might be.
    pub limit: Duration,
}

/// Why no further round is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Memory is written about as fast as it is copied.
    Stalled,
    /// The policy allows no more rounds.
    RoundsUsedUp,
    /// The attempt has no time for more.
    TimeUsedUp,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.outcome {
            Outcome::Stalled => "memory is written about as fast as it is copied",
            Outcome::RoundsUsedUp => "memory is written too fast for the rounds that maxRounds allows",
            Outcome::TimeUsedUp => "memory is written too fast for the time that the attempt has",
        };
        let (predicted, limit) = (self.predicted.as_secs_f64() * 1e3, self.limit.as_secs_f64() * 1e3);
        write!(f, "{why}: the freeze would take about {predicted:.0} ms, {limit:.0} ms are allowed")
    }
}

/// The longest freeze that is begun whatever the policy says: dump and transfer end after 95 s and the target's `create` after
/// two minutes, so that a longer one would be rolled back.
pub const LONGEST_FREEZE: Duration = Duration::from_secs(60);

/// A round that sends at least this much of what the one before it sent has gained nothing.
const GAIN: f64 = 0.8;

/// How many rounds in a row may gain nothing: one may have met a burst.
const PATIENCE: usize = 3;

/// What is left of the container's cpu time, percent, step by step. Source: QEMU takes 20 % first and 10 % more at each
/// further step (`cpu-throttle-initial`, `cpu-throttle-increment`), up to 99 %; here it ends at 90 %, because a container's
/// probes have to be answered by what is left.
pub const STEPS: [u32; 8] = [80, 70, 60, 50, 40, 30, 20, 10];

/// Decides.
///
/// Whatever the rounds are like: it ends in a freeze or a refusal within `max_rounds`, or, where the policy says to wait, when
/// nothing is left of the time. A freeze longer than was wished for is decided only under [`NonConvergence::Proceed`].
pub fn next(aims: &Aims, progress: &Progress<'_>) -> Decision {
    let Progress { rounds, since, beside, left, .. } = *progress;
    let Some(estimate) = estimate(rounds, since, beside) else { return Decision::Again };
    let Estimate { predicted, crossing, .. } = estimate;
    let step = throttle(aims, progress, &estimate);
    let max_downtime = aims.max_downtime.min(LONGEST_FREEZE);
    let shows_writes = shows_writes(rounds, since);
    if shows_writes && predicted <= max_downtime {
        return Decision::Freeze { predicted };
    }
    // A round that would not land in time is not begun. How long the second takes is not known.
    let outcome = if left.is_zero() || (shows_writes && crossing > left) {
        Outcome::TimeUsedUp
    } else if rounds_used_up(aims, progress) {
        Outcome::RoundsUsedUp
    } else if gained_nothing(&rounds[since.min(rounds.len())..]) >= patience(aims, progress, step.is_some()) {
        match step {
            Some(percent) => return Decision::Throttle { percent },
            None => Outcome::Stalled,
        }
    } else {
        return Decision::Again;
    };
    match aims.on_non_convergence {
        NonConvergence::Proceed if predicted <= LONGEST_FREEZE => Decision::Freeze { predicted },
        NonConvergence::Proceed => Decision::GiveUp(Refusal { outcome, predicted, limit: LONGEST_FREEZE }),
        NonConvergence::WaitForQuiet if outcome != Outcome::TimeUsedUp => Decision::Wait,
        NonConvergence::WaitForQuiet | NonConvergence::GiveUp => {
            Decision::GiveUp(Refusal { outcome, predicted, limit: max_downtime })
        }
    }
}

/// At the go only what was sent since counts: what the handover took is not the application's fault.
fn rounds_used_up(aims: &Aims, progress: &Progress<'_>) -> bool {
    let counted = match progress.stage {
        Stage::Before => progress.rounds.len(),
        Stage::AtTheGo => progress.rounds.len().saturating_sub(progress.since),
    };
    counted >= aims.max_rounds
}

/// How many of the last rounds in a row gained nothing.
fn gained_nothing(rounds: &[RoundSeen]) -> usize {
    let rounds: Vec<RoundSeen> = rounds.iter().copied().filter(|round| round.all_looked).collect();
    let gained_nothing = |pair: &[RoundSeen]| pair[1].bytes as f64 >= pair[0].bytes as f64 * GAIN;
    rounds.windows(2).rev().take_while(|pair| gained_nothing(pair)).count()
}

fn patience(aims: &Aims, progress: &Progress<'_>, may_slow_down: bool) -> usize {
    match progress.stage {
        // The freeze is to come whatever the rounds are like: one without gain is one too many.
        Stage::AtTheGo if aims.on_non_convergence == NonConvergence::Proceed => 1,
        // That it stalls was found with patience; this is only whether the last step has changed it. Without another step the
        // policy is asked, and that with patience again.
        Stage::Before | Stage::AtTheGo if progress.cpu_percent < 100 && may_slow_down => 1,
        Stage::Before | Stage::AtTheGo => PATIENCE,
    }
}

/// The next step, if there is one. At the go a container's `create` waits, and there is no time to look what each step would
/// change: it is the first that would do if no more were written than there is cpu time for, or else the last.
fn throttle(aims: &Aims, progress: &Progress<'_>, estimate: &Estimate) -> Option<u32> {
    let mut steps = STEPS.into_iter().filter(|percent| aims.auto_converge && *percent < progress.cpu_percent);
    match progress.stage {
        Stage::Before => steps.next(),
        Stage::AtTheGo => {
            let crossing = estimate.crossing.saturating_add(estimate.placing).as_secs_f64();
            let room = aims.max_downtime.saturating_sub(progress.beside).as_secs_f64();
            let would_do = |percent: u32| crossing * f64::from(percent) <= room * f64::from(progress.cpu_percent);
            let last = steps.clone().next_back();
            steps.find(|percent| would_do(*percent)).or(last)
        }
    }
}

#[cfg(test)]
#[path = "converge_tests.rs"]
mod tests;
