//! Taken: the target alone decides the attempt, while it rebuilds the processes. Nobody aborts it any more, and it is not committed
//! yet.

use super::decision::Action;
use super::freezing;
use super::step::Step;
use super::stop::VERDICT_BOUND;
use tideover_crds::Phase;

/// Waits for the target. Where it will never say what it has done, it may have let the processes run: then the attempt is
/// committed for it, because the source must not. That is far later than the target would make use of what it has taken
/// without a look at the object.
pub(super) fn follow(step: &mut Step<'_>) {
    freezing::follow(step);
    let overdue = step.since(Phase::Freezing).is_some_and(|frozen_for| frozen_for > VERDICT_BOUND);
    let Some(seen) = step.status.owner.clone() else { return };
    if overdue {
        step.say(format!("{} has taken the application and does not say whether it runs there", seen.node));
        step.act(Action::Keep { seen });
    }
}
