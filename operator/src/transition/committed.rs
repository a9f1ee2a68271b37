//! Committing: `status.owner` names the target. The source never runs again; everything here only goes forward.

use super::decision::{Action, PodRole};
use super::handover::reference;
use super::observed::RunState;
use super::preparing::PAUSE;
use super::step::Step;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, Phase, SourceStep, Strategy, TargetStep};

/// `True` once the point of no return is passed.
pub(super) const COMMITTED: &str = "Committed";

/// How long the source's agent is waited for after its pod is gone. It kills what is frozen in any case: the verdict
/// is in the object.
const RETIRE_BOUND: Duration = Duration::from_secs(30);

pub(super) fn follow(step: &mut Step<'_>) {
    if step.status.phase != Phase::Committing {
        // An abort may have been asked for and come too late; the attempt did not fail.
        step.status.failures.truncate(step.status.attempt.saturating_sub(1) as usize);
        let message = format!("{} owns the application; waiting for it to run there", owner(step));
        step.enter(Phase::Committing, message);
        step.condition(COMMITTED, true, "TargetOwns");
        step.announce(false, "Committed");
    }
    step.wake_in(PAUSE);
    match step.status.strategy {
        Some(Strategy::ReplaceFirst) => replace_first(step),
        _ => delete_first(step),
    }
}

fn replace_first(step: &mut Step<'_>) {
    if resumed(step) {
        delete_source(step);
        return succeed(step);
    }
    if step.status.replacement.is_some() && step.replacement().is_none() {
        return give_up(step);
    }
    step.say(waiting(step));
}

/// What is waited for, and what the target says is in the way of it.
fn waiting(step: &Step<'_>) -> String {
    let message = format!("{} owns the application; waiting for it to run there", owner(step));
    match step.status.target_now().and_then(|report| report.failure.as_ref()) {
        Some(failure) => format!("{message}; so far: {}", failure.message),
        None => message,
    }
}

/// The replacement was deleted after the commit and before it ran. The source may not run either, so what is left is
/// to let the controller start the application cold, and to say so.
fn give_up(step: &mut Step<'_>) {
    delete_source(step);
    if step.source().is_some() {
        return;
    }
    let message = "the replacement was deleted after the commit: the application starts cold".to_owned();
    step.status.failures.push(Failure {
        reason: FailureReason::ReplacementMissing,
        message: message.clone(),
        retryable: false,
    });
    step.end(Phase::Failed, message);
}

fn delete_first(step: &mut Step<'_>) {
    if resumed(step) {
        delete_source(step);
        return succeed(step);
    }
    delete_source(step);
    if let Some(pod) = &step.observed.reservation {
        step.delete(PodRole::Reservation, pod, 0);
    }
    match step.observed.replacements.iter().find(|pod| !pod.terminating) {
        // Nothing of it was started, and the state is still there: once more.
        Some(pod) if pod.state == RunState::TurnedAway => {
            step.status.replacement = None;
            step.delete(PodRole::Replacement, pod, 0);
            step.say("the replacement was turned away; another one is made");
        }
        Some(pod) => {
            step.status.replacement = Some(reference(pod));
            step.say(waiting(step));
        }
        None => {
            step.status.replacement = None;
            replace(step);
        }
    }
}

fn replace(step: &mut Step<'_>) {
    let stranger = step.observed.source.as_ref().filter(|pod| {
        step.source().is_none() && !step.observed.replacements.iter().any(|ours| ours.uid == pod.pod.uid)
    });
    if let Some(stranger) = stranger {
        let message = format!("another pod has the name {}; the state waits on {}", stranger.pod.name, owner(step));
        return step.say(message);
    }
    match step.status.pod_manifest.clone() {
        // The delete goes before it in the same decision: this is inside the freeze, and every round trip counts.
        Some(manifest) => step.act(Action::CreateReplacement { manifest, node: owner(step) }),
        None => step.say(format!("waiting for the controller to make the replacement for {}", owner(step))),
    }
}

fn resumed(step: &Step<'_>) -> bool {
    step.status.target_now().is_some_and(|report| report.step == TargetStep::Resumed)
}

fn delete_source(step: &mut Step<'_>) {
    if let Some(source) = step.source() {
        step.delete(PodRole::Source, &source.pod, 0);
    }
}

fn succeed(step: &mut Step<'_>) {
    let retired = step.status.source_now().is_some_and(|report| report.step == SourceStep::Retired);
    let out_of_reach = step.observed.source_node.is_gone()
        || step.since(Phase::Committing).is_some_and(|waited| waited > RETIRE_BOUND);
    if step.source().is_none() && (retired || out_of_reach) {
        return step.end(Phase::Succeeded, format!("the pod runs on {}", owner(step)));
    }
    step.say(format!("the application runs on {}; cleaning up on {}", owner(step), step.source_node()));
}

fn owner(step: &Step<'_>) -> String {
    step.status.owner.as_ref().map(|owner| owner.node.clone()).unwrap_or_default()
}
