//! One Migration on its source node: does the source's duties, one after the other, and reports.

mod copying;

use crate::agent::context::{Context, Key, News, RequestError, answer};
use crate::agent::duty::{SourceAt, SourceDuty, SourceLocal, source_duty};
use crate::agent::failure::retryable;
use crate::agent::journal::{Entry, Side, SlowedEntry, SourceEntry};
use crate::agent::owner::{Committed, Decision, OwnerError};
use crate::agent::report::Reporter;
use crate::agent::source::connect::Connected;
use crate::agent::source::container::{self, ContainerError};
use crate::agent::source::cpu;
use crate::agent::source::cut::{self, Cut};
use crate::agent::source::freeze::{self, millis};
use crate::agent::source::frozen::FrozenPod;
use crate::agent::source::precopy;
use crate::agent::source::precopy::pace::Pace;
use crate::agent::source::preflight::{self, Inspected};
use crate::agent::source::settle::{self, LiveCriu, TakenOver};
use crate::agent::transfer::link::{Incoming, LinkReceiver};
use crate::agent::transfer::message::FromTarget;
use crate::causes::chain;
use crate::criu::ProcessId;
use crate::freezer::{Freezer, FreezerError};
use crate::throttle::CpuLimits;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tideover_crds::{Failure, FailureReason, Migration, ObjectRef, SourceReport, SourceStep};
use tracing::{error, info, warn};

/// How long after a commit the news that the target runs is waited for, for the figures alone.
const RESUMED_LIMIT: Duration = Duration::from_secs(60);
/// How long the target's last steps come before the end of what is frozen here: that frees all of its memory, which takes a
/// processor, and locks of the kernel's, that CRIU may need.
const TARGET_FIRST: Duration = Duration::from_secs(1);
/// Pause before the API server is asked again for an object that should be there.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the reason of a failure may take to be written before what is left of the attempt is let go of. Nothing is frozen.
const REASON_LIMIT: Duration = Duration::from_secs(3);
/// How often it is looked whether a container that stays frozen has been ended.
const LOOK: Duration = Duration::from_secs(5);

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

/// What an agent before this one has left on the source.
#[derive(Debug)]
pub enum Left {
    /// A pod that may be frozen.
    Frozen(SourceEntry),
    /// A container that is slowed down, with a limit that could not be put back at the start.
    Slowed(SlowedEntry),
}

/// The source's side of one Migration.
#[derive(Debug)]
pub struct SourceDriver {
    context: Arc<Context>,
    key: Key,
    reporter: Reporter<SourceReport>,
    report: SourceReport,
    local: SourceLocal,
    inspected: Option<Inspected>,
    connected: Option<Connected>,
    /// What an agent before this one has left, until it is settled.
    left: Option<Left>,
    /// What the rounds of this attempt have to keep to.
    pace: Pace,
    /// How long the target is expected to put files in place in the freeze.
    placing: Duration,
}

impl SourceDriver {
    /// For `key`; `left` is what the journal has of it from an agent before this one, and of which attempt.
    pub fn new(context: Arc<Context>, key: Key, left: Option<(u32, Left)>) -> Self {
        let reporter = Reporter::start(context.client.clone(), &key.namespace, &key.name, &key.uid);
        let local = match left {
            Some((attempt, Left::Frozen(_))) => SourceLocal { attempt, at: SourceAt::Frozen },
            // Nothing is frozen, and whatever else was done for the attempt is gone with the agent that did it.
            Some((_, Left::Slowed(_))) | None => SourceLocal { attempt: 0, at: SourceAt::Idle },
        };
        let left = left.map(|(_, left)| left);
        let report = SourceReport::new(local.attempt);
        let pace = Pace::new(None, Instant::now());
        let placing = Duration::ZERO;
        Self { context, key, reporter, report, local, inspected: None, connected: None, left, pace, placing }
    }

    /// Does duties until the Migration is gone.
    pub async fn run(mut self, mut news: News) {
        match self.left.take() {
            Some(Left::Frozen(entry)) => self.settle_left_over(entry).await,
            Some(Left::Slowed(entry)) => {
                cpu::restored(CpuLimits::adopt(&entry.cpu, self.context.node.root())).await;
                self.forget_freeze().await;
            }
            None => {}
        }
        loop {
            let Some(migration) = news.borrow_and_update().clone() else {
                if news.changed().await.is_err() {
                    return;
                }
                continue;
            };
            let attempt = migration.status.as_ref().map_or(0, |status| status.attempt);
            if attempt != self.local.attempt && self.local.at != SourceAt::Frozen {
                self.begin(attempt).await;
            }
            let duty = match source_duty(&migration, self.local) {
                // The agent that comes next begins it.
                SourceDuty::Preflight(_) | SourceDuty::Connect(_) | SourceDuty::Cut(_) | SourceDuty::Freeze(_)
                    if self.context.is_leaving() =>
                {
                    SourceDuty::None
                }
                duty => duty,
            };
            match duty {
                SourceDuty::None => {
                    if self.wait(&mut news).await.is_err() {
                        self.disconnect().await;
                        self.clean(self.local.attempt).await;
                        return;
                    }
                }
                SourceDuty::Preflight(_) => self.preflight(&migration).await,
                SourceDuty::Connect(attempt) => self.connect(&migration, attempt).await,
                SourceDuty::Cut(attempt) => self.cut(attempt, &mut news).await,
                SourceDuty::Freeze(attempt) => self.freeze(attempt, &mut news).await,
                SourceDuty::Abandon(attempt) => self.abandon(attempt).await,
                SourceDuty::Retire(attempt) => self.retire_unseen(&migration, attempt).await,
                SourceDuty::Settle(_) | SourceDuty::Thaw(_) => {
                    // A freeze that this task began is settled before it returns, and one that it found as well. Only an
                    // object that is gone leads here, and then nothing may be done.
                    if news.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn begin(&mut self, attempt: u32) {
        if leaves_something(self.local) {
            self.disconnect().await;
            self.clean(self.local.attempt).await;
        }
        self.local = SourceLocal { attempt, at: SourceAt::Idle };
        self.report = SourceReport::new(attempt);
        self.inspected = None;
        self.pace = Pace::new(None, Instant::now());
        self.placing = Duration::ZERO;
    }

    fn reach(&mut self, at: SourceAt, step: SourceStep) {
        self.local.at = at;
        self.report.step = step;
        self.reporter.report(self.report.clone());
        info!(migration = self.key.name, attempt = self.local.attempt, ?step, "source");
    }

    /// Says that this side can't go on. Nothing is frozen.
    async fn fail(&mut self, failure: Failure) {
        warn!(migration = self.key.name, attempt = self.local.attempt, message = failure.message, "source failed");
        self.local.at = SourceAt::Failed;
        self.report.failure = Some(failure);
        // Before the connection ends: the target would report that as the reason.
        self.reporter.report_first(self.report.clone(), REASON_LIMIT).await;
        self.disconnect().await;
    }

    /// Lets go of what was started for the attempt. The container has its cpu time back then.
    async fn disconnect(&mut self) {
        if let Some(mut connected) = self.connected.take() {
            cpu::restored(std::mem::take(&mut connected.cpu.limits)).await;
            // Ending a warm CRIU waits for it.
            tokio::task::spawn_blocking(move || drop(connected)).await.ok();
        }
    }

    async fn preflight(&mut self, migration: &Migration) {
        let Some(pod) = migration.status.as_ref().and_then(|status| status.source_pod.clone()) else { return };
        // Two at once would both follow its memory. No other is begun while this Migration is open.
        self.context.checkpoints.leave(&pod.uid).await;
        match self.context.facts().await {
            Ok(facts) => self.report.host = Some(facts),
            Err(failure) => return self.fail(failure).await,
        }
        match preflight::inspect(&self.context, &self.key, &pod).await {
            Ok(inspected) => {
                self.report.notes = inspected.notes.clone();
                self.inspected = Some(inspected);
                self.reach(SourceAt::Ready, SourceStep::Ready);
            }
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Freezes for a moment, for the rehearsal. Should this agent be restarted meanwhile, the next one finds the freeze in the
    /// journal and takes the abort.
    async fn cut(&mut self, attempt: u32, news: &mut News) {
        let Some(mut connected) = self.connected.take() else { return };
        connected.cpu.plan_lift();
        if let Err(failure) = self.write_down(attempt, &connected).await {
            self.connected = Some(connected);
            return self.fail(failure).await;
        }
        self.local.at = SourceAt::Frozen;
        info!(migration = self.key.name, attempt, "taking a cut for the rehearsal");
        let Cut { paused, connected } = cut::cut(&self.context, connected, news).await;
        self.report.timings.get_or_insert_default().cut_millis = millis(paused);
        self.forget_freeze().await;
        match connected {
            Ok(connected) => {
                self.connected = Some(connected);
                self.reach(SourceAt::Cut, SourceStep::Converged);
            }
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Writes down that the pod is about to be frozen.
    async fn write_down(&self, attempt: u32, connected: &Connected) -> Result<SourceEntry, Failure> {
        let entry = source_entry(&self.key, connected);
        self.write_journal(attempt, Side::Source(entry.clone())).await?;
        Ok(entry)
    }

    async fn write_journal(&self, attempt: u32, side: Side) -> Result<(), Failure> {
        let Key { namespace, name, uid } = &self.key;
        let journal = self.context.journal.clone();
        let written = Entry::new(namespace, name, uid, attempt, side);
        let written = tokio::task::spawn_blocking(move || journal.write(&written)).await;
        let failed = |error: &dyn std::error::Error| retryable(FailureReason::FreezeFailed, chain(error));
        written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    async fn freeze(&mut self, attempt: u32, news: &mut News) {
        let Some(mut connected) = self.connected.take() else { return };
        connected.cpu.plan_lift();
        let entry = match self.write_down(attempt, &connected).await {
            Ok(entry) => entry,
            Err(failure) => {
                self.connected = Some(connected);
                return self.fail(failure).await;
            }
        };
        let expected = self.expected(&connected);
        let followed = match self.last_rounds(&mut connected, news).await {
            Ok(followed) => followed,
            Err(failure) => {
                self.connected = Some(connected);
                self.fail(failure).await;
                // Not before the container has its cpu time back.
                return self.forget_freeze().await;
            }
        };
        self.local.at = SourceAt::Frozen;
        info!(migration = self.key.name, attempt, "freezing");
        let frozen =
            freeze::freeze(&self.context, &self.key, (connected, followed), news, &mut self.report, &self.reporter)
                .await;
        let let_go = precopy::let_go((frozen.followed, frozen.trees));
        match frozen.decision {
            Ok(Decision::Aborted(proof)) => {
                let freezer = frozen.pod.freezer().clone();
                let thawed = settle::thaw(frozen.pod, frozen.hung.map(LiveCriu::Hung), proof).await;
                let_go.await;
                self.report.timings.get_or_insert_default().freeze_millis = millis(thawed - frozen.since);
                settle::cure(freezer).await;
                if let Some(failure) = &frozen.failure {
                    warn!(migration = self.key.name, attempt, message = failure.message, "rolled back");
                }
                self.thawed().await;
            }
            Ok(Decision::Committed(proof)) => {
                self.report.failure = None;
                self.committed(entry, frozen.pod, proof, frozen.receiver, frozen.since, frozen.held).await;
                let_go.await;
                self.learn(expected);
            }
            Err(error) => {
                drop(frozen.pod);
                self.undecidable(attempt, &entry.cgroup, &error).await;
                let_go.await;
            }
        }
    }

    async fn committed(
        &mut self,
        entry: SourceEntry,
        pod: FrozenPod,
        proof: Committed,
        mut receiver: LinkReceiver<FromTarget>,
        since: Instant,
        held: Option<Instant>,
    ) {
        info!(migration = self.key.name, attempt = proof.attempt(), node = proof.node(), "committed elsewhere");
        let mut resumed = pin!(async {
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
        let (resumed, ()) = tokio::join!(resumed, settle::retire(&context, &entry, Some(pod), None, proof));
        if let Some(resumed) = resumed {
            let timings = self.report.timings.get_or_insert_default();
            timings.freeze_millis = millis(resumed - since);
            timings.commit_millis = held.map_or(0.0, |held| millis(resumed - held));
        }
        self.retired().await;
    }

    /// Nobody will ever know: the pod stays frozen, and so does its journal entry, until somebody ends the container. Then
    /// nothing is left that could be wrong.
    async fn undecidable(&mut self, attempt: u32, cgroup: &Path, error: &OwnerError) {
        let mut told = false;
        while !is_gone(&Freezer::at(cgroup, self.context.node.root())) {
            if !told {
                error!(
                    migration = self.key.name,
                    ?cgroup,
                    error = %chain(error),
                    "the pod stays frozen: whether its state runs elsewhere can't be known; delete the pod to end it"
                );
                told = true;
            }
            tokio::time::sleep(LOOK).await;
        }
        info!(migration = self.key.name, attempt, ?cgroup, "the undecided container has ended");
        self.clean(attempt).await;
        self.local.at = SourceAt::Retired;
    }

    /// What the journal says was begun by an agent before this one.
    async fn settle_left_over(&mut self, entry: SourceEntry) {
        let attempt = self.local.attempt;
        info!(migration = self.key.name, attempt, "the journal says that the pod may be frozen");
        match settle::take_over(&self.context, &self.key, attempt, &entry).await {
            Ok(TakenOver { pod, criu, decision: Decision::Aborted(proof) }) => {
                if let Some(pod) = pod {
                    let freezer = pod.freezer().clone();
                    settle::thaw(pod, criu, proof).await;
                    settle::cure(freezer).await;
                }
                let message = "the source's agent was restarted during the freeze and took the abort";
                self.report.failure = Some(retryable(FailureReason::AgentRestarted, message));
                self.thawed().await;
            }
            Ok(TakenOver { pod, criu, decision: Decision::Committed(proof) }) => {
                settle::retire(&self.context, &entry, pod, criu, proof).await;
                self.retired().await;
            }
            Err(error) => self.undecidable(attempt, &entry.cgroup, &error).await,
        }
    }

    /// The attempt is over, and nothing was frozen for it.
    async fn abandon(&mut self, attempt: u32) {
        self.disconnect().await;
        self.local.attempt = attempt;
        self.thawed().await;
    }

    /// Committed, but this agent knows of no freeze: an agent before it has retired everything and could not say so, or
    /// the pod ended by itself.
    async fn retire_unseen(&mut self, migration: &Migration, attempt: u32) {
        self.disconnect().await;
        self.local.attempt = attempt;
        let pod = migration.status.as_ref().and_then(|status| status.source_pod.clone());
        let decision = self.context.ownership(&self.key).decision(attempt).await;
        match (pod, decision) {
            (Some(pod), Ok(Some(Decision::Committed(proof)))) => {
                let found = match self.running_container(&pod).await {
                    Ok(found) => found,
                    Err(error) => {
                        warn!(migration = self.key.name, error = %chain(&error), "whether the source's container runs is unknown");
                        return tokio::time::sleep(AGAIN).await;
                    }
                };
                let entry = SourceEntry {
                    pod_namespace: self.key.namespace.clone(),
                    pod_name: pod.name,
                    pod_uid: pod.uid,
                    container_id: String::new(),
                    cgroup: Default::default(),
                    criu: ProcessId { pid: 0, start_time: 0 },
                    cpu: Vec::new(),
                };
                let pod = found.map(|freezer| FrozenPod::adopt(freezer, CpuLimits::default()));
                settle::retire(&self.context, &entry, pod, None, proof).await;
                self.retired().await;
            }
            (_, Err(error)) => {
                warn!(migration = self.key.name, error = %chain(&error), "the verdict is unknown");
                tokio::time::sleep(AGAIN).await;
            }
            _ => tokio::time::sleep(AGAIN).await,
        }
    }

    /// The freezer of the pod's container, if the pod is still there and one runs; an error where that can't be told.
    async fn running_container(&self, pod: &ObjectRef) -> Result<Option<Freezer>, LookError> {
        let object = answer(self.context.pods(&self.key.namespace).get_opt(&pod.name)).await;
        let Some(object) = object? else { return Ok(None) };
        let (node, uid) = (self.context.node.clone(), pod.uid.clone());
        let finding = tokio::task::spawn_blocking(move || {
            container::container_id(&object, &uid).and_then(|id| container::find(&node, &id))
        });
        match finding.await? {
            Ok(found) => Ok(Some(found.freezer)),
            Err(absent) if absent.is_absence() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn thawed(&mut self) {
        self.clean(self.local.attempt).await;
        self.reach(SourceAt::Thawed, SourceStep::Thawed);
    }

    async fn retired(&mut self) {
        self.clean(self.local.attempt).await;
        self.reach(SourceAt::Retired, SourceStep::Retired);
    }

    /// Removes images, then the journal entry: the other way round, images could be left that nobody knows of.
    async fn clean(&self, attempt: u32) {
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
    async fn forget_freeze(&self) {
        let (journal, uid) = (self.context.journal.clone(), self.key.uid.clone());
        match tokio::task::spawn_blocking(move || journal.remove(&uid)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = %chain(&error), "the journal entry is left"),
            Err(error) => warn!(%error, "removing the journal entry ended unexpectedly"),
        }
    }
}

/// Whether something of an attempt in which nothing is frozen may be left: its abort may not have been seen.
fn leaves_something(local: SourceLocal) -> bool {
    local.attempt > 0 && matches!(local.at, SourceAt::Ready | SourceAt::Connected | SourceAt::Cut | SourceAt::Failed)
}

/// Whether the container has ended. Any other error than its absence leaves that open.
fn is_gone(found: &Result<Freezer, FreezerError>) -> bool {
    matches!(found, Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }))
}

fn source_entry(key: &Key, connected: &Connected) -> SourceEntry {
    let metadata = &connected.inspected.pod.metadata;
    let container = &connected.inspected.container;
    SourceEntry {
        pod_namespace: key.namespace.clone(),
        pod_name: metadata.name.clone().unwrap_or_default(),
        pod_uid: metadata.uid.clone().unwrap_or_default(),
        container_id: container.id.clone(),
        cgroup: container.freezer.path_in_node().to_owned(),
        criu: connected.criu.process(),
        cpu: connected.cpu.limits.records(),
    }
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

    #[test]
    fn an_attempt_whose_abort_was_not_seen_leaves_something() {
        let at = |at| leaves_something(SourceLocal { attempt: 1, at });
        assert!(at(SourceAt::Ready) && at(SourceAt::Connected) && at(SourceAt::Cut) && at(SourceAt::Failed));
        assert!(!at(SourceAt::Idle) && !at(SourceAt::Thawed) && !at(SourceAt::Retired));
        assert!(!at(SourceAt::Frozen), "never cleaned before it is settled");
        assert!(!leaves_something(SourceLocal { attempt: 0, at: SourceAt::Failed }));
    }
}
