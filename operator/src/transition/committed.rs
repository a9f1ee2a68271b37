//! Committing: `status.owner` names the target. The source never runs again; everything here only goes forward.

use super::decision::{Action, PodRole};
use super::given_up;
use super::handover::reference;
use super::lost;
use super::observed::RunState;
use super::preparing::PAUSE;
use super::step::Step;
use crate::condition;
use std::time::Duration;
use tideover_crds::{Phase, SourceStep, Strategy, TargetStep};

/// `True` once the point of no return is passed.
pub(super) const COMMITTED: &str = "Committed";

/// `True` while the target says that it can't run what it owns. The state is kept, and every `create` tries again.
const RESTORE_FAILING: &str = "RestoreFailing";

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
    if step.status.is_given_up() {
        return given_up::follow(step);
    }
    if resumed(step) {
        delete_source(step);
        succeed(step);
        return lost::tell(step);
    }
    if let Some(reason) = given_up::reason(step) {
        // What follows from it is decided on an object that says so, and says as well whether the target was quicker.
        return given_up::decide(step, reason);
    }
    wait(step);
    if step.status.strategy != Some(Strategy::ReplaceFirst) {
        delete_first(step);
    }
}

/// Says what is waited for. Where the target says why it can't go on: that, and what can be done about it.
fn wait(step: &mut Step<'_>) {
    let failure = step.status.target_now().and_then(|report| report.failure.clone());
    let Some(failure) = failure else {
        return step.say(format!("{} owns the application; waiting for it to run there", owner(step)));
    };
    let says = format!(
        "{} owns the application and can't run it yet: {}; mend the cause, or give the state up and let the application \
         start cold: kubectl delete migration {}",
        owner(step),
        failure.message,
        step.name()
    );
    let known = step.status.conditions.iter().find(|one| one.type_ == RESTORE_FAILING && one.status == "True");
    let news = known.is_none_or(|known| known.message != says);
    step.say(says);
    step.condition(RESTORE_FAILING, true, &format!("{:?}", failure.reason));
    if news {
        step.announce(true, RESTORE_FAILING);
    }
}

/// The name has to be free for the replacement.
fn delete_first(step: &mut Step<'_>) {
    delete_source(step);
    step.clear_away();
    match step.observed.replacements.iter().find(|pod| !pod.terminating) {
        // Nothing of it has run, and the state is still there: once more. A full disk makes kubelet evict it, for one.
        Some(pod) if pod.state == RunState::TurnedAway => {
            step.status.replacement = None;
            step.delete(PodRole::Replacement, pod, 0);
            step.say("kubelet has given the replacement up; another one is made");
        }
        Some(pod) => step.status.replacement = Some(reference(pod)),
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
    match (step.status.pod_manifest.clone(), &step.observed.refused) {
        (Some(_), Some(why)) => {
            let message = format!("the replacement can't be made, and the state waits on {}: {why}", owner(step));
            step.say(message);
        }
        // The delete goes before it in the same decision: this is inside the freeze, and every round trip counts.
        (Some(manifest), None) => step.act(Action::CreateReplacement { manifest, node: owner(step) }),
        (None, _) => step.say(format!("waiting for the controller to make the replacement for {}", owner(step))),
    }
}

pub(super) fn resumed(step: &Step<'_>) -> bool {
    step.status.target_now().is_some_and(|report| report.step == TargetStep::Resumed)
}

pub(super) fn delete_source(step: &mut Step<'_>) {
    if let Some(source) = step.source() {
        if source.in_job {
            let (name, uid) = (source.pod.name.clone(), source.pod.uid.clone());
            step.act(Action::TakeOutOfJob { name, uid });
        }
        step.delete(PodRole::Source, &source.pod, 0);
    }
}

fn is_failing(step: &Step<'_>) -> bool {
    condition::true_since(&step.status.conditions, RESTORE_FAILING).is_some()
}

fn succeed(step: &mut Step<'_>) {
    if is_failing(step) {
        step.condition(RESTORE_FAILING, false, "Restored");
    }
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
