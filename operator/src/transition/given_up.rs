//! Given up after the commit: the state will not run any more, and the source may not, so the application starts cold.
//!
//! That is decided once, in the condition [`GIVEN_UP`], which is written before anything follows from it: a target that
//! comes back too late finds the state given up, and admission leaves the pods that a controller makes from then on
//! alone. The source's object goes first, then every replacement that has not run, and a cold copy comes only once those
//! are gone: it starts wherever there is room, and not where the state could not be restored.

use super::decision::{Action, PodRole};
use super::handover::reference;
use super::observed::PodSeen;
use super::step::Step;
use super::{committed, stop};
use std::time::Duration;
use tideover_crds::migration::GIVEN_UP;
use tideover_crds::{Failure, FailureReason, Phase, Strategy};

/// How long the application has to run after the commit before deleting the Migration gives its state up. Who deletes one
/// earlier means to abort the move, and comes too late for that: the restore is then about to succeed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Seconds that a replacement gets to end.
const GRACE: u32 = 1;

/// Why the state of a committed move is given up.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reason {
    /// CamelCase.
    word: &'static str,
    /// What has happened.
    because: String,
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
    let failure = step.status.target_now().and_then(|report| report.failure.as_ref());
    let lost = failure.filter(|failure| failure.reason == FailureReason::StateLost && !failure.retryable);
    if let (Some(Strategy::DeleteFirst), Some(lost)) = (step.status.strategy, lost) {
        return Some(Reason { word: "StateLost", because: lost.message.clone() });
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
    if !clear_replacements(step) || step.source().is_some() {
        return;
    }
    match step.status.strategy {
        Some(Strategy::ReplaceFirst) => end(step),
        _ => put_back(step),
    }
}

/// Deletes every replacement that has not run. True once none of them can stand beside a cold copy any more.
fn clear_replacements(step: &mut Step<'_>) -> bool {
    // The target may have been quicker than the decision, and kubelet is slower than both.
    let runs = step.replacement().filter(|_| committed::resumed(step)).map(|pod| &pod.uid);
    let waits = |pod: &&PodSeen| !pod.state.has_run() && Some(&pod.uid) != runs;
    let waiting = step.observed.replacements.iter().filter(waits);
    let mut clear = true;
    for pod in waiting {
        // kubelet ends what may be under way there, and the object stays until it has. Where there is no kubelet any more,
        // nobody would say so.
        let nobody_there = step.target_is_gone() || pod.state.is_over() || pod.node.is_none();
        step.delete(PodRole::Replacement, pod, if nobody_there { 0 } else { GRACE });
        // A ReplicaSet makes another pod as soon as this one is about to go.
        clear &= step.status.strategy == Some(Strategy::ReplaceFirst) && pod.terminating;
    }
    clear
}

/// The name is free, or a pod has it that has run.
fn put_back(step: &mut Step<'_>) {
    if let Some(pod) = step.observed.replacements.iter().find(|pod| !pod.terminating) {
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
