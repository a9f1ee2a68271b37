//! The state machine of a Migration: what is to be done next, as data.
//!
//! [`transition`] owns every decision about a move. It does no I/O and reads no clock: what is known comes in as
//! [`Observed`], and what is to be done goes out as [`Decision`]. It never writes `status.owner` once the Migration is
//! accepted: an attempt is decided by a compare-and-swap, of which [`Action::Abort`] and [`Action::Keep`] are the operator's
//! part, and what follows is read back from the object. So whatever was lost, repeated or done by somebody else in between, the next
//! decision starts from what is.

mod backing_off;
mod committed;
mod decision;
mod ended;
mod freezing;
mod given_up;
mod handover;
mod hosts;
mod lost;
mod observed;
mod pending;
mod pre_copying;
mod preparing;
mod rehearsing;
mod rolling_back;
mod step;
mod stop;
mod taken;

#[cfg(test)]
mod tests;

pub use decision::{Action, Announcement, Decision, PodRole, RehearsalWish, ReservationWish};
pub use observed::{Claim, Controller, NodeSeen, Observed, PodSeen, Room, RunState, SourceSeen};

pub(crate) use step::{rehearsal_name, reservation_name};

use jiff::Timestamp;
use step::Step;
use tideover_crds::Phase;
use tideover_crds::migration::Verdict;

/// A decision passes each phase at most once.
const PHASES: usize = 14;

/// Decides what is next for one Migration.
///
/// The status in the decision is to be written before its actions are taken: each of them is right under that status,
/// and none under another. Actions are levels, not edges: an action whose effect is not seen is decided again.
pub fn transition(observed: &Observed, now: Timestamp) -> Decision {
    let mut step = Step::new(observed, now);
    for _ in 0..PHASES {
        let before = step.status.phase;
        one_phase(&mut step);
        if step.status.phase == before {
            break;
        }
    }
    step.into_decision()
}

fn one_phase(step: &mut Step<'_>) {
    if step.status.phase.is_terminal() {
        return ended::tidy(step);
    }
    if step.status.owner.is_none() {
        return pending::examine(step);
    }
    if step.status.verdict() != Verdict::Taken {
        taken::is_over(step);
    }
    match step.status.verdict() {
        // The point of no return lies behind: nothing below this line may lead to a roll-back.
        Verdict::Committed => committed::follow(step),
        Verdict::Taken => taken::follow(step),
        Verdict::Aborted if step.status.phase == Phase::BackingOff => backing_off::wait(step),
        Verdict::Aborted => rolling_back::undo(step),
        Verdict::Open => match stop::reason(step) {
            Some(failure) => stop::abort(step, failure),
            None => match step.status.phase {
                Phase::PreCopying => pre_copying::follow(step),
                Phase::Rehearsing => rehearsing::drive(step),
                Phase::Handover => handover::drive(step),
                Phase::Freezing | Phase::Transferring | Phase::Restoring => freezing::follow(step),
                _ => preparing::drive(step),
            },
        },
    }
}
