//! RollingBack: the attempt is aborted, so the source may run; what was made for the target is taken away.
//!
//! The label goes back first: were the replacement deleted before, the ReplicaSet would make another one, and that
//! would be a second copy.

use super::decision::{Action, PodRole};
use super::preparing::PAUSE;
use super::step::Step;
use super::stop;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, Phase, SourceStep, TargetStep};

/// How long an agent that does not answer is waited for, where nothing can be frozen. `status.owner` keeps everybody
/// safe from what it may still do.
const AGENT_BOUND: Duration = Duration::from_secs(20);

/// How many attempts may meet a roll-out of the agents without counting. With a minute between two of them that is a good quarter of an
/// hour; where agents of two versions are meant to stay, the move must end at some time.
const ROLL_OUT_ATTEMPTS: u32 = 20;

pub(super) fn undo(step: &mut Step<'_>) {
    if step.status.phase != Phase::RollingBack {
        let why = why(step);
        let message = format!("rolling back attempt {}: {}", step.status.attempt, why.message);
        stop::record(step, why);
        step.enter(Phase::RollingBack, message);
        step.announce(true, "RollingBack");
    }
    step.wake_in(PAUSE);
    put_back(step);
    for pod in &step.observed.replacements {
        step.delete(PodRole::Replacement, pod, 0);
    }
    step.clear_away();
    if source_is_back(step) && target_is_clean(step) {
        avoid(step);
        conclude(step);
    }
}

/// The reason that was recorded, or the one that an agent which aborted by itself gave.
fn why(step: &Step<'_>) -> Failure {
    if let Some(recorded) = step.status.failures.get(step.status.attempt as usize - 1) {
        return recorded.clone();
    }
    let source = step.status.source_now().and_then(|report| report.failure.clone());
    source.or_else(|| step.status.target_now().and_then(|report| report.failure.clone())).unwrap_or_else(|| Failure {
        reason: FailureReason::AgentRestarted,
        message: "the source took the application back before the commit".to_owned(),
        retryable: true,
    })
}

fn put_back(step: &mut Step<'_>) {
    let Some(source) = step.source() else { return };
    if let Some(hash) = source.original_template_hash.clone() {
        let (name, uid) = (source.pod.name.clone(), source.pod.uid.clone());
        step.act(Action::PutBackIntoReplicaSet { name, uid, hash });
    }
}

fn source_is_back(step: &Step<'_>) -> bool {
    let Some(source) = step.source() else { return true };
    let report = step.status.source_now();
    if step.observed.source_node.is_gone() || report.is_some_and(|report| report.step == SourceStep::Thawed) {
        return source.original_template_hash.is_none() || source.pod.terminating;
    }
    // Without the go, and without a cut for a rehearsal, nothing was frozen, so there is nothing that must be waited for.
    let may_be_frozen = step.since(Phase::Freezing).or(step.since(Phase::Rehearsing)).is_some();
    !may_be_frozen && source.original_template_hash.is_none() && (report.is_none() || waited(step))
}

fn target_is_clean(step: &Step<'_>) -> bool {
    let clean = match step.status.target_now() {
        None => true,
        Some(report) => report.step == TargetStep::Destroyed || step.target_is_gone(),
    };
    let observed = step.observed;
    (clean && observed.replacements.is_empty() && observed.rehearsal.is_none()) || waited(step)
}

fn waited(step: &Step<'_>) -> bool {
    step.since(Phase::RollingBack).is_some_and(|waited| waited > AGENT_BOUND)
}

/// Remembers a target that is to blame.
fn avoid(step: &mut Step<'_>) {
    let Some(node) = step.status.target_node.clone() else { return };
    let Some(failure) = step.status.failures.last() else { return };
    let accused = step.status.target_now().is_some_and(|report| report.failure.is_some());
    let list = match failure.reason {
        FailureReason::Cancelled => return,
        FailureReason::IncompatibleHost => &mut step.status.incompatible_nodes,
        FailureReason::NoTarget
        | FailureReason::ReplacementMissing
        | FailureReason::TransferFailed
        | FailureReason::Corrupted
        | FailureReason::RestoreFailed
        | FailureReason::AgentUnreachable
        | FailureReason::AgentVersions
        | FailureReason::Timeout => &mut step.status.avoided_nodes,
        _ if accused => &mut step.status.avoided_nodes,
        _ => return,
    };
    if !list.contains(&node) {
        list.push(node);
    }
}

/// How many attempts do not count towards the policy's limit: those that met a roll-out of the agents.
pub(super) fn uncounted(step: &Step<'_>) -> u32 {
    let met = step.status.failures.iter().filter(|failure| failure.reason == FailureReason::AgentVersions).count();
    u32::try_from(met).unwrap_or(u32::MAX).min(ROLL_OUT_ATTEMPTS)
}

fn conclude(step: &mut Step<'_>) {
    let failure = why(step);
    let attempt = step.status.attempt;
    if failure.reason == FailureReason::Cancelled {
        return step.end(Phase::Cancelled, failure.message);
    }
    if let Some(message) = stop::cancelled(step) {
        return step.end(Phase::Cancelled, message);
    }
    let attempts = step.status.policy.as_ref().map_or(1, |policy| policy.max_attempts);
    if !failure.retryable {
        return step.end(Phase::Failed, failure.message);
    }
    if attempt.saturating_sub(uncounted(step)) >= attempts {
        let tries = if attempt == 1 { "1 attempt".to_owned() } else { format!("{attempt} attempts") };
        return step.end(Phase::Failed, format!("gave up after {tries}: {}", failure.message));
    }
    step.enter(
        Phase::BackingOff,
        format!("attempt {} will follow attempt {attempt}: {}", attempt + 1, failure.message),
    );
}
