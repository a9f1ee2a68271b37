//! BackingOff: the application runs on the source; the next attempt waits for its time.

use super::rolling_back::uncounted;
use super::step::Step;
use super::stop;
use std::time::Duration;
use tideover_crds::{FailureReason, Phase};

/// The longest pause while agents are being upgraded: the next node may have its turn by then.
const ROLL_OUT_PAUSE: Duration = Duration::from_secs(60);

pub(super) fn wait(step: &mut Step<'_>) {
    if let Some(message) = stop::cancelled(step) {
        return step.end(Phase::Cancelled, message);
    }
    step.clear_away();
    let first = step.status.policy.as_ref().map_or(5_000, |policy| policy.retry_delay_millis);
    let in_roll_out = step.status.failures.last().is_some_and(|failure| failure.reason == FailureReason::AgentVersions);
    // What met a roll-out does not make the pauses after it longer.
    let before = if in_roll_out { 0 } else { uncounted(step) };
    let doublings = step.status.attempt.saturating_sub(before).saturating_sub(1).min(16);
    let mut delay = Duration::from_millis(first.saturating_mul(1 << doublings));
    if in_roll_out {
        delay = delay.min(ROLL_OUT_PAUSE);
    }
    let waited = step.since(Phase::BackingOff).unwrap_or_default();
    if waited < delay {
        return step.wake_in(delay - waited);
    }
    let status = &mut step.status;
    status.attempt += 1;
    status.reservation = None;
    status.rehearsal = None;
    status.target_node = None;
    status.replacement = None;
    let message = format!("attempt {}: looking for a node to move the pod to", step.status.attempt);
    step.enter(Phase::Preparing, message);
}
