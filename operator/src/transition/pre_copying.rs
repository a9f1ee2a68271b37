//! PreCopying: state crosses while the application runs, until the source says that the freeze will be short.

use super::preparing::PAUSE;
use super::rehearsing;
use super::step::Step;
use tideover_crds::{Phase, SourceStep, Strategy};

pub(super) fn follow(step: &mut Step<'_>) {
    let converged = step.status.source_now().is_some_and(|report| report.step >= SourceStep::Converged);
    if !converged {
        return step.wake_in(PAUSE);
    }
    match step.status.strategy {
        Some(Strategy::ReplaceFirst) => {
            let message = format!("the replacement comes up on {}", step.target_node());
            step.enter(Phase::Handover, message);
        }
        _ => rehearsing::begin(step),
    }
}
