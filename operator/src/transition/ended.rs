//! Succeeded, Failed, Cancelled: nothing leads out; what is left of the move is tidied away.

use super::decision::Action;
use super::lost;
use super::observed::Claim;
use super::step::Step;

/// `True` once the Migration is over.
pub(super) const COMPLETED: &str = "Completed";

pub(super) fn tidy(step: &mut Step<'_>) {
    lost::tell(step);
    step.clear_away();
    let ours = step.observed.source.as_ref().filter(|source| source.claim == Claim::Ours);
    if let Some(source) = ours {
        return step.act(Action::ReleasePod { name: source.pod.name.clone(), uid: source.pod.uid.clone() });
    }
    if step.has_finalizer() {
        step.act(Action::RemoveFinalizer);
    }
}
