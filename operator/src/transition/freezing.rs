//! Freezing, Transferring, Restoring: the agents act on their own; the phase only says how far they are.

use super::preparing::PAUSE;
use super::step::Step;
use tideover_crds::{Phase, SourceStep, Strategy, TargetStep};

pub(super) fn follow(step: &mut Step<'_>) {
    step.wake_in(PAUSE);
    let source = step.status.source_now().map(|report| report.step);
    let dumped = source >= Some(SourceStep::Dumped);
    // The target has verified what the source says that it has sent.
    let staged = source >= Some(SourceStep::Sent)
        || step.status.target_now().is_some_and(|report| report.step >= TargetStep::Staged);
    let held_before_commit = step.status.strategy == Some(Strategy::ReplaceFirst);
    let target = step.target_node();
    // Reports of the two sides come in any order: the phase only goes forward.
    if staged && held_before_commit {
        step.enter(Phase::Restoring, format!("the processes are rebuilt on {target}"));
    } else if (dumped || staged) && step.status.phase < Phase::Transferring {
        step.enter(Phase::Transferring, format!("the last of the state crosses to {target}"));
    }
}
