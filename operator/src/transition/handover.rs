//! Handover: the reservation gives way to the replacement, whose container waits on the target. Nothing is frozen.
//!
//! The phase is written before the source leaves its ReplicaSet, so that admission knows the replacement by the time
//! the ReplicaSet makes it: a replacement that is not pinned and stamped would be a second copy.

use super::decision::{Action, PodRole};
use super::preparing::PAUSE;
use super::step::Step;
use tideover_crds::{ObjectRef, Phase, TargetStep};

/// Seconds that a reservation gets to end. Not 0: kubelet then says when the room is free, and does not turn the
/// replacement away while it still counts the reservation.
const RESERVATION_GRACE: u32 = 1;

pub(super) fn drive(step: &mut Step<'_>) {
    step.wake_in(PAUSE);
    if let Some(reservation) = &step.observed.reservation {
        step.say(format!("the room on {} is handed over to the replacement", step.target_node()));
        return step.delete(PodRole::Reservation, reservation, RESERVATION_GRACE);
    }
    take_out(step);
    if step.status.replacement.is_none() {
        let first = step.observed.replacements.iter().find(|pod| !pod.terminating);
        step.status.replacement = first.map(reference);
    } else if let Some(pod) = step.replacement() {
        step.status.replacement = Some(reference(pod));
    }
    let target = step.target_node();
    let bound = step.status.replacement.as_ref().is_some_and(|pod| pod.node.as_ref() == Some(&target));
    let waits = step.status.target_now().is_some_and(|report| report.step >= TargetStep::Waiting);
    if bound && waits {
        // The go. From here on the agents act on their own until the commit or the abort.
        step.enter(Phase::Freezing, "the pod is frozen and its last state is dumped");
    } else if bound {
        step.say(format!("waiting for the replacement's container on {target} to be created"));
    } else {
        step.say(format!("waiting for the replacement to be made and bound to {target}"));
    }
}

fn take_out(step: &mut Step<'_>) {
    let Some(source) = step.source().filter(|source| source.original_template_hash.is_none()) else { return };
    if let Some(hash) = source.template_hash.clone() {
        let (name, uid) = (source.pod.name.clone(), source.pod.uid.clone());
        step.act(Action::TakeOutOfReplicaSet { name, uid, hash });
    }
}

/// A pod as the status names it.
pub(super) fn reference(pod: &super::PodSeen) -> ObjectRef {
    ObjectRef { name: pod.name.clone(), uid: pod.uid.clone(), node: pod.node.clone() }
}
