//! One Migration on its target node: takes what happens, does the target's duties, and reports.

mod cpu;
mod ending;
mod happening;
mod integrity;
mod lane;
mod memory;
mod placing;
mod receiving;
mod rehearsal;
mod reply;
mod restore;
mod syncing;
mod taking;
mod verdict;

pub(in crate::agent) use integrity::have_program;
pub(in crate::agent) use memory::{filled, is_served};
pub(in crate::agent) use receiving::Receiving;
pub(in crate::agent) use restore::{new_token, options_within, with_images};
pub use taking::Since;
pub(in crate::agent) use verdict::criu_failed;

use crate::agent::context::{Context, Key, News};
use crate::agent::duty::{LaneLocal, TargetDuty, TargetLocal, target_duty};
use crate::agent::failure::retryable;
use crate::agent::journal::{Entry, LaneEntry, Side, TargetEntry};
use crate::agent::report::Reporter;
use crate::agent::target::driver::integrity::{is_the_only_one, strategy_of};
use crate::agent::target::driver::lane::Lane;
use crate::agent::target::driver::rehearsal::Rehearsal;
use crate::agent::target::driver::taking::Claim;
use crate::agent::target::event::Event;
use crate::agent::target::registry::Registry;
use crate::agent::transfer::message::FromTarget;
use crate::agent::transfer::receive::{Landing, WORK};
use crate::agent::unpassed::{Unpassed, boot};
use crate::causes::chain;
use crate::local::{ToRelay, has_ran_mark};
use crate::throttle::CpuLimits;
use futures::future::join_all;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
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
    /// What was done for the attempt as a whole; what was done for each container is in its lane.
    local: AttemptLocal,
    /// The pod's containers that come, in the order in which they are started.
    lanes: Vec<Lane>,
    rehearsal: Rehearsal,
    /// A left-over of an agent before this one that has not been judged yet.
    left_over: bool,
    /// Whether this agent has taken the attempt.
    claim: Claim,
    /// That CRIU has had no request in the attempt that is taken, also from an agent before this one, or that nothing is left of it.
    unreleased: Option<Unpassed>,
    /// The watch has shown that the attempt was committed to this node, or this agent is about to commit what it has let run.
    committed: bool,
    /// Nothing is put in place before the commit: the pod's name is the source's until then.
    deletes_first: bool,
}

impl TargetDriver {
    /// For `key`; `entry` is what the journal has of it from an agent before this one.
    pub fn new(context: Arc<Context>, registry: Registry, key: Key, entry: Option<(u32, TargetEntry)>) -> Self {
        let reporter = Reporter::start(context.client.clone(), &key.namespace, &key.name, &key.uid);
        let (own_events, events) = mpsc::channel(64);
        registry.add_target(&key.uid, own_events.clone());
        let mut driver = Self {
            report: TargetReport::new(0),
            local: AttemptLocal::default(),
            left_over: entry.is_some(),
            claim: Claim::default(),
            unreleased: None,
            committed: false,
            deletes_first: false,
            context,
            key,
            registry,
            reporter,
            events,
            own_events,
            lanes: Vec::new(),
            rehearsal: Rehearsal::default(),
        };
        if let Some((attempt, entry)) = entry {
            driver.adopt(attempt, entry);
        }
        driver
    }

    /// Takes over what the journal says. Whether what had landed is still there is seen when CRIU is about to read it.
    fn adopt(&mut self, attempt: u32, entry: TargetEntry) {
        self.local = AttemptLocal { attempt, listening: true, failed: true, destroyed: false };
        self.report = TargetReport::new(attempt);
        let of_another_boot = entry.boot.is_some() && boot().is_ok_and(|boot| entry.boot != Some(boot));
        for LaneEntry { container, restore, resumed, cpu } in entry.containers {
            let mut lane = Lane::new(&container);
            let has_ran = has_ran_mark(&self.directory().join(&container).join(WORK));
            lane.local = reply::adopted(resumed, has_ran);
            lane.adopted = true;
            lane.early = true;
            lane.limits = CpuLimits::adopt(&cpu, self.context.node.root());
            if lane.local.resumed {
                lane.restore_limits();
            }
            if let Some(restore) = restore {
                self.registry.add_token(&restore.token, &self.key.uid);
                lane.running = !lane.local.resumed;
                lane.unheard = lane.running;
                lane.restore = Some(restore);
            }
            self.lanes.push(lane);
        }
        // Of what was let run before another boot, and has not been seen to run, there is no more than of what was not.
        let ran = self.lanes.iter().any(|lane| lane.local.resumed);
        let nothing_runs = (of_another_boot && !ran).then(Unpassed::for_certain);
        self.unreleased = nothing_runs.or_else(|| Unpassed::left(&self.unreleased_file()));
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
            // What could not be answered before may be by what the object says now.
            self.answer(Some(&migration)).await;
            match self.duty(&migration) {
                TargetDuty::None => {
                    tokio::select! {
                        changed = news.changed() => if changed.is_err() { break },
                        Some(event) = self.events.recv() => self.take(event, Some(&migration)).await,
                    }
                }
                TargetDuty::Listen(attempt) => self.listen(&migration, attempt).await,
                TargetDuty::Take(_) => self.take_early(&migration).await,
                TargetDuty::Release(_) => self.release(&migration).await,
                TargetDuty::Run(_) => self.run_taken(&migration).await,
                TargetDuty::Commit(attempt) => self.commit(&migration, attempt).await,
                TargetDuty::Resume(attempt) => self.resume_decided(&migration, attempt).await,
                TargetDuty::Destroy(attempt) => self.destroy(attempt).await,
                TargetDuty::Clean(_) => self.clean().await,
            }
        }
        // The object is gone. Nobody can commit any more, so nothing that was rebuilt here may ever run.
        if self.local.listening && !self.pod().resumed && !self.local.destroyed && !self.committed_here() {
            self.destroy(self.local.attempt).await;
        } else if self.local.listening && self.pod().resumed {
            self.clean().await;
        }
        self.registry.remove(&self.key.uid);
    }

    /// What is to be done now.
    fn duty(&self, migration: &Migration) -> TargetDuty {
        match target_duty(migration, &self.context.settings.node_name, self.pod()) {
            // The watch has not shown the commit yet that this task has made, or makes.
            TargetDuty::Commit(_) | TargetDuty::Run(_) if self.committed => TargetDuty::None,
            TargetDuty::Listen(_) if self.context.is_leaving() => TargetDuty::None,
            duty => duty,
        }
    }

    /// What was done for the pod: for all of its containers.
    fn pod(&self) -> TargetLocal {
        let AttemptLocal { attempt, listening, failed, destroyed } = self.local;
        let lanes: Vec<LaneLocal> = self.lanes.iter().map(|lane| lane.local).collect();
        let (taking, unreleased) = (self.claim.taking(), self.unreleased.is_some());
        let local = TargetLocal { attempt, listening, failed, destroyed, taking, unreleased, ..TargetLocal::default() };
        local.of_pod(&lanes, self.go_together())
    }

    /// Whether all containers wait for each other, before the commit or after it: none of them was told to run yet. Where the pod is
    /// replaced before the commit they were by then, or are about to be.
    fn go_together(&self) -> bool {
        let told = self.lanes.iter().any(|lane| lane.told || lane.local.resumed);
        !self.committed_here() || (self.deletes_first && !told)
    }

    /// The lane of the container with this name.
    fn lane_of(&self, container: &str) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.is_of(container))
    }

    /// What is said of the container of a lane: it is named where the pod has several.
    fn of_lane(&self, lane: usize, what: String) -> String {
        if self.lanes.len() > 1 { format!("container {}: {what}", self.lanes[lane].container) } else { what }
    }

    /// The lane whose restore was begun last with this token.
    fn lane_of_token(&self, token: &str) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.has_token(token))
    }

    fn committed_here(&self) -> bool {
        self.committed || (self.report.step >= TargetStep::Committed && self.report.step != TargetStep::Destroyed)
    }

    /// Keeps the verdict of an object, for when there is none any more. A write of the agent before this one may have
    /// been under way when it ended, so that the commit is seen late.
    fn see(&mut self, migration: &Migration) {
        self.deletes_first = strategy_of(Some(migration)).is_ok_and(is_the_only_one);
        let node = &self.context.settings.node_name;
        self.committed |= migration.status.as_ref().is_some_and(|status| {
            status.verdict_of(self.local.attempt) == Verdict::Committed
                && status.owner.as_ref().is_some_and(|owner| owner.node == *node)
        });
    }

    async fn judge_left_over(&mut self, migration: &Migration) {
        if !std::mem::take(&mut self.left_over) {
            return;
        }
        let attempt = self.local.attempt;
        let verdict = migration.status.as_ref().map(|status| status.verdict_of(attempt));
        match verdict {
            Some(Verdict::Committed) => {
                self.report.step = TargetStep::Committed;
                info!(migration = self.key.name, "found committed, going on");
                if has_reported_resumed(migration, attempt) {
                    self.report.step = TargetStep::Resumed;
                    for lane in &mut self.lanes {
                        (lane.local.resumed, lane.running) = (true, false);
                        lane.restore_limits();
                    }
                    return;
                }
                for lane in 0..self.lanes.len() {
                    // The agent before this one may have ended before it could say so.
                    let written = std::mem::take(&mut self.lanes[lane].local.resumed);
                    if written || (!self.lanes[lane].failed && self.runs_already(lane).await) {
                        let container = &self.lanes[lane].container;
                        info!(migration = self.key.name, container, "found that the restored container has run");
                        self.lanes[lane].running = false;
                        self.resumed(lane).await;
                    }
                }
            }
            // It is judged once this agent has made it final: the one before it may have let the processes run.
            Some(Verdict::Taken) => self.left_over = true,
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
        // While it is one of these steps, the source is frozen and waits, or the application needs its first pages.
        match step {
            TargetStep::Staged | TargetStep::Held | TargetStep::Committed | TargetStep::Resumed => {
                self.reporter.report_later(self.report.clone());
            }
            _ => self.reporter.report(self.report.clone()),
        }
        info!(migration = self.key.name, attempt = self.local.attempt, ?step, "target");
    }

    fn timings(&mut self) -> &mut TargetTimings {
        self.report.timings.get_or_insert_default()
    }

    /// Tells the source what is of the pod, if it is there. What it does not hear it reads from the object.
    async fn tell_source(&self, message: FromTarget) {
        let telling = self.lanes.iter().filter_map(|lane| lane.source.as_ref()).map(|source| source.say(&message));
        tokio::time::timeout(WORD_LIMIT, join_all(telling)).await.ok();
    }

    /// Tells the source what is of one container.
    async fn tell_source_of(&self, lane: usize, message: FromTarget) {
        if let Some(source) = &self.lanes[lane].source {
            tokio::time::timeout(WORD_LIMIT, source.say(&message)).await.ok();
        }
    }

    async fn tell_relay(&self, lane: usize, word: ToRelay) {
        if let Some(relay) = &self.lanes[lane].relay {
            tokio::time::timeout(WORD_LIMIT, relay.send(word)).await.ok();
        }
    }

    async fn tell_relays(&self, word: &ToRelay) {
        let telling = self.lanes.iter().filter_map(|lane| lane.relay.as_ref()).map(|relay| relay.send(word.clone()));
        tokio::time::timeout(WORD_LIMIT, join_all(telling)).await.ok();
    }

    /// Writes down what was done so far, and what is about to be.
    async fn write_journal(&self) -> Result<(), Failure> {
        let Key { namespace, name, uid } = &self.key;
        let entry = TargetEntry { containers: self.lanes.iter().map(Lane::entry).collect(), boot: boot().ok() };
        let entry = Entry::new(namespace, name, uid, self.local.attempt, Side::Target(entry));
        let journal = self.context.journal.clone();
        let written = tokio::task::spawn_blocking(move || journal.write(&entry)).await;
        let failed = |error: &dyn std::error::Error| retryable(FailureReason::RestoreFailed, chain(error));
        written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    fn directory(&self) -> PathBuf {
        self.context.settings.attempt_directory(&self.key.uid, self.local.attempt)
    }

    /// Where the attempt keeps what is one container's.
    fn lane_directory(&self, lane: usize) -> PathBuf {
        self.directory().join(&self.lanes[lane].container)
    }

    async fn listen(&mut self, migration: &Migration, attempt: u32) {
        self.local = AttemptLocal { attempt, listening: true, failed: false, destroyed: false };
        self.report = TargetReport::new(attempt);
        self.report.address = Some(self.context.settings.address().to_string());
        let containers = migration.status.as_ref().map(|status| status.containers.clone()).unwrap_or_default();
        let lanes = containers.iter().map(|container| Lane::new(container)).collect();
        for mut before in std::mem::replace(&mut self.lanes, lanes) {
            before.hang_up().await;
            before.placing.stop().await;
            before.restore_limits();
            // What could not be put back is tried again where this attempt comes to its end.
            if let Some(lane) = self.lanes.iter_mut().find(|lane| before.is_of(&lane.container)) {
                lane.limits = before.limits;
            }
        }
        self.rehearsal = Rehearsal::of(&containers);
        self.claim = Claim::default();
        self.unreleased = None;
        self.committed = false;
        if self.lanes.is_empty() {
            let message = "the Migration names no container that moves".to_owned();
            return self.fail(retryable(FailureReason::NotMovable, message)).await;
        }
        let lasts = match strategy_of(Some(migration)) {
            Ok(strategy) => is_the_only_one(strategy),
            Err(failure) => return self.fail(failure).await,
        };
        match self.context.facts().await {
            Ok(facts) => self.report.host = Some(facts),
            Err(failure) => return self.fail(failure).await,
        }
        if let Err(failure) = self.write_journal().await {
            return self.fail(failure).await;
        }
        for lane in 0..self.lanes.len() {
            match self.land_in(self.lane_directory(lane), lasts).await {
                Ok(landing) => self.lanes[lane].landing = Some(landing),
                Err(failure) => return self.fail(failure).await,
            }
        }
        self.reach(TargetStep::Listening);
    }

    async fn land_in(&self, directory: PathBuf, lasts: bool) -> Result<Landing, Failure> {
        let failed = |error: &dyn std::error::Error| retryable(FailureReason::TransferFailed, chain(error));
        // How much comes is said by the source. Where there is no room for anything, it need not come.
        let share = self.context.room.promise(LEAST).map_err(|error| failed(&error))?;
        let created = tokio::task::spawn_blocking(move || Landing::create(&directory, share)).await;
        let landing = created.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        Ok(if lasts { landing.lasting() } else { landing })
    }
}

/// What was done for one attempt, whatever its containers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AttemptLocal {
    /// The attempt that the rest speaks of.
    attempt: u32,
    /// Ready to receive.
    listening: bool,
    /// This side said that it can't go on.
    failed: bool,
    /// Nothing of the attempt is left here.
    destroyed: bool,
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
