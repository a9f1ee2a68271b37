//! Taken: the target alone decides the attempt, while it rebuilds the processes. Nobody aborts it any more, and it is not committed
//! yet.

use super::decision::Action;
use super::freezing;
use super::step::Step;
use super::stop::VERDICT_BOUND;
use std::time::Duration;
use tideover_crds::Phase;

/// How long the freeze may have lasted. Nothing is taken later than [`VERDICT_BOUND`], and a target whose agent lives runs what it has
/// taken or gives it back within sixty seconds of that.
const SILENCE_BOUND: Duration = VERDICT_BOUND.saturating_add(Duration::from_secs(100));

/// Waits for the target. Where it will never say what it has done, it may have let the processes run: then the attempt is
/// committed for it, because the source must not.
pub(super) fn follow(step: &mut Step<'_>) {
    freezing::follow(step);
    let overdue = step.since(Phase::Freezing).is_some_and(|frozen_for| frozen_for > SILENCE_BOUND);
    let Some(seen) = step.status.owner.clone() else { return };
    if overdue {
        step.say(format!("{} has taken the application and does not say whether it runs there", seen.node));
        step.act(Action::Keep { seen });
    }
}
