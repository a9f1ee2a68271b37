//! The state was lost where it ran already: memory that was still to come after the restore did not come. The target's agent has
//! ended the container, and kubelet starts it again, cold.
//!
//! Nothing can be done about it any more, and the move stays what it is. It is told, once: in a condition of the Migration, and by
//! an Event on it and on the pod.

use super::step::Step;
use tideover_crds::{FailureReason, TargetStep};

/// `True` once the state of an application that was moved is lost.
const STATE_LOST: &str = "StateLost";

pub(super) fn tell(step: &mut Step<'_>) {
    let known = step.status.conditions.iter().find(|one| one.type_ == STATE_LOST && one.status == "True");
    if let Some(known) = known.map(|known| known.message.clone()) {
        return step.say(known);
    }
    let report = step.status.target_now().filter(|report| report.step == TargetStep::Resumed);
    let failure = report.and_then(|report| report.failure.clone());
    let Some(failure) = failure.filter(|failure| failure.reason == FailureReason::StateLost) else { return };
    step.say(format!("{}: the application starts cold on {}", failure.message, step.target_node()));
    step.condition(STATE_LOST, true, "MemoryMissing");
    step.announce_with_pod(true, STATE_LOST);
}
