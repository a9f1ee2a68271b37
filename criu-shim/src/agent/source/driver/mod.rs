//! One Migration on its source node: does the source's duties, one after the other, and reports.

mod copying;
mod together;
mod verdict;

use crate::agent::context::{Context, Key, News};
use crate::agent::duty::{SourceAt, SourceDuty, SourceLocal, source_duty};
use crate::agent::failure::retryable;
use crate::agent::journal::{Entry, FrozenEntry, Side, SlowedEntry, SourceEntry};
use crate::agent::owner::Decision;
use crate::agent::report::Reporter;
use crate::agent::source::connect::Connected;
use crate::agent::source::cpu;
use crate::agent::source::cut::{self, Cut};
use crate::agent::source::driver::verdict::Course;
use crate::agent::source::freeze::{self, Frozen, millis};
use crate::agent::source::last_word::Unsaid;
use crate::agent::source::precopy;
use crate::agent::source::precopy::pace::Pace;
use crate::agent::source::preflight::{self, Inspected};
use crate::agent::source::settle::{self, LiveCriu};
use crate::causes::chain;
use crate::throttle::CpuLimits;
use futures::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::{Failure, FailureReason, Migration, SourceReport, SourceStep};
use tracing::{info, warn};

/// How long the reason of a failure may take to be written before what is left of the attempt is let go of. Nothing is frozen.
const REASON_LIMIT: Duration = Duration::from_secs(3);

/// What an agent before this one has left on the source.
#[derive(Debug)]
pub enum Left {
    /// A pod that may be frozen.
    Frozen(SourceEntry),
    /// Containers that are slowed down, with limits that could not be put back at the start.
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
    /// The pod's containers that move, in the order in which they are started.
    inspected: Vec<Inspected>,
    /// The same, connected: all of them, or none.
    lanes: Vec<Connected>,
    /// What an agent before this one has left, until it is settled.
    left: Option<Left>,
    /// What the rounds of this attempt have to keep to.
    pace: Pace,
    /// How long the target is expected to put files in place in the freeze.
    placing: Duration,
    /// Whether the replacement comes first, so that the target takes the attempt at the go.
    replace_first: bool,
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
        let (inspected, lanes) = (Vec::new(), Vec::new());
        Self { context, key, reporter, report, local, inspected, lanes, left, pace, placing, replace_first: false }
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
                SourceDuty::TakeBack(attempt) => self.take_back(attempt).await,
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
        self.inspected.clear();
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

    /// Gives the containers that are slowed down their cpu time back, however long that takes.
    async fn restore_limits(&mut self) {
        let limits = self.lanes.iter_mut().map(|lane| std::mem::take(&mut lane.cpu.limits));
        join_all(limits.map(cpu::restored)).await;
    }

    /// Lets go of what was started for the attempt. The containers have their cpu time back then.
    async fn disconnect(&mut self) {
        self.restore_limits().await;
        let lanes = std::mem::take(&mut self.lanes);
        if !lanes.is_empty() {
            // Ending a warm CRIU waits for it.
            tokio::task::spawn_blocking(move || drop(lanes)).await.ok();
        }
    }

    async fn preflight(&mut self, migration: &Migration) {
        let Some(status) = &migration.status else { return };
        let Some(pod) = status.source_pod.clone() else { return };
        // Two at once would both follow its memory. No other is begun while this Migration is open.
        self.context.checkpoints.leave(&pod.uid).await;
        match self.context.facts().await {
            Ok(facts) => self.report.host = Some(facts),
            Err(failure) => return self.fail(failure).await,
        }
        match preflight::inspect(&self.context, &self.key, &pod, &status.containers).await {
            Ok(inspected) => {
                self.report.notes = inspected.iter().flat_map(|one| one.notes.clone()).collect();
                self.inspected = inspected;
                self.reach(SourceAt::Ready, SourceStep::Ready);
            }
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Freezes for a moment, for the rehearsal. Should this agent be restarted meanwhile, the next one finds the freeze in the
    /// journal and takes the abort.
    async fn cut(&mut self, attempt: u32, news: &mut News) {
        if let Err(failure) = self.round_before_the_cut(attempt, news).await {
            return self.fail(failure).await;
        }
        self.plan_dump().await;
        if let Err(failure) = self.write_down(attempt).await {
            return self.fail(failure).await;
        }
        let lanes = std::mem::take(&mut self.lanes);
        self.local.at = SourceAt::Frozen;
        info!(migration = self.key.name, attempt, "taking a cut for the rehearsal");
        let Cut { paused, connected } = cut::cut(&self.context, lanes, news).await;
        self.report.timings.get_or_insert_default().cut_millis = millis(paused);
        self.forget_freeze().await;
        match connected {
            Ok(connected) => {
                self.lanes = connected;
                self.reach(SourceAt::Cut, SourceStep::Converged);
            }
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Plans what CRIU has of the processors while the pod is frozen.
    async fn plan_dump(&mut self) {
        // They are dumped side by side.
        let mut taken = Vec::new();
        for lane in &mut self.lanes {
            let freezer = lane.inspected.container.freezer.clone();
            taken.extend(lane.cpu.plan_dump(lane.criu.process(), freezer, taken.clone()).await);
        }
    }

    /// Writes down that the pod is about to be frozen.
    async fn write_down(&self, attempt: u32) -> Result<SourceEntry, Failure> {
        let entry = source_entry(&self.key, &self.lanes);
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
        self.plan_dump().await;
        // Before the journal: whoever finds an entry and not this takes the last word for said.
        let directory = self.context.settings.attempt_directory(&self.key.uid, attempt);
        let unsaid = tokio::task::spawn_blocking(move || Unsaid::begin(&directory)).await;
        let unsaid = match unsaid.map_err(|error| retryable(FailureReason::FreezeFailed, chain(&error))).flatten() {
            Ok(unsaid) => unsaid,
            Err(failure) => return self.fail(failure).await,
        };
        let entry = match self.write_down(attempt).await {
            Ok(entry) => entry,
            Err(failure) => return self.fail(failure).await,
        };
        let expected = self.expected();
        let followed = match self.last_rounds(attempt, news).await {
            Ok(followed) => followed,
            Err(failure) => {
                self.fail(failure).await;
                // Not before the containers have their cpu time back.
                return self.forget_freeze().await;
            }
        };
        self.local.at = SourceAt::Frozen;
        info!(migration = self.key.name, attempt, "freezing");
        let lanes = std::mem::take(&mut self.lanes).into_iter().zip(followed).collect();
        let leaving = (lanes, unsaid);
        let frozen = freeze::freeze(&self.context, &self.key, leaving, news, &mut self.report, &self.reporter).await;
        let let_go = precopy::let_go(frozen.spent);
        match frozen.decision {
            Ok(Decision::Aborted(proof)) => {
                let freezers = frozen.pod.freezers();
                let criu = frozen.hung.into_iter().map(LiveCriu::Hung).collect();
                let thawed = settle::thaw(frozen.pod, criu, proof).await;
                let_go.await;
                self.report.timings.get_or_insert_default().freeze_millis = Some(millis(thawed - frozen.since));
                settle::cure(freezers, &self.context.node).await;
                if let Some(failure) = &frozen.failure {
                    warn!(migration = self.key.name, attempt, message = failure.message, "rolled back");
                }
                self.thawed().await;
            }
            Ok(Decision::Committed(proof)) => {
                self.report.failure = None;
                let Frozen { pod, receiver, since, held, resumed, .. } = frozen;
                self.committed(entry, pod, proof, receiver, Course { since, held, resumed }).await;
                let_go.await;
                self.learn(expected);
            }
            Err(error) => {
                drop(frozen.pod);
                self.undecidable(attempt, &entry, &error).await;
                let_go.await;
            }
        }
    }
}

/// Whether something of an attempt in which nothing is frozen may be left: its abort may not have been seen.
fn leaves_something(local: SourceLocal) -> bool {
    local.attempt > 0 && matches!(local.at, SourceAt::Ready | SourceAt::Connected | SourceAt::Cut | SourceAt::Failed)
}

fn source_entry(key: &Key, lanes: &[Connected]) -> SourceEntry {
    let metadata = lanes.first().map(|lane| &lane.inspected.pod.metadata);
    let container = |lane: &Connected| FrozenEntry {
        container_id: lane.inspected.container.id.clone(),
        cgroup: lane.inspected.container.freezer.path_in_node().to_owned(),
        criu: lane.criu.process(),
        cpu: lane.cpu.limits.records(),
    };
    SourceEntry {
        pod_namespace: key.namespace.clone(),
        pod_name: metadata.and_then(|metadata| metadata.name.clone()).unwrap_or_default(),
        pod_uid: metadata.and_then(|metadata| metadata.uid.clone()).unwrap_or_default(),
        containers: lanes.iter().map(container).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_whose_abort_was_not_seen_leaves_something() {
        let at = |at| leaves_something(SourceLocal { attempt: 1, at });
        assert!(at(SourceAt::Ready) && at(SourceAt::Connected) && at(SourceAt::Cut) && at(SourceAt::Failed));
        assert!(!at(SourceAt::Idle) && !at(SourceAt::Thawed) && !at(SourceAt::Retired));
        assert!(!at(SourceAt::Frozen), "never cleaned before it is settled");
        assert!(!leaves_something(SourceLocal { attempt: 0, at: SourceAt::Failed }));
    }
}
