//! Taken: the target alone decides the attempt, while it rebuilds the processes. Nobody aborts it any more, and it is not committed
//! yet.

use super::decision::Action;
use super::freezing;
use super::step::Step;
use crate::condition;
use std::time::Duration;

/// `True` while a target has taken an attempt and has not said what became of it.
const TAKEN: &str = "Taken";

/// How long that may be so. A target whose agent lives runs what it has taken, or gives it back, within sixty seconds.
const SILENCE_BOUND: Duration = Duration::from_secs(100);

/// Waits for the target. Where it will never say what it has done, it may have let the processes run: then the attempt is
/// committed for it, because the source must not.
pub(super) fn follow(step: &mut Step<'_>) {
    freezing::follow(step);
    let Some(seen) = step.status.owner.clone() else { return };
    let Some(since) = condition::true_since(&step.status.conditions, TAKEN) else {
        return step.condition(TAKEN, true, "TargetRestores");
    };
    if step.now.duration_since(since).unsigned_abs() > SILENCE_BOUND {
        step.say(format!("{} has taken the application and does not say whether it runs there", seen.node));
        step.act(Action::Keep { seen });
    }
}

/// What was taken is decided: the next one has its own time.
pub(super) fn is_over(step: &mut Step<'_>) {
    if condition::true_since(&step.status.conditions, TAKEN).is_some() {
        step.condition(TAKEN, false, "Decided");
    }
}
