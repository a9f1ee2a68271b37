//! From held to running: the commit of what is not taken before, the resume, and what becomes of a restore that fails.

use super::TargetDriver;
use super::memory::is_served;
use crate::agent::failure::retryable;
use crate::agent::owner::{Decision, MayResume};
use crate::agent::source::freeze::millis;
use crate::agent::transfer::message::FromTarget;
use crate::agent::transfer::receive::WORK;
use crate::causes::chain;
use crate::criu::last_errors;
use crate::local::ToRelay;
use std::path::Path;
use std::time::{Duration, Instant};
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration, TargetStep};
use tokio::task::yield_now;
use tracing::{error, info, warn};

/// Pause before the API server or the disk is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How many error lines of CRIU's log go into a report.
const LOG_LINES: usize = 3;

impl TargetDriver {
    /// Takes the owner field for good: of what is all here while there is no replacement yet, or of what an agent before this
    /// one has taken. **The point of no return**: after it the source never runs again, so whatever fails from there on is
    /// tried again here and undone nowhere.
    pub(super) async fn commit(&mut self, migration: &Migration, attempt: u32) {
        let begun = Instant::now();
        let seen = migration.status.as_ref().and_then(|status| status.owner.clone());
        let ownership = self.context.ownership(&self.key);
        match ownership.commit(attempt, &self.context.settings.node_name, seen).await {
            Ok(Decision::Committed(proof)) if proof.node() == self.context.settings.node_name => {
                self.timings().commit_millis = millis(begun.elapsed());
                self.committed = true;
                self.was_committed().await;
            }
            Ok(Decision::Committed(_)) => error!(migration = self.key.name, "committed to another node"),
            Ok(Decision::Aborted(_)) => self.destroy(attempt).await,
            Err(error) => {
                warn!(migration = self.key.name, error = %chain(&error), "nothing to commit to");
                self.destroy(attempt).await;
            }
        }
    }

    pub(super) async fn resume_decided(&mut self, migration: &Migration, attempt: u32) {
        match self.context.ownership(&self.key).right_to_run(attempt).await {
            Ok(Some(proof)) if proof.node() == self.context.settings.node_name => {
                // The API server may have taken its time.
                self.take_what_came(migration).await;
                self.give_up_unserved().await;
                if self.pod().held {
                    self.resume(MayResume::Committed(proof)).await;
                }
            }
            // The watch is behind: it will show what became of it.
            Ok(_) => tokio::time::sleep(AGAIN).await,
            Err(error) => {
                warn!(migration = self.key.name, error = %chain(&error), "whether to resume is unknown");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// What is held and lacks somebody who brings its memory is given up, to be restored again: the state stays.
    async fn give_up_unserved(&mut self) {
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].local.held
                && let Err(failure) = is_served(&self.lane_directory(lane)).await
            {
                warn!(migration = self.key.name, message = failure.message, "a restore is given up for another try");
                self.lanes[lane].local.held = false;
                self.tell_relay(lane, ToRelay::Abandon).await;
            }
        }
    }

    /// Lets the processes run that are held. The proof is used up: they are told once.
    pub(super) async fn resume(&mut self, right: MayResume) {
        let attempt = match &right {
            MayResume::Committed(proof) => proof.attempt(),
            MayResume::Taken(proof) => proof.attempt(),
        };
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].local.held {
                self.tell_relay(lane, ToRelay::Resume).await;
                // Told. What follows is the relay's `ended`, or its return in the stage it is in.
                self.lanes[lane].local.held = false;
                self.lanes[lane].told = true;
            }
        }
        // Who writes to the relays is next on this thread, before whatever else there is to say.
        yield_now().await;
        info!(migration = self.key.name, attempt, "resuming");
    }

    /// The processes of a container run here. Heard from the relay, from the shim, or seen; the first is enough.
    pub(super) async fn resumed(&mut self, lane: usize) {
        if std::mem::replace(&mut self.lanes[lane].local.resumed, true) {
            return;
        }
        self.lanes[lane].restore_limits();
        // Before it is reported: an agent that came after this one must not take it for a restore that is still to come.
        if let Err(failure) = self.write_journal().await {
            warn!(migration = self.key.name, message = failure.message, "could not write down that it runs");
        }
        if let Some(released) = self.lanes[lane].released {
            let timings = self.timings();
            timings.resume_millis = timings.resume_millis.max(millis(released.elapsed()));
        }
        if !self.pod().resumed {
            return;
        }
        self.tell_source(FromTarget::Resumed).await;
        self.report.failure = None;
        self.reach(TargetStep::Resumed);
    }

    /// CRIU has failed, or ended before it was given its request.
    pub(super) async fn restore_failed(&mut self, lane: usize, message: String, migration: Option<&Migration>) {
        self.lanes[lane].failed = true;
        if self.lanes[lane].refused {
            return;
        }
        let message = self.of_lane(lane, criu_failed(&self.lane_directory(lane).join(WORK), &message));
        self.not_restored(lane, retryable(FailureReason::RestoreFailed, message), migration).await;
    }

    /// A restore will not come about. Before the commit that ends the attempt; after it the state stays here, and kubelet's
    /// next `create` tries again.
    pub(super) async fn not_restored(&mut self, lane: usize, failure: Failure, migration: Option<&Migration>) {
        let together = self.go_together();
        self.lanes[lane].takes_no_part();
        let status = migration.and_then(|migration| migration.status.as_ref());
        let verdict = status.map_or(Verdict::Open, |status| status.verdict_of(self.local.attempt));
        if verdict == Verdict::Committed || self.committed_here() {
            warn!(
                migration = self.key.name,
                message = failure.message,
                "restore failed after the commit, kept for another try"
            );
            self.report.failure = Some(failure);
            self.reporter.report(self.report.clone());
            if together {
                self.call_others_off(lane).await;
            }
        } else if matches!(verdict, Verdict::Open | Verdict::Taken) {
            self.fail(failure).await;
        }
    }

    /// None of the other containers is restored without this one: kubelet, which may be in the `create` of the last, makes all of them
    /// anew. That they end is no news.
    async fn call_others_off(&mut self, lane: usize) {
        for other in (0..self.lanes.len()).filter(|other| *other != lane) {
            self.lanes[other].takes_no_part();
            self.lanes[other].refused = self.lanes[other].running;
            self.tell_relay(other, ToRelay::Abandon).await;
        }
    }
}

/// That a restore failed, in a sentence with what CRIU's log in `work` says beyond `message`.
pub(in crate::agent) fn criu_failed(work: &Path, message: &str) -> String {
    let lines = last_errors(&work.join("restore.log"), LOG_LINES);
    match lines.is_empty() || lines.iter().any(|line| message.contains(line.as_str())) {
        true => format!("CRIU's restore failed: {message}"),
        false => format!("CRIU's restore failed: {message}: {}", lines.join(" | ")),
    }
}
