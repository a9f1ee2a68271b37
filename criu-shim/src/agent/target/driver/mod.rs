//! One Migration on its target node: takes what happens, does the target's duties, and reports.

mod cpu;
mod ending;
mod happening;
mod integrity;
mod memory;
mod placing;
mod receiving;
mod rehearsal;
mod reply;
mod restore;
mod verdict;

pub(in crate::agent) use integrity::have_program;
pub(in crate::agent) use memory::{filled, is_served, to_come};
pub(in crate::agent) use receiving::Receiving;
pub(in crate::agent) use restore::{new_token, options_within, system_v};
pub(in crate::agent) use verdict::criu_failed;

use crate::agent::context::{Context, Key, News};
use crate::agent::duty::{TargetDuty, TargetLocal, target_duty, verdict_of};
use crate::agent::failure::retryable;
use crate::agent::journal::{Entry, RestoreEntry, Side, TargetEntry};
use crate::agent::report::Reporter;
use crate::agent::target::driver::placing::Placing;
use crate::agent::target::driver::rehearsal::Rehearsal;
use crate::agent::target::event::Event;
use crate::agent::target::registry::Registry;
use crate::agent::transfer::link::LinkSender;
use crate::agent::transfer::message::FromTarget;
use crate::agent::transfer::receive::{Landing, WORK};
use crate::agent::transfer::session::Renewed;
use crate::agent::transfer::wire::TargetStream;
use crate::causes::chain;
use crate::local::{Create, ToRelay, ToShim, has_ran_mark};
use crate::throttle::CpuLimits;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration, TargetReport, TargetStep, TargetTimings};
use tokio::sync::mpsc;
use tracing::info;

/// Room without which a target does not wait for a source, bytes: every image has some files besides memory.
const LEAST: u64 = 1 << 20;
/// How long a peer may take to take a word, before it counts as gone.
pub(in crate::agent) const WORD_LIMIT: Duration = Duration::from_millis(500);

/// The target's side of one Migration.
#[derive(Debug)]
pub struct TargetDriver {
    context: Arc<Context>,
    key: Key,
    registry: Registry,
    reporter: Reporter<TargetReport>,
    events: mpsc::Receiver<Event>,
    own_events: mpsc::Sender<Event>,
    report: TargetReport,
    local: TargetLocal,
    landing: Option<Landing>,
    /// To the source, while it is connected.
    source: Option<LinkSender<FromTarget>>,
    /// The session of that connection, and what takes those that follow on it.
    again: Option<(String, mpsc::Sender<Renewed<TargetStream>>)>,
    /// The task that writes what the source sends.
    receiving: Option<Receiving>,
    /// What `runc restore` needs from the start is here.
    early: bool,
    /// A shim's question that is not answered yet.
    asked: Option<(Create, mpsc::Sender<ToShim>)>,
    /// The restore that a shim was told to begin last.
    restore: Option<RestoreEntry>,
    /// Whether that has not been heard to have ended.
    running: bool,
    relay: Option<mpsc::Sender<ToRelay>>,
    /// Cpu limits of the container that is being restored.
    limits: CpuLimits,
    /// Files that are put in place for that restore.
    placing: Placing,
    /// CRIU was not given its request, and why is reported: that this restore ends is no news.
    refused: bool,
    rehearsal: Rehearsal,
    released: Option<Instant>,
    /// A left-over of an agent before this one that has not been judged yet.
    left_over: bool,
    /// The watch has shown that the attempt was committed to this node.
    committed: bool,
}

impl TargetDriver {
    /// For `key`; `entry` is what the journal has of it from an agent before this one.
    pub fn new(context: Arc<Context>, registry: Registry, key: Key, entry: Option<(u32, TargetEntry)>) -> Self {
        let reporter = Reporter::start(context.client.clone(), &key.namespace, &key.name, &key.uid);
        let (own_events, events) = mpsc::channel(64);
        registry.add_target(&key.uid, own_events.clone());
        let mut driver = Self {
            report: TargetReport::new(0),
            local: TargetLocal::default(),
            left_over: entry.is_some(),
            committed: false,
            context,
            key,
            registry,
            reporter,
            events,
            own_events,
            landing: None,
            source: None,
            again: None,
            receiving: None,
            early: false,
            asked: None,
            restore: None,
            running: false,
            relay: None,
            limits: CpuLimits::default(),
            placing: Placing::default(),
            refused: false,
            rehearsal: Rehearsal::default(),
            released: None,
        };
        if let Some((attempt, entry)) = entry {
            driver.adopt(attempt, entry);
        }
        driver
    }

    /// Takes over what the journal says. Whether what had landed is still there is seen when CRIU is about to read it.
    fn adopt(&mut self, attempt: u32, entry: TargetEntry) {
        self.local.attempt = attempt;
        let has_ran = has_ran_mark(&self.directory().join(WORK));
        self.local = reply::adopted(attempt, &entry, has_ran);
        self.early = true;
        self.report = TargetReport::new(attempt);
        self.limits = CpuLimits::adopt(&entry.cpu, self.context.node.root());
        if self.local.resumed {
            self.restore_limits();
        }
        if let Some(restore) = entry.restore {
            self.registry.add_token(&restore.token, &self.key.uid);
            self.running = !self.local.resumed;
            self.restore = Some(restore);
        }
    }

    /// Does duties until the Migration is gone.
    pub async fn run(mut self, mut news: News) {
        loop {
            let Some(migration) = news.borrow_and_update().clone() else {
                tokio::select! {
                    changed = news.changed() => if changed.is_err() { break },
                    Some(event) = self.events.recv() => self.take(event, None).await,
                }
                continue;
            };
            self.see(&migration);
            self.judge_left_over(&migration).await;
            let duty = match target_duty(&migration, &self.context.settings.node_name, self.local) {
                // The watch has not shown the commit yet that this task has made.
                TargetDuty::Commit(_) if self.committed_here() => TargetDuty::None,
                TargetDuty::Listen(_) if self.context.is_leaving() => TargetDuty::None,
                duty => duty,
            };
            match duty {
                TargetDuty::None => {
                    tokio::select! {
                        changed = news.changed() => if changed.is_err() { break },
                        Some(event) = self.events.recv() => self.take(event, Some(&migration)).await,
                    }
                }
                TargetDuty::Listen(attempt) => self.listen(attempt).await,
                TargetDuty::Release(_) => self.release(&migration).await,
                TargetDuty::Commit(attempt) => self.commit(&migration, attempt).await,
                TargetDuty::Resume(attempt) => self.resume_decided(attempt).await,
                TargetDuty::Destroy(attempt) => self.destroy(attempt).await,
                TargetDuty::Clean(_) => self.clean().await,
            }
        }
        // The object is gone. Nobody can commit any more, so nothing that was rebuilt here may ever run.
        if self.local.listening && !self.local.resumed && !self.local.destroyed && !self.committed_here() {
            self.destroy(self.local.attempt).await;
        } else if self.local.listening && self.local.resumed {
            self.clean().await;
        }
        self.registry.remove(&self.key.uid);
    }

    fn committed_here(&self) -> bool {
        self.committed || (self.report.step >= TargetStep::Committed && self.report.step != TargetStep::Destroyed)
    }

    /// Keeps the verdict of an object, for when there is none any more. A write of the agent before this one may have
    /// been under way when it ended, so that the commit is seen late.
    fn see(&mut self, migration: &Migration) {
        let node = &self.context.settings.node_name;
        self.committed |= migration.status.as_ref().is_some_and(|status| {
            verdict_of(status, self.local.attempt) == Verdict::Committed
                && status.owner.as_ref().is_some_and(|owner| owner.node == *node)
        });
    }

    async fn judge_left_over(&mut self, migration: &Migration) {
        if !std::mem::take(&mut self.left_over) {
            return;
        }
        let attempt = self.local.attempt;
        let verdict = migration.status.as_ref().map(|status| verdict_of(status, attempt));
        match verdict {
            Some(Verdict::Committed) => {
                self.report.step = TargetStep::Committed;
                info!(migration = self.key.name, "found committed, going on");
                // The agent before this one may have ended before it could say so.
                let written = std::mem::take(&mut self.local.resumed);
                if has_reported_resumed(migration, attempt) {
                    self.report.step = TargetStep::Resumed;
                    self.local.resumed = true;
                    self.running = false;
                    self.restore_limits();
                } else if written || self.runs_already().await {
                    info!(migration = self.key.name, "found that the restored container has run");
                    self.running = false;
                    self.resumed().await;
                }
            }
            Some(Verdict::Open) => {
                let message = "the target's agent was restarted before the commit";
                self.report.failure = Some(retryable(FailureReason::AgentRestarted, message));
                self.reporter.report(self.report.clone());
            }
            _ => {}
        }
    }

    fn reach(&mut self, step: TargetStep) {
        self.report.step = step;
        // While it is one of these steps, the source is frozen and waits.
        match step {
            TargetStep::Staged | TargetStep::Held | TargetStep::Committed => {
                self.reporter.report_later(self.report.clone());
            }
            _ => self.reporter.report(self.report.clone()),
        }
        info!(migration = self.key.name, attempt = self.local.attempt, ?step, "target");
    }

    fn timings(&mut self) -> &mut TargetTimings {
        self.report.timings.get_or_insert_default()
    }

    /// Tells the source, if it is there. What it does not hear it reads from the object.
    async fn tell_source(&self, message: FromTarget) {
        if let Some(source) = &self.source {
            tokio::time::timeout(WORD_LIMIT, source.say(&message)).await.ok();
        }
    }

    async fn tell_relay(&self, word: ToRelay) {
        if let Some(relay) = &self.relay {
            tokio::time::timeout(WORD_LIMIT, relay.send(word)).await.ok();
        }
    }

    async fn write_journal(&self, entry: TargetEntry) -> Result<(), Failure> {
        let Key { namespace, name, uid } = &self.key;
        let entry = Entry::new(namespace, name, uid, self.local.attempt, Side::Target(entry));
        let journal = self.context.journal.clone();
        let written = tokio::task::spawn_blocking(move || journal.write(&entry)).await;
        let failed = |error: &dyn std::error::Error| retryable(FailureReason::RestoreFailed, chain(error));
        written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    /// What the journal is to have of this side as it is now.
    pub(super) fn entry(&self) -> TargetEntry {
        TargetEntry { restore: self.restore.clone(), resumed: self.local.resumed, cpu: self.limits.records() }
    }

    /// Lets the source go, and ends the writing of what it sends.
    async fn hang_up(&mut self) {
        (self.source, self.again) = (None, None);
        if let Some(receiving) = self.receiving.take() {
            receiving.end().await;
        }
    }

    fn directory(&self) -> PathBuf {
        self.context.settings.attempt_directory(&self.key.uid, self.local.attempt)
    }

    async fn listen(&mut self, attempt: u32) {
        self.local = TargetLocal { attempt, listening: true, ..TargetLocal::default() };
        self.report = TargetReport::new(attempt);
        self.report.address = Some(self.context.settings.address().to_string());
        self.hang_up().await;
        self.stop_placing().await;
        self.early = false;
        self.restore = None;
        self.released = None;
        self.relay = None;
        self.restore_limits();
        self.rehearsal = Rehearsal::default();
        self.running = false;
        self.refused = false;
        self.committed = false;
        match self.context.facts().await {
            Ok(facts) => self.report.host = Some(facts),
            Err(failure) => return self.fail(failure).await,
        }
        if let Err(failure) = self.write_journal(self.entry()).await {
            return self.fail(failure).await;
        }
        // How much comes is said by the source. Where there is no room for anything, it need not come.
        let share = match self.context.room.promise(LEAST) {
            Ok(share) => share,
            Err(error) => return self.fail(retryable(FailureReason::TransferFailed, chain(&error))).await,
        };
        let directory = self.directory();
        let created = tokio::task::spawn_blocking(move || Landing::create(&directory, share)).await;
        match created.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error))) {
            Ok(Ok(landing)) => {
                self.landing = Some(landing);
                self.reach(TargetStep::Listening);
            }
            Ok(Err(error)) => self.fail(retryable(FailureReason::TransferFailed, chain(&error))).await,
            Err(failure) => self.fail(failure).await,
        }
    }
}

/// Whether this side has reported before that attempt `attempt` runs here.
fn has_reported_resumed(migration: &Migration, attempt: u32) -> bool {
    let report = migration.status.as_ref().and_then(|status| status.target.as_ref());
    report.is_some_and(|report| report.attempt == attempt && report.step == TargetStep::Resumed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::migration;

    #[test]
    fn only_a_report_of_this_attempt_says_that_it_runs() {
        let resumed = migration().attempt(2).target_step(TargetStep::Resumed);
        assert!(has_reported_resumed(&resumed.build(), 2));
        assert!(!has_reported_resumed(&resumed.build(), 1));
        assert!(!has_reported_resumed(&migration().attempt(2).target_step(TargetStep::Committed).build(), 2));
        assert!(!has_reported_resumed(&migration().attempt(2).build(), 2));
    }
}
