//! What follows the verdict: retired or thawed, by this agent or by the one that comes after a kill, and nothing left behind.

use super::SourceDriver;
use crate::agent::context::{RequestError, answer};
use crate::agent::duty::SourceAt;
use crate::agent::failure::retryable;
use crate::agent::journal::{FrozenEntry, SourceEntry};
use crate::agent::owner::{Committed, Decision, OwnerError};
use crate::agent::source::container::{self, ContainerError};
use crate::agent::source::freeze::millis;
use crate::agent::source::frozen::{FrozenContainer, FrozenPod};
use crate::agent::source::last_word::Unsaid;
use crate::agent::source::settle::{self, TakenOver};
use crate::agent::transfer::link::{Incoming, LinkReceiver};
use crate::agent::transfer::message::FromTarget;
use crate::causes::chain;
use crate::freezer::{Freezer, FreezerError};
use crate::throttle::CpuLimits;
use std::pin::pin;
use std::time::{Duration, Instant};
use thiserror::Error;
use tideover_crds::{FailureReason, Migration, ObjectRef, SourceStep};
use tracing::{error, info, warn};

/// How long after a commit the news that the target runs is waited for, for the figures alone.
const RESUMED_LIMIT: Duration = Duration::from_secs(60);
/// How long the target's last steps come before the end of what is frozen here: that frees all of its memory, which takes a
/// processor, and locks of the kernel's, that CRIU may need.
const TARGET_FIRST: Duration = Duration::from_secs(1);
/// Pause before the API server is asked again for an object that should be there.
const AGAIN: Duration = Duration::from_secs(1);
/// How often it is looked whether a container that stays frozen has been ended.
const LOOK: Duration = Duration::from_secs(5);

/// How a freeze that ended in a commit went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    /// The first freezer write.
    pub(super) since: Instant,
    /// The news that the target holds the processes.
    pub(super) held: Option<Instant>,
    /// The news that they run, if it has come.
    pub(super) resumed: Option<Instant>,
}

/// Why it can't be told whether a container of the source runs.
#[derive(Debug, Error)]
enum LookError {
    #[error("read the pod")]
    Pod(#[from] RequestError),
    #[error("look for the container")]
    Container(#[from] ContainerError),
    #[error("looking for the container ended unexpectedly")]
    Ended(#[from] tokio::task::JoinError),
}

impl SourceDriver {
    pub(super) async fn committed(
        &mut self,
        entry: SourceEntry,
        pod: FrozenPod,
        proof: Committed,
        receiver: Option<LinkReceiver<FromTarget>>,
        Course { since, held, resumed }: Course,
    ) {
        info!(migration = self.key.name, attempt = proof.attempt(), node = proof.node(), "committed elsewhere");
        let mut resumed = pin!(async {
            if resumed.is_some() {
                return resumed;
            }
            let mut receiver = receiver?;
            loop {
                match receiver.next().await {
                    Ok(Incoming::Message(FromTarget::Resumed)) => return Some(Instant::now()),
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        });
        let soon = tokio::time::timeout(TARGET_FIRST, &mut resumed).await;
        let resumed = async {
            match soon {
                Ok(resumed) => resumed,
                Err(_) => tokio::time::timeout(RESUMED_LIMIT, resumed).await.ok().flatten(),
            }
        };
        let context = self.context.clone();
        let (resumed, ()) = tokio::join!(resumed, settle::retire(&context, &entry, pod, Vec::new(), proof));
        if let Some(resumed) = resumed {
            let timings = self.report.timings.get_or_insert_default();
            timings.freeze_millis = Some(millis(resumed - since));
            timings.commit_millis = held.map_or(0.0, |held| millis(resumed - held));
        }
        self.retired().await;
    }

    /// Nobody will ever know: the pod stays frozen, and so does its journal entry, until somebody ends the container. Then
    /// nothing is left that could be wrong.
    pub(super) async fn undecidable(&mut self, attempt: u32, entry: &SourceEntry, error: &OwnerError) {
        let mut told = false;
        let is_there = |container: &FrozenEntry| !is_gone(&Freezer::at(&container.cgroup, self.context.node.root()));
        while let Some(container) = entry.containers.iter().find(|container| is_there(container)) {
            if !told {
                error!(
                    migration = self.key.name,
                    cgroup = ?container.cgroup,
                    error = %chain(error),
                    "the pod stays frozen: whether its state runs elsewhere can't be known; delete the pod to end it"
                );
                told = true;
            }
            tokio::time::sleep(LOOK).await;
        }
        info!(migration = self.key.name, attempt, "the undecided pod has ended");
        self.clean(attempt).await;
        self.local.at = SourceAt::Retired;
    }

    /// What the journal says was begun by an agent before this one.
    pub(super) async fn settle_left_over(&mut self, entry: SourceEntry) {
        let attempt = self.local.attempt;
        info!(migration = self.key.name, attempt, "the journal says that the pod may be frozen");
        let directory = self.context.settings.attempt_directory(&self.key.uid, attempt);
        let unsaid = tokio::task::spawn_blocking(move || Unsaid::left(&directory)).await.ok().flatten();
        if unsaid.is_none() {
            // Said by an agent that was frozen when it said it, and may not have come to report that. The operator needs to know.
            self.report.step = SourceStep::Frozen;
            self.reporter.report(self.report.clone());
        }
        match settle::take_over(&self.context, (&self.key, attempt), &entry, unsaid).await {
            Ok(TakenOver { pod, criu, decision: Decision::Aborted(proof) }) => {
                let freezers = pod.freezers();
                settle::thaw(pod, criu, proof).await;
                settle::cure(freezers, &self.context.node).await;
                let message = "the source's agent was restarted during the freeze and took the abort";
                self.report.failure = Some(retryable(FailureReason::AgentRestarted, message));
                self.thawed().await;
            }
            Ok(TakenOver { pod, criu, decision: Decision::Committed(proof) }) => {
                settle::retire(&self.context, &entry, pod, criu, proof).await;
                self.retired().await;
            }
            Err(error) => self.undecidable(attempt, &entry, &error).await,
        }
    }

    /// The target has taken an attempt for which nothing is frozen, and will never be.
    pub(super) async fn take_back(&mut self, attempt: u32) {
        self.local.attempt = attempt;
        let (ownership, node) = (self.context.ownership(&self.key), self.context.settings.node_name.clone());
        match ownership.abort(attempt, &node, Some(Unsaid::of_what_was_never_frozen())).await {
            Ok(Decision::Aborted(_)) => self.abandon(attempt).await,
            // The watch will show it, and what follows from it.
            Ok(Decision::Committed(_)) => tokio::time::sleep(AGAIN).await,
            // The object is gone, and nothing is frozen.
            Err(error) => {
                info!(migration = self.key.name, error = %chain(&error), "nothing to take back");
                self.disconnect().await;
                self.clean(attempt).await;
                self.local.at = SourceAt::Thawed;
            }
        }
    }

    /// The attempt is over, and nothing was frozen for it.
    pub(super) async fn abandon(&mut self, attempt: u32) {
        self.disconnect().await;
        self.local.attempt = attempt;
        self.thawed().await;
    }

    /// Committed, but this agent knows of no freeze: an agent before it has retired everything and could not say so, or
    /// the pod ended by itself.
    pub(super) async fn retire_unseen(&mut self, migration: &Migration, attempt: u32) {
        self.disconnect().await;
        self.local.attempt = attempt;
        let pod = migration.status.as_ref().and_then(|status| status.source_pod.clone());
        let decision = self.context.ownership(&self.key).decision(attempt).await;
        match (pod, decision) {
            (Some(pod), Ok(Some(Decision::Committed(proof)))) => {
                let freezers = match self.running_containers(&pod).await {
                    Ok(found) => found,
                    Err(error) => {
                        warn!(migration = self.key.name, error = %chain(&error), "whether a container of the source runs is unknown");
                        return tokio::time::sleep(AGAIN).await;
                    }
                };
                let entry = SourceEntry {
                    pod_namespace: self.key.namespace.clone(),
                    pod_name: pod.name,
                    pod_uid: pod.uid,
                    containers: Vec::new(),
                };
                let found = |freezer| FrozenContainer { freezer, limits: CpuLimits::default() };
                let pod = FrozenPod::adopt(freezers.into_iter().map(found).collect());
                settle::retire(&self.context, &entry, pod, Vec::new(), proof).await;
                self.retired().await;
            }
            (_, Err(error)) => {
                warn!(migration = self.key.name, error = %chain(&error), "the verdict is unknown");
                tokio::time::sleep(AGAIN).await;
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }

    /// The freezers of the pod's containers that run, if the pod is still there; an error where that can't be told.
    async fn running_containers(&self, pod: &ObjectRef) -> Result<Vec<Freezer>, LookError> {
        let object = answer(self.context.pods(&self.key.namespace).get_opt(&pod.name)).await;
        let Some(object) = object? else { return Ok(Vec::new()) };
        let (node, uid) = (self.context.node.clone(), pod.uid.clone());
        let finding = tokio::task::spawn_blocking(move || {
            let running = match container::running(&object, &uid) {
                Err(absent) if absent.is_absence() => Vec::new(),
                running => running?,
            };
            let found = running.iter().map(|named| container::find(&node, &named.id).map(|found| found.freezer));
            found.filter(|found| !found.as_ref().is_err_and(ContainerError::is_absence)).collect()
        });
        let found: Result<Vec<Freezer>, ContainerError> = finding.await?;
        Ok(found?)
    }

    pub(super) async fn thawed(&mut self) {
        self.clean(self.local.attempt).await;
        self.reach(SourceAt::Thawed, SourceStep::Thawed);
    }

    async fn retired(&mut self) {
        self.clean(self.local.attempt).await;
        self.reach(SourceAt::Retired, SourceStep::Retired);
    }

    /// Removes images, then the journal entry: the other way round, images could be left that nobody knows of.
    pub(super) async fn clean(&self, attempt: u32) {
        let directory = self.context.settings.attempt_directory(&self.key.uid, attempt);
        let removed = tokio::task::spawn_blocking(move || {
            if let Err(error) = crate::agent::images::remove(&directory) {
                warn!(?directory, %error, "images are left");
            }
        });
        if let Err(error) = removed.await {
            warn!(%error, "cleaning ended unexpectedly");
        }
        self.forget_freeze().await;
    }

    /// Removes the journal entry: the pod runs as before, or is gone.
    pub(super) async fn forget_freeze(&self) {
        let (journal, uid) = (self.context.journal.clone(), self.key.uid.clone());
        match tokio::task::spawn_blocking(move || journal.remove(&uid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = %chain(&error), "the journal entry is left"),
            Err(error) => warn!(%error, "removing the journal entry ended unexpectedly"),
        }
    }
}

/// Whether the container has ended. Any other error than its absence leaves that open.
fn is_gone(found: &Result<Freezer, FreezerError>) -> bool {
    matches!(found, Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_missing_cgroup_says_that_the_container_has_ended() {
        assert!(is_gone(&Err(FreezerError::Gone { path: "/x".into() })));
        assert!(!is_gone(&Err(FreezerError::NotOwn { path: "/x".into() })));
        assert!(!is_gone(&Err(FreezerError::NoFreezer)));
    }
}
