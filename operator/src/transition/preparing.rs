//! Preparing: kube-scheduler chooses the target by placing the reservation, and both agents look before they touch.

use super::decision::Action;
use super::step::Step;
use super::{hosts, stop};
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, HostFacts, ObjectRef, Phase, SourceStep};

/// How often to look while agents and scheduler work, should a watch event be missed.
pub(super) const PAUSE: Duration = Duration::from_secs(2);

pub(super) fn drive(step: &mut Step<'_>) {
    reserve(step);
    let source = step.status.source_now().filter(|report| report.step >= SourceStep::Ready);
    let source_host = source.and_then(|report| report.host.clone());
    let target_host = step.status.target_now().filter(|report| report.address.is_some()).map(|report| &report.host);
    let target_host = target_host.cloned().flatten();
    match (source_host, target_host) {
        (Some(source), Some(target)) if step.status.target_node.is_some() => compare(step, &source, &target),
        (source, target) => wait(step, source.is_some(), target.is_some()),
    }
}

fn compare(step: &mut Step<'_>, source: &HostFacts, target: &HostFacts) {
    // First: what an agent of another version says of its host may mean something else.
    if source.protocol != target.protocol {
        let message = format!(
            "the agents of {} and {} speak versions {} and {} of their protocol: one of them is being upgraded",
            step.source_node(),
            step.target_node(),
            source.protocol,
            target.protocol
        );
        return stop::abort(step, Failure { reason: FailureReason::AgentVersions, message, retryable: true });
    }
    match hosts::fit(source, target) {
        Ok(()) => {
            let message = format!("copying state to {} while the application runs", step.target_node());
            step.enter(Phase::PreCopying, message);
        }
        Err(difference) => {
            let message = format!("{} can't run the process image: {difference}", step.target_node());
            stop::abort(step, Failure { reason: FailureReason::IncompatibleHost, message, retryable: true });
        }
    }
}

fn reserve(step: &mut Step<'_>) {
    match step.observed.reservation.clone() {
        Some(pod) => {
            let seen = ObjectRef { name: pod.name, uid: pod.uid, node: pod.node.clone() };
            step.status.reservation = Some(seen);
            step.status.target_node = pod.node;
        }
        // The room was there and is not any more; stop::reason has seen to it.
        None if step.status.reservation.is_some() => {}
        None => step.act(Action::CreateReservation(step.reservation_wish())),
    }
}

fn wait(step: &mut Step<'_>, source_ready: bool, target_ready: bool) {
    step.wake_in(PAUSE);
    let unschedulable = step.observed.reservation.as_ref().and_then(|pod| pod.unschedulable.clone());
    let message = match (&step.status.target_node, unschedulable) {
        (None, Some(why)) => format!("no node has room yet: {why}"),
        (None, None) => "looking for a node to move the pod to".to_owned(),
        (Some(node), _) if !target_ready => format!("waiting for the agent on {node} to listen"),
        (Some(_), _) if !source_ready => format!("waiting for the agent on {} to look at the pod", step.source_node()),
        (Some(node), _) => format!("comparing {} and {node}", step.source_node()),
    };
    step.say(message);
}
