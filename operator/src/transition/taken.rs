//! Taken: the agents alone decide the attempt, from the go on. The source may end it until it has sent the last of the state, the
//! target from then on. The operator can't tell what is so, and aborts nothing.

use super::decision::Action;
use super::freezing;
use super::step::Step;
use crate::condition;
use std::time::Duration;
use tideover_crds::{Phase, SourceStep};

/// `True` while a target has taken an attempt and has not said what became of it.
const TAKEN: &str = "Taken";

/// How long that may be so once all of the state is there. A target whose agent lives runs what it has taken, or gives it back, within
/// sixty seconds.
const SILENCE_BOUND: Duration = Duration::from_secs(100);
/// How long where nobody says that it is. Agents that live have ended it by then: rounds at the go have 95 seconds, dump and transfer
/// as many, the restore sixty.
const UNHEARD_BOUND: Duration = Duration::from_secs(300);

/// Waits for the agents. Where the target will never say what it has done, it may have let the processes run: then the attempt is
/// committed for it, because the source must not. But a source that may not have been frozen may run: its agent takes the attempt back
/// when it comes, and nobody else can.
pub(super) fn follow(step: &mut Step<'_>) {
    freezing::follow(step);
    let Some(seen) = step.status.owner.clone() else { return };
    let Some(since) = condition::true_since(&step.status.conditions, TAKEN) else {
        return step.condition(TAKEN, true, "BeforeTheCommit");
    };
    let long = step.now.duration_since(since).unsigned_abs() > UNHEARD_BOUND;
    if !long && step.since(Phase::Restoring).is_none_or(|there| there <= SILENCE_BOUND) {
        return;
    }
    if source_runs_no_more(step) {
        step.say(format!("{} has taken the application and does not say whether it runs there", seen.node));
        step.act(Action::Keep { seen });
    } else {
        let source = step.source_node();
        step.say(format!("{} has taken the application, and {source} does not say whether it was frozen", seen.node));
    }
}

/// Whether the source is frozen, and stays so until the attempt is decided, or is gone.
fn source_runs_no_more(step: &Step<'_>) -> bool {
    let frozen = SourceStep::Frozen..SourceStep::Thawed;
    step.status.source_now().is_some_and(|report| frozen.contains(&report.step))
        || step.observed.source_node.is_gone()
        || step.source().is_none()
}

/// What was taken is decided: the next one has its own time.
pub(super) fn is_over(step: &mut Step<'_>) {
    if condition::true_since(&step.status.conditions, TAKEN).is_some() {
        step.condition(TAKEN, false, "Decided");
    }
}
