//! Why an attempt that is not decided yet must end, and how: by the same compare-and-swap that a commit takes.

use super::decision::Action;
use super::observed::RunState;
use super::pending::{SOURCE_CORDONED, reason_gone};
use super::rehearsing;
use super::step::Step;
use crate::condition;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, MigrationReason, Phase, SourceStep};

/// How long the operator waits for a verdict once the agents act on their own. They give up long before; this is for
/// the case that both are gone. kubelet ends a `create` after two minutes, so a longer wait could not succeed.
const VERDICT_BOUND: Duration = Duration::from_secs(100);

/// Why the current attempt must end, if it must.
pub(super) fn reason(step: &Step<'_>) -> Option<Failure> {
    cancelled(step)
        .map(|message| Failure { reason: FailureReason::Cancelled, message, retryable: false })
        .or_else(|| reported(step))
        .or_else(|| lost(step))
        .or_else(|| late(step))
}

/// Why the move is called off, if it is.
pub(super) fn cancelled(step: &Step<'_>) -> Option<String> {
    if step.is_deleted() {
        return Some("the Migration was deleted".to_owned());
    }
    let pod = step.migration().spec.pod.name.as_str();
    match step.source() {
        None => return Some(format!("the pod {pod} was deleted")),
        Some(source) if source.pod.terminating => return Some(format!("the pod {pod} is being deleted")),
        Some(source) if source.pod.state.is_over() => return Some(format!("the pod {pod} has ended")),
        Some(_) => {}
    }
    // What is frozen already is quicker to finish than to undo.
    let undoable = step.status.phase < Phase::Freezing || step.status.phase >= Phase::RollingBack;
    if undoable && !step.observed.reason_stands && ends_with_reason(step) {
        return Some(reason_gone(step.migration().spec.reason).to_owned());
    }
    None
}

/// A pod may be evicted from a node that nobody cordoned; then there is no uncordoning that could call the move off.
fn ends_with_reason(step: &Step<'_>) -> bool {
    let reason = step.migration().spec.reason;
    reason != MigrationReason::Drain || condition::true_since(&step.status.conditions, SOURCE_CORDONED).is_some()
}

/// What an agent has said.
fn reported(step: &Step<'_>) -> Option<Failure> {
    let source = step.status.source_now().and_then(|report| report.failure.clone());
    source.or_else(|| step.status.target_now().and_then(|report| report.failure.clone()))
}

/// What the attempt needs and does not have any more.
fn lost(step: &Step<'_>) -> Option<Failure> {
    let failure = |reason, message| Some(Failure { reason, message, retryable: true });
    if step.observed.source_node.is_gone() {
        return failure(FailureReason::AgentUnreachable, format!("the node {} is gone", step.source_node()));
    }
    if step.target_is_gone() {
        return failure(FailureReason::NoTarget, format!("the node {} is gone", step.target_node()));
    }
    match step.status.phase {
        Phase::Preparing | Phase::PreCopying => refused_reservation(step).or_else(|| lost_reservation(step)),
        Phase::Rehearsing => lost_rehearsal(step).or_else(|| lost_reservation(step)),
        Phase::Handover | Phase::Freezing | Phase::Transferring | Phase::Restoring => lost_replacement(step),
        _ => None,
    }
}

fn refused_reservation(step: &Step<'_>) -> Option<Failure> {
    let why = step.observed.refused.as_ref()?;
    let message = format!("the reservation was refused: {why}");
    Some(Failure { reason: FailureReason::NoTarget, message, retryable: true })
}

fn lost_reservation(step: &Step<'_>) -> Option<Failure> {
    let failure = |message| Some(Failure { reason: FailureReason::NoTarget, message, retryable: true });
    match &step.observed.reservation {
        Some(pod) if pod.state.is_over() => failure(format!("{} turned the reservation away", place(pod))),
        Some(pod) if pod.terminating => failure(format!("the reservation on {} was deleted", place(pod))),
        None if step.status.reservation.is_some() => failure("the reservation was deleted".to_owned()),
        _ => None,
    }
}

fn lost_rehearsal(step: &Step<'_>) -> Option<Failure> {
    let failure = |message| Some(Failure { reason: FailureReason::ReplacementMissing, message, retryable: true });
    if rehearsing::is_rehearsed(step) {
        return None;
    }
    match &step.observed.rehearsal {
        // One whose container has ended was restored, or was not: the target's agent says which.
        Some(pod) if pod.state == RunState::TurnedAway => failure(format!("{} turned the rehearsal away", place(pod))),
        Some(pod) if pod.terminating => failure(format!("the rehearsal on {} was deleted", place(pod))),
        None if step.status.rehearsal.is_some() => failure("the rehearsal was deleted".to_owned()),
        _ => None,
    }
}

fn lost_replacement(step: &Step<'_>) -> Option<Failure> {
    let failure = |message| Some(Failure { reason: FailureReason::ReplacementMissing, message, retryable: true });
    // From then on nothing is created before the verdict.
    let refused = step.observed.refused.as_ref().filter(|_| step.status.phase == Phase::Handover);
    if let Some(why) = refused {
        return failure(format!("the replacement would not come up: {why}"));
    }
    let recorded = step.status.replacement.as_ref()?;
    match step.replacement() {
        None => failure(format!("the replacement {} was deleted", recorded.name)),
        Some(pod) if pod.terminating => failure(format!("the replacement {} is being deleted", pod.name)),
        Some(pod) if pod.state.is_over() => failure(format!("{} turned the replacement away", place(pod))),
        Some(pod) if pod.node.is_some() && pod.node != step.status.target_node => {
            failure(format!("the replacement {} came to {} instead", pod.name, place(pod)))
        }
        Some(_) => None,
    }
}

fn place(pod: &super::PodSeen) -> &str {
    pod.node.as_deref().unwrap_or("no node")
}

/// What took too long.
fn late(step: &Step<'_>) -> Option<Failure> {
    if let Some(frozen_for) = step.since(Phase::Freezing) {
        let message = format!("the freeze did not end within {} s", VERDICT_BOUND.as_secs());
        return (frozen_for > VERDICT_BOUND).then_some(Failure {
            reason: FailureReason::Timeout,
            message,
            retryable: true,
        });
    }
    let limit = Duration::from_millis(step.status.policy.as_ref().map_or(150_000, |policy| policy.timeout_millis));
    if step.since(Phase::Preparing)? <= limit {
        return None;
    }
    let (reason, waited_for) = unmet(step);
    let message = format!("{waited_for} within {} s", limit.as_secs());
    Some(Failure { reason, message, retryable: true })
}

/// What an attempt waited for when its time was up.
fn unmet(step: &Step<'_>) -> (FailureReason, String) {
    let ready = step.status.source_now().is_some_and(|report| report.step >= SourceStep::Ready);
    match (&step.status.target_node, step.status.phase) {
        (None, _) => {
            let why = step.observed.reservation.as_ref().and_then(|pod| pod.unschedulable.clone());
            let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
            (FailureReason::NoTarget, format!("no node took the reservation{why}"))
        }
        (Some(node), _) if step.status.target_now().is_none() => {
            (FailureReason::AgentUnreachable, format!("the agent on {node} did not answer"))
        }
        (Some(_), _) if !ready => {
            (FailureReason::AgentUnreachable, format!("the agent on {} did not answer", step.source_node()))
        }
        (Some(node), Phase::Handover) => {
            (FailureReason::ReplacementMissing, format!("the replacement did not come up on {node}"))
        }
        (Some(node), Phase::Rehearsing) => (FailureReason::Timeout, format!("the restore on {node} was not rehearsed")),
        (Some(_), _) => (FailureReason::Timeout, "the state was not copied".to_owned()),
    }
}

/// Asks for the abort, and remembers why. The attempt is over only once the object says so.
pub(super) fn abort(step: &mut Step<'_>, failure: Failure) {
    let Some(seen) = step.status.owner.clone() else { return };
    step.say(format!("giving up attempt {}: {}", step.status.attempt, failure.message));
    record(step, failure);
    let (node, attempt) = (step.source_node(), step.status.attempt);
    step.act(Action::Abort { seen, node, attempt });
}

/// Keeps why the current attempt ends: one entry an attempt, the first reason.
pub(super) fn record(step: &mut Step<'_>, failure: Failure) {
    if step.status.failures.len() < step.status.attempt as usize {
        step.status.failures.push(failure);
    }
}
