//! The attempt is taken at the go, so that nothing in the freeze waits for the API server, nor for a processor that it has; and made
//! final, or given back.
//!
//! Of what is taken and not final, once the source has said its last word, there are two ways out: [`TargetDriver::run_taken`] uses the
//! proof up to let the processes run, and `give_back` uses it up because they will not. Before that the source may end it as well.

use super::TargetDriver;
use super::memory::is_served;
use crate::agent::duty::Taking;
use crate::agent::failure::retryable;
use crate::agent::owner::{Decision, MayResume, OwnerError, TakeOutcome, Taken};
use crate::agent::programs;
use crate::agent::source::freeze::millis;
use crate::agent::target::event::Event;
use crate::agent::transfer::message::FromTarget;
use crate::agent::unpassed::Unpassed;
use crate::causes::chain;
use std::path::PathBuf;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, Migration, TargetStep};
use tracing::{error, info, warn};

/// How long the processes may take to be rebuilt, once all of the state is there, before what is taken is given back.
const RESTORE_LIMIT: Duration = Duration::from_secs(60);
/// How long what was taken counts without another look at the object, also where the node was suspended. The operator commits what
/// was taken far later (`operator/src/transition/taken.rs`), and may give its state up after that.
const FRESH: Duration = Duration::from_secs(5);
/// How long the processes run before it is written that they do.
const FIRST_PAGES: Duration = Duration::from_millis(100);
/// Name of the file that is there as long as CRIU had no request, in the attempt's directory. No container has a name that begins so.
const UNRELEASED: &str = ".unreleased";

/// Whether this agent has taken the attempt, with the proof.
#[derive(Debug, Default)]
pub(super) enum Claim {
    /// It has not tried.
    #[default]
    None,
    /// It tries, since then.
    UnderWay(Since),
    /// It has, and tried since then.
    Won(Taken, Since),
    /// It had, or somebody was quicker.
    Over,
}

/// A moment, and how long ago it was with the time in which the machine was suspended.
#[derive(Clone, Copy, Debug)]
pub struct Since(Duration);

impl Since {
    fn now() -> Self {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default()))
    }

    fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

impl Claim {
    /// What a decision has to know of it.
    pub(super) fn taking(&self) -> Taking {
        match self {
            Self::None => Taking::Not,
            Self::UnderWay(_) | Self::Over => Taking::UnderWay,
            Self::Won(..) => Taking::Done,
        }
    }
}

impl TargetDriver {
    /// Where it is told whoever comes after this agent that it may give back what was taken.
    pub(super) fn unreleased_file(&self) -> PathBuf {
        self.directory().join(UNRELEASED)
    }

    /// Takes the attempt before everything has landed.
    pub(super) async fn take_early(&mut self, migration: &Migration) {
        if self.unreleased.is_none() {
            let file = self.unreleased_file();
            let written = tokio::task::spawn_blocking(move || Unpassed::write(&file)).await;
            match written.map_err(std::io::Error::other).flatten() {
                Ok(unreleased) => self.unreleased = Some(unreleased),
                Err(error) => return self.fail(retryable(FailureReason::RestoreFailed, chain(&error))).await,
            }
        }
        self.begin_to_take(migration);
        // The go: CRIU will be at work soon, and what was read for it when it was started may have gone again.
        programs::read_ahead(&self.context);
        (0..self.lanes.len()).for_each(|lane| self.warm(lane));
    }

    /// CRIU is about to see the images.
    pub(super) fn pass_release(&mut self) -> Result<(), Failure> {
        let Some(Err((unreleased, error))) = self.unreleased.take().map(Unpassed::pass) else { return Ok(()) };
        if self.committed_here() {
            // There is nothing to give back.
            return Ok(());
        }
        self.unreleased = Some(unreleased);
        Err(retryable(FailureReason::RestoreFailed, chain(&error)))
    }

    /// Where it was taken some time ago: looks beside CRIU whether it still is, so that it counts when the processes are held.
    pub(super) fn look_again(&self) {
        if !matches!(&self.claim, Claim::Won(_, since) if since.elapsed() > FRESH / 2) {
            return;
        }
        let (ownership, node) = (self.context.ownership(&self.key), self.context.settings.node_name.clone());
        let (attempt, events, since) = (self.local.attempt, self.own_events.clone(), Since::now());
        tokio::spawn(async move {
            // Otherwise the watch will show what became of it, or it is committed before the processes run.
            if let Ok(true) = ownership.is_taken(attempt, &node).await {
                events.send(Event::StillTaken { attempt, since }).await.ok();
            }
        });
    }

    /// The object has shown that it is taken, after `since`.
    pub(super) fn is_still_taken(&mut self, since: Since) {
        if let Claim::Won(_, seen) = &mut self.claim {
            *seen = since;
        }
    }

    /// Looks in a while whether the processes are rebuilt.
    pub(super) fn expect_restore(&self) {
        let (attempt, events) = (self.local.attempt, self.own_events.clone());
        tokio::spawn(async move {
            tokio::time::sleep(RESTORE_LIMIT).await;
            // A driver that is gone has seen the object go.
            events.send(Event::Overdue { attempt }).await.ok();
        });
    }

    /// Begins to take the attempt, unless this agent has before.
    pub(super) fn begin_to_take(&mut self, migration: &Migration) {
        if !matches!(self.claim, Claim::None) {
            return;
        }
        self.claim = Claim::UnderWay(Since::now());
        let seen = migration.status.as_ref().and_then(|status| status.owner.clone());
        let (ownership, node) = (self.context.ownership(&self.key), self.context.settings.node_name.clone());
        let (attempt, events) = (self.local.attempt, self.own_events.clone());
        tokio::spawn(async move {
            let outcome = ownership.take(attempt, &node, seen).await;
            // A driver that is gone has seen the object go.
            events.send(Event::Taken { attempt, outcome }).await.ok();
        });
    }

    /// It is known whether the attempt is this agent's.
    pub(super) async fn was_taken(&mut self, outcome: Result<TakeOutcome, OwnerError>) {
        let begun = std::mem::replace(&mut self.claim, Claim::Over);
        let Claim::UnderWay(begun) = begun else { return };
        self.timings().commit_millis = millis(begun.elapsed());
        match outcome {
            Ok(TakeOutcome::Taken(proof)) if self.local.failed => self.give_back(proof),
            Ok(TakeOutcome::Taken(proof)) => self.claim = Claim::Won(proof, begun),
            // The watch will show it, and what follows from it.
            Ok(TakeOutcome::Decided(decision)) => {
                info!(
                    migration = self.key.name,
                    attempt = self.local.attempt,
                    ?decision,
                    "decided before it was taken"
                );
            }
            Err(error) => {
                warn!(migration = self.key.name, error = %chain(&error), "nothing to take");
                self.destroy(self.local.attempt).await;
            }
        }
    }

    /// The processes should have been rebuilt by now: CRIU hangs.
    pub(super) async fn is_overdue(&mut self) {
        if !self.committed_here() {
            let message = format!("the processes were not rebuilt within {} s", RESTORE_LIMIT.as_secs());
            self.fail(retryable(FailureReason::RestoreFailed, message)).await;
        }
    }

    /// Lets the processes run that are held, and commits. **The point of no return**: after it the source never runs again, so
    /// whatever fails from there on is tried again here and undone nowhere.
    pub(super) async fn run_taken(&mut self, migration: &Migration) {
        if matches!(&self.claim, Claim::Won(_, since) if since.elapsed() > FRESH) {
            // Committed first, and let run by what the object says then.
            self.claim = Claim::Over;
            return self.commit(migration, self.local.attempt).await;
        }
        for lane in 0..self.lanes.len() {
            if let Err(failure) = is_served(&self.lane_directory(lane)).await {
                return self.fail(failure).await;
            }
        }
        let Claim::Won(proof, _) = std::mem::replace(&mut self.claim, Claim::Over) else { return };
        let attempt = proof.attempt();
        self.committed = true;
        self.resume(MayResume::Taken(proof)).await;
        let (ownership, node) = (self.context.ownership(&self.key), self.context.settings.node_name.clone());
        let events = self.own_events.clone();
        tokio::spawn(async move {
            // What follows from it all over the cluster would take processors from the application, whose first pages are being brought.
            tokio::time::sleep(FIRST_PAGES).await;
            let decision = ownership.keep(attempt, &node).await;
            events.send(Event::Kept { attempt, decision }).await.ok();
        });
    }

    /// The commit of what was told to run is written.
    pub(super) async fn was_kept(&mut self, decision: Result<Decision, OwnerError>) {
        match decision {
            Ok(Decision::Committed(proof)) if proof.node() == self.context.settings.node_name => {
                self.was_committed().await;
            }
            // Nobody but this agent can have given it back, and it has not.
            Ok(decision) => error!(migration = self.key.name, ?decision, "what was taken was decided by somebody else"),
            Err(error) => warn!(migration = self.key.name, error = %chain(&error), "nothing to commit to"),
        }
    }

    /// The commit is in the object.
    pub(super) async fn was_committed(&mut self) {
        self.tell_source(FromTarget::Committed).await;
        if self.report.step < TargetStep::Committed {
            self.reach(TargetStep::Committed);
        }
    }

    /// Gives the attempt back, if it was taken.
    pub(super) fn give_up_claim(&mut self) {
        match std::mem::replace(&mut self.claim, Claim::Over) {
            Claim::Won(proof, _) => self.give_back(proof),
            // Once it is known what came of it.
            under_way @ Claim::UnderWay(_) => self.claim = under_way,
            Claim::None | Claim::Over => {}
        }
    }

    /// Gives the attempt back to the source. The watch will show it, and what follows from it.
    fn give_back(&self, proof: Taken) {
        let (ownership, name) = (self.context.ownership(&self.key), self.key.name.clone());
        tokio::spawn(async move {
            match ownership.give_back(proof).await {
                Ok(decision) => info!(migration = name, ?decision, "given back"),
                Err(error) => warn!(migration = name, error = %chain(&error), "nothing to give back"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_not_tried_again() {
        assert_eq!(Claim::default().taking(), Taking::Not);
        assert_eq!(Claim::UnderWay(Since::now()).taking(), Taking::UnderWay);
        assert_eq!(Claim::Over.taking(), Taking::UnderWay, "its outcome is in the object");
    }
}
