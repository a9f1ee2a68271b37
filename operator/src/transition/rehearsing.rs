//! Rehearsing: where the source's object has to go before the restore that counts, a restore of an early cut shows first that
//! this state can be restored there. Nothing of it ever runs, and nothing of it can be committed.

use super::decision::{Action, PodRole};
use super::handover::reference;
use super::preparing::PAUSE;
use super::step::Step;
use tideover_crds::{Phase, TargetStep};

/// From converged: rehearse, unless the pod has something that an early copy must not touch.
pub(super) fn begin(step: &mut Step<'_>) {
    let obstacle = step.source().and_then(|source| source.rehearsal_obstacle.clone());
    match obstacle {
        Some(obstacle) => step.enter(Phase::Freezing, format!("{FROZEN}; without a rehearsal: {obstacle}")),
        None => {
            let message = format!("rehearsing the restore on {}", step.target_node());
            step.enter(Phase::Rehearsing, message);
        }
    }
}

/// What is told when the go is given.
const FROZEN: &str = "the pod is frozen and its last state is dumped";

pub(super) fn drive(step: &mut Step<'_>) {
    step.wake_in(PAUSE);
    let rehearsed = is_rehearsed(step);
    let target = step.target_node();
    match (&step.observed.rehearsal, rehearsed) {
        (Some(pod), true) => {
            step.say(format!("the restore on {target} was rehearsed; the rehearsal's pod goes"));
            step.delete(PodRole::Rehearsal, pod, 0);
        }
        (None, true) => step.enter(Phase::Freezing, FROZEN),
        (Some(pod), false) => {
            step.status.rehearsal = Some(reference(pod));
            step.say(format!("rehearsing the restore on {target}"));
        }
        // It was there and is not any more; stop::reason has seen to it.
        (None, false) if step.status.rehearsal.is_some() => {}
        (None, false) => match &step.observed.refused {
            None => step.act(Action::CreateRehearsal(step.rehearsal_wish())),
            // It asks for nothing that the reservation does not hold already: a quota that counts it all the same is no reason
            // to keep a pod from being moved.
            Some(why) => {
                step.enter(Phase::Freezing, format!("{FROZEN}; without a rehearsal: it was refused: {why}"));
            }
        },
    }
}

/// Whether the target has shown that the state can be restored there.
pub(super) fn is_rehearsed(step: &Step<'_>) -> bool {
    let shown = step.status.target_now().is_some_and(|report| report.step == TargetStep::Rehearsed);
    shown && step.status.rehearsal.is_some()
}
