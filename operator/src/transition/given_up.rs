//! Given up after the commit: the state will not run any more, and the source may not, so the application starts cold.
//!
//! That is decided once, in the condition [`GIVEN_UP`], which is written before anything follows from it: a target that
//! comes back too late finds the state given up, and admission leaves the pods that a controller makes from then on
//! alone. The source's object goes first, and a cold copy comes only where no restored one can: a replacement that is
//! still there is the one that starts cold, in its place.

use super::decision::{Action, PodRole};
use super::handover::reference;
use super::observed::{PodSeen, RunState};
use super::step::Step;
use super::{committed, stop};
use crate::condition;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, Phase, Strategy};

/// `True` once the state of a committed move was given up.
pub(crate) const GIVEN_UP: &str = "GivenUp";

/// How long the application has to run after the commit before deleting the Migration gives its state up. Who deletes one
/// earlier means to abort the move, and comes too late for that: the restore is then about to succeed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the state of a committed move is given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// CamelCase.
    word: &'static str,
    /// What has happened.
    because: String,
}

pub(super) fn is_decided(step: &Step<'_>) -> bool {
    condition::true_since(&step.status.conditions, GIVEN_UP).is_some()
}

/// Whether there is a reason to give up a move that is committed and does not run yet.
pub(super) fn reason(step: &Step<'_>) -> Option<Reason> {
    let target = step.target_node();
    if step.target_is_gone() {
        let because = format!("the node {target} is gone, and the state with it");
        return Some(Reason { word: "TargetGone", because });
    }
    if let (Some(Strategy::ReplaceFirst), Some(recorded)) = (step.status.strategy, &step.status.replacement) {
        // The ReplicaSet makes another pod in each of these cases, and that one is not restored. A node that is lost has
        // its pods marked as terminating after a while.
        let lost = match step.replacement() {
            None => Some("was deleted"),
            Some(pod) if pod.terminating => Some("is being deleted"),
            Some(pod) if pod.state.is_over() => Some("has ended"),
            Some(_) => None,
        };
        if let Some(lost) = lost {
            let because = format!("the replacement {} {lost} after the commit and before it ran", recorded.name);
            return Some(Reason { word: "ReplacementLost", because });
        }
    }
    if step.is_deleted() && step.since(Phase::Committing).is_some_and(|waited| waited > PATIENCE) {
        let because = format!("the Migration was deleted before the application ran on {target}");
        return Some(Reason { word: "MigrationDeleted", because });
    }
    None
}

pub(super) fn decide(step: &mut Step<'_>, reason: Reason) {
    let message = format!("{}: the application starts cold", reason.because);
    stop::record(step, Failure { reason: FailureReason::StateLost, message: message.clone(), retryable: false });
    step.say(message);
    step.condition(GIVEN_UP, true, reason.word);
}

/// Takes away what would stand in the way of a cold start, and ends.
pub(super) fn follow(step: &mut Step<'_>) {
    committed::delete_source(step);
    if let Some(pod) = &step.observed.reservation {
        step.delete(PodRole::Reservation, pod, 0);
    }
    let hopeless: Vec<&PodSeen> = step.observed.replacements.iter().filter(|pod| is_hopeless(step, pod)).collect();
    for pod in hopeless {
        step.delete(PodRole::Replacement, pod, 0);
    }
    if step.source().is_some() {
        return;
    }
    match step.status.strategy {
        Some(Strategy::ReplaceFirst) => end(step),
        _ => put_back(step),
    }
}

/// A replacement of which no container will ever start.
fn is_hopeless(step: &Step<'_>, pod: &PodSeen) -> bool {
    step.target_is_gone() || pod.state.is_over()
}

/// The name is free, or a pod has it that will start cold, or that is going.
fn put_back(step: &mut Step<'_>) {
    let starts_cold = step.observed.replacements.iter().find(|pod| !pod.terminating && !is_hopeless(step, pod));
    if let Some(pod) = starts_cold {
        step.status.replacement = Some(reference(pod));
        return end(step);
    }
    if !step.observed.replacements.is_empty() {
        return;
    }
    match (step.status.pod_manifest.clone(), &step.observed.source) {
        // Without a controller nobody else makes it again, and it was the move that deleted it.
        (Some(manifest), None) => match &step.observed.refused {
            None => step.act(Action::CreateCold { manifest }),
            // A namespace that is being removed, for one, takes no more pods, and waits for this Migration to go.
            Some(_) if step.is_deleted() => end(step),
            Some(why) => {
                let message = format!("the pod {} can't be made again: {why}", step.migration().spec.pod.name);
                step.say(message);
            }
        },
        (Some(_), Some(cold)) => {
            step.status.replacement = Some(reference(&cold.pod));
            end(step);
        }
        (None, _) => end(step),
    }
}

fn end(step: &mut Step<'_>) {
    let message = step.status.failures.last().map(|failure| failure.message.clone()).unwrap_or_default();
    step.end(Phase::Failed, message);
}

/// Whether a pod that is to start cold has still to be told so: it asks for its Migration by name, and must find it.
pub(super) fn is_asked_for(step: &Step<'_>) -> bool {
    let waits = |pod: &PodSeen| !pod.terminating && pod.state == RunState::Pending;
    is_decided(step) && step.observed.replacements.iter().any(waits)
}
