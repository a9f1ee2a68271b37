//! One Migration on its target node: takes what happens, does the target's duties, and reports.

use crate::agent::context::{Context, Key, News};
use crate::agent::duty::{TargetDuty, TargetLocal, target_duty, verdict_of};
use crate::agent::failure::{chain, retryable};
use crate::agent::journal::{Entry, RestoreEntry, Side, TargetEntry};
use crate::agent::owner::{Committed, Decision};
use crate::agent::report::Reporter;
use crate::agent::source::freeze::millis;
use crate::agent::source::preflight::free_bytes;
use crate::agent::target::event::{Arrival, Event};
use crate::agent::target::registry::Registry;
use crate::agent::target::stage;
use crate::agent::transfer::link::LinkSender;
use crate::agent::transfer::message::{FromTarget, IMAGES, VERSION};
use crate::agent::transfer::receive::{Landing, ReceiveError, Round, WORK};
use crate::criu::last_errors;
use crate::local::{Create, RelayStage, ReleaseOptions, TOKEN_ENV, ToRelay, ToShim};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration, Strategy, TargetReport, TargetStep, TargetTimings, names};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// Disk space that incoming images leave free, bytes.
const SPARE: u64 = 256 << 20;
/// How long a peer may take to take a word, before it counts as gone.
const WORD_LIMIT: Duration = Duration::from_millis(500);
/// How long the end of a restore that was called off is waited for.
const CALL_OFF_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether that has ended unheard.
const LOOK: Duration = Duration::from_millis(500);
/// Pause before the API server or the disk is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How many error lines of CRIU's log go into a report.
const LOG_LINES: usize = 3;

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
    /// What `runc restore` needs from the start is here.
    early: bool,
    /// A shim's question that is not answered yet.
    asked: Option<(Create, mpsc::Sender<ToShim>)>,
    /// The restore that a shim was told to begin last.
    restore: Option<RestoreEntry>,
    /// Whether that has not been heard to have ended.
    running: bool,
    relay: Option<mpsc::Sender<ToRelay>>,
    released: Option<Instant>,
    /// A left-over of an agent before this one that has not been judged yet.
    left_over: bool,
}

impl TargetDriver {
    /// For `key`; `entry` is what the journal has of it from an agent before this one.
    pub fn new(context: Arc<Context>, registry: Registry, key: Key, entry: Option<(u32, TargetEntry)>) -> Self {
        let reporter = Reporter::start(context.client.clone(), &key.namespace, &key.name, &key.uid);
        let (own_events, events) = mpsc::channel(64);
        registry.add_target(&key.uid, own_events.clone());
        let mut driver = Self {
            report: fresh_report(0),
            local: TargetLocal::default(),
            left_over: entry.is_some(),
            context,
            key,
            registry,
            reporter,
            events,
            own_events,
            landing: None,
            source: None,
            early: false,
            asked: None,
            restore: None,
            running: false,
            relay: None,
            released: None,
        };
        if let Some((attempt, entry)) = entry {
            driver.adopt(attempt, entry);
        }
        driver
    }

    /// Takes over what the journal says. The attempt can't go on, unless it was committed: a commit implies that
    /// everything had landed and was verified.
    fn adopt(&mut self, attempt: u32, entry: TargetEntry) {
        self.local = TargetLocal {
            attempt,
            listening: true,
            staged: true,
            failed: true,
            resumed: entry.resumed,
            ..TargetLocal::default()
        };
        self.early = true;
        self.report = fresh_report(attempt);
        if let Some(restore) = entry.restore {
            self.registry.add_token(&restore.token, &self.key.uid);
            self.running = !entry.resumed;
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
            self.judge_left_over(&migration);
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
        }
        self.registry.remove(&self.key.uid);
    }

    fn committed_here(&self) -> bool {
        self.report.step >= TargetStep::Committed && self.report.step != TargetStep::Destroyed
    }

    fn judge_left_over(&mut self, migration: &Migration) {
        if !std::mem::take(&mut self.left_over) {
            return;
        }
        let verdict = migration.status.as_ref().map(|status| verdict_of(status, self.local.attempt));
        match verdict {
            Some(Verdict::Committed) => {
                self.report.step = TargetStep::Committed;
                info!(migration = self.key.name, "found committed, going on");
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

    fn directory(&self) -> PathBuf {
        self.context.settings.attempt_directory(&self.key.uid, self.local.attempt)
    }

    async fn listen(&mut self, attempt: u32) {
        self.local = TargetLocal { attempt, listening: true, ..TargetLocal::default() };
        self.report = fresh_report(attempt);
        self.report.address = Some(self.context.settings.address().to_string());
        self.source = None;
        self.early = false;
        self.restore = None;
        self.released = None;
        self.relay = None;
        self.running = false;
        match self.context.facts().await {
            Ok(facts) => self.report.host = Some(facts),
            Err(failure) => return self.fail(failure).await,
        }
        if let Err(failure) = self.write_journal(TargetEntry::default()).await {
            return self.fail(failure).await;
        }
        let (directory, images) = (self.directory(), self.context.settings.images());
        let free = free_bytes(&images);
        let Some(room) = free.checked_sub(SPARE) else {
            let message =
                format!("no space for images: {free} bytes are free on the target's disk, {SPARE} must stay so");
            return self.fail(retryable(FailureReason::TransferFailed, message)).await;
        };
        let created = tokio::task::spawn_blocking(move || Landing::create(&directory, room)).await;
        match created.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error))) {
            Ok(Ok(landing)) => {
                self.landing = Some(landing);
                self.reach(TargetStep::Listening);
            }
            Ok(Err(error)) => self.fail(retryable(FailureReason::TransferFailed, chain(&error))).await,
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Takes one thing that happened. `migration` is the newest object, if there is one.
    async fn take(&mut self, event: Event, migration: Option<&Migration>) {
        match event {
            Event::Source(arrival) => self.source_arrived(arrival, migration).await,
            Event::Round { attempt, round } if attempt == self.local.attempt => self.landed(round).await,
            Event::Round { .. } => {}
            Event::Create { create, answer } => self.asked = Some((create, answer)),
            Event::Relay { token, stage, line } => self.relay_came(&token, stage, line).await,
            Event::Held { token } if self.is_current(&token) => self.held().await,
            Event::Held { .. } => {}
            Event::Ended { token, success, message } if self.is_current(&token) => {
                self.running = false;
                self.relay = None;
                if success { self.resumed().await } else { self.restore_failed(message, migration).await }
            }
            Event::Restored { token, exit_code } if self.is_current(&token) => {
                let ended_unheard = std::mem::take(&mut self.running);
                if exit_code != 0 && ended_unheard {
                    self.restore_failed(format!("runc restore ended with {exit_code}"), migration).await;
                }
            }
            Event::Ended { .. } | Event::Restored { .. } => {}
            Event::RelayLost { token } if self.is_current(&token) => {
                self.relay = None;
                self.local.waiting = false;
                self.local.held = false;
            }
            Event::RelayLost { .. } => {}
        }
        self.answer(migration).await;
    }

    fn is_current(&self, token: &str) -> bool {
        self.restore.as_ref().is_some_and(|restore| restore.token == token)
    }

    async fn source_arrived(&mut self, arrival: Arrival, migration: Option<&Migration>) {
        let refusal = match migration.and_then(|migration| migration.status.as_ref()?.source_pod.as_ref()?.node.clone())
        {
            None => Some("the move has no source yet".to_owned()),
            Some(node) if !arrival.names.contains(&names::agent_identity(&node)) => {
                Some(format!("the certificate is not that of node {node}"))
            }
            Some(_) if arrival.preamble.version != VERSION => {
                Some(format!("this agent speaks version {VERSION} and not {}", arrival.preamble.version))
            }
            Some(_) if arrival.preamble.attempt != self.local.attempt => {
                Some(format!("the attempt here is {} and not {}", self.local.attempt, arrival.preamble.attempt))
            }
            Some(_) if self.local.failed || self.source.is_some() => {
                Some("this attempt has had its connection".to_owned())
            }
            Some(_) => None,
        };
        let landing = if refusal.is_none() { self.landing.take() } else { None };
        let Some(mut landing) = landing else {
            let message = refusal.unwrap_or_else(|| "nothing is expected here".to_owned());
            warn!(migration = self.key.name, message, "source refused");
            arrival.sender.say(&FromTarget::Refused { message }).await.ok();
            return;
        };
        self.source = Some(arrival.sender);
        self.tell_source(FromTarget::Accepted).await;
        let (events, attempt, mut receiver) = (self.own_events.clone(), self.local.attempt, arrival.receiver);
        tokio::spawn(async move {
            loop {
                let round = landing.round(&mut receiver).await;
                let last = round.as_ref().map_or(true, |round| round.last);
                if events.send(Event::Round { attempt, round }).await.is_err() || last {
                    return;
                }
            }
        });
    }

    async fn landed(&mut self, round: Result<Round, ReceiveError>) {
        match round {
            Ok(round) => {
                let digest = round.manifest.digest();
                self.tell_source(FromTarget::Verified { round: round.number, digest }).await;
                self.early = true;
                if round.last {
                    self.local.staged = true;
                    self.timings().receive_millis = millis(round.took);
                    self.reach(TargetStep::Staged);
                }
            }
            Err(error) => {
                let reason =
                    if error.is_corruption() { FailureReason::Corrupted } else { FailureReason::TransferFailed };
                self.fail(retryable(reason, chain(&error))).await;
            }
        }
    }

    /// Answers the shim's question, once it can be answered.
    async fn answer(&mut self, migration: Option<&Migration>) {
        let Some((create, _)) = &self.asked else { return };
        let status = migration.and_then(|migration| migration.status.as_ref());
        let verdict = status.map_or(Verdict::Open, |status| verdict_of(status, self.local.attempt));
        let first = status.is_some_and(|status| status.strategy == Some(Strategy::ReplaceFirst));
        let same = self.restore.as_ref().is_some_and(|restore| restore.container_id == create.container_id);
        let answer = if self.local.resumed {
            ToShim::ColdStart
        } else if verdict == Verdict::Aborted || self.local.destroyed || (verdict == Verdict::Open && self.local.failed)
        {
            let why = self.report.failure.as_ref().map_or("the attempt is over", |failure| failure.message.as_str());
            ToShim::Refuse { reason: format!("the restore is off: {why}") }
        } else if same {
            self.restore_answer()
        } else if self.early && (verdict == Verdict::Committed || first) {
            match self.begin_restore(create.clone()).await {
                Ok(()) => self.restore_answer(),
                Err(failure) => {
                    let reason = failure.message.clone();
                    self.fail(failure).await;
                    ToShim::Refuse { reason }
                }
            }
        } else {
            return;
        };
        if let Some((_, shim)) = self.asked.take() {
            // A shim that is gone asks again.
            shim.send(answer).await.ok();
        }
    }

    /// Writes down that a restore is about to begin: from here on CRIU may rebuild the processes, and this node may commit.
    async fn begin_restore(&mut self, create: Create) -> Result<(), Failure> {
        let token = new_token().map_err(|error| {
            retryable(FailureReason::RestoreFailed, format!("make a token for the restore: {error}"))
        })?;
        let restore =
            RestoreEntry { token, pod_uid: create.pod_uid, container_id: create.container_id, bundle: create.bundle };
        self.write_journal(TargetEntry { restore: Some(restore.clone()), resumed: false }).await?;
        self.registry.add_token(&restore.token, &self.key.uid);
        self.restore = Some(restore);
        self.running = true;
        self.relay = None;
        self.local.waiting = false;
        self.local.released = false;
        self.local.held = false;
        Ok(())
    }

    fn restore_answer(&self) -> ToShim {
        let directory = self.directory();
        let token = self.restore.as_ref().map(|restore| restore.token.clone()).unwrap_or_default();
        ToShim::Restore { token, images_dir: directory.join(IMAGES), work_dir: directory.join(WORK) }
    }

    async fn relay_came(&mut self, token: &str, stage: RelayStage, line: mpsc::Sender<ToRelay>) {
        if !self.is_current(token) {
            line.send(ToRelay::Abandon).await.ok();
            return;
        }
        self.relay = Some(line);
        self.running = true;
        self.local.waiting = true;
        self.local.released = stage != RelayStage::Requested;
        self.local.held = stage == RelayStage::Held;
        if self.local.failed && self.report.step < TargetStep::Committed {
            // A left-over of the agent before this one may have been committed; the object says so.
            if !self.left_over && self.report.failure.is_some() {
                self.tell_relay(ToRelay::Abandon).await;
            }
            return;
        }
        if stage == RelayStage::Requested && !self.local.staged {
            self.reach(TargetStep::Waiting);
        }
    }

    async fn held(&mut self) {
        self.local.held = true;
        if let Some(released) = self.released {
            self.timings().restore_millis = millis(released.elapsed());
        }
        self.tell_source(FromTarget::Held).await;
        if !self.committed_here() {
            self.reach(TargetStep::Held);
        }
    }

    async fn release(&mut self, migration: &Migration) {
        let Some(restore) = self.restore.clone() else { return };
        let (context, directory) = (self.context.clone(), self.directory());
        let begun = Instant::now();
        let placed = tokio::task::spawn_blocking(move || stage::place_files(&context, &directory, &restore)).await;
        let placed = placed.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error))));
        self.timings().stage_millis = millis(begun.elapsed());
        self.local.released = true;
        match placed {
            Ok(()) => {
                self.released = Some(Instant::now());
                self.tell_relay(ToRelay::Release { options: release_options(migration) }).await;
            }
            Err(failure) => {
                self.tell_relay(ToRelay::Abandon).await;
                self.restore_failed(failure.message, Some(migration)).await;
            }
        }
    }

    /// Takes the owner field. **The point of no return**: after it the source never runs again, so whatever fails
    /// from there on is tried again here and undone nowhere.
    async fn commit(&mut self, migration: &Migration, attempt: u32) {
        let begun = Instant::now();
        let seen = migration.status.as_ref().and_then(|status| status.owner.clone());
        let ownership = self.context.ownership(&self.key);
        match ownership.commit(attempt, &self.context.settings.node_name, seen).await {
            Ok(Decision::Committed(proof)) if proof.node() == self.context.settings.node_name => {
                self.timings().commit_millis = millis(begun.elapsed());
                if self.local.held {
                    self.resume(proof).await;
                }
                self.tell_source(FromTarget::Committed).await;
                self.reach(TargetStep::Committed);
            }
            Ok(Decision::Committed(_)) => error!(migration = self.key.name, "committed to another node"),
            Ok(Decision::Aborted(_)) => self.destroy(attempt).await,
            Err(error) => {
                warn!(migration = self.key.name, error = %chain(&error), "nothing to commit to");
                self.destroy(attempt).await;
            }
        }
    }

    async fn resume_decided(&mut self, attempt: u32) {
        match self.context.ownership(&self.key).decision(attempt).await {
            Ok(Some(Decision::Committed(proof))) if proof.node() == self.context.settings.node_name => {
                self.resume(proof).await;
            }
            Ok(_) => {}
            Err(error) => {
                warn!(migration = self.key.name, error = %chain(&error), "whether to resume is unknown");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }

    /// Lets the processes run. The proof is used up: they are told once.
    async fn resume(&mut self, proof: Committed) {
        info!(migration = self.key.name, attempt = proof.attempt(), "resuming");
        self.tell_relay(ToRelay::Resume).await;
        // Told. What follows is the relay's `ended`, or its return in the stage it is in.
        self.local.held = false;
    }

    async fn resumed(&mut self) {
        self.local.resumed = true;
        if let Some(released) = self.released {
            self.timings().resume_millis = millis(released.elapsed());
        }
        self.tell_source(FromTarget::Resumed).await;
        self.report.failure = None;
        self.reach(TargetStep::Resumed);
        let entry = TargetEntry { restore: self.restore.clone(), resumed: true };
        if let Err(failure) = self.write_journal(entry).await {
            warn!(migration = self.key.name, message = failure.message, "could not write down that it runs");
        }
    }

    /// A restore has failed. Before the commit that ends the attempt; after it the state stays here, and kubelet's next
    /// `create` tries again.
    async fn restore_failed(&mut self, message: String, migration: Option<&Migration>) {
        let log = self.directory().join(WORK).join("restore.log");
        let lines = last_errors(&log, LOG_LINES);
        let message = match lines.is_empty() || lines.iter().any(|line| message.contains(line.as_str())) {
            true => format!("CRIU's restore failed: {message}"),
            false => format!("CRIU's restore failed: {message}: {}", lines.join(" | ")),
        };
        self.local.waiting = false;
        self.local.released = false;
        self.local.held = false;
        let status = migration.and_then(|migration| migration.status.as_ref());
        let verdict = status.map_or(Verdict::Open, |status| verdict_of(status, self.local.attempt));
        let failure = retryable(FailureReason::RestoreFailed, message);
        if verdict == Verdict::Committed || self.committed_here() {
            warn!(
                migration = self.key.name,
                message = failure.message,
                "restore failed after the commit, kept for another try"
            );
            self.report.failure = Some(failure);
            self.reporter.report(self.report.clone());
        } else if verdict == Verdict::Open {
            self.fail(failure).await;
        }
    }

    /// Says that this side can't go on.
    async fn fail(&mut self, failure: Failure) {
        if std::mem::replace(&mut self.local.failed, true) {
            return;
        }
        warn!(migration = self.key.name, attempt = self.local.attempt, message = failure.message, "target failed");
        self.tell_source(FromTarget::Failed { failure: failure.clone() }).await;
        self.report.failure = Some(failure);
        self.reporter.report(self.report.clone());
        self.tell_relay(ToRelay::Abandon).await;
    }

    /// The attempt was aborted: nothing of it stays here. CRIU ends by its own protocol.
    async fn destroy(&mut self, attempt: u32) {
        self.local.attempt = attempt;
        self.local.failed = true;
        self.landing = None;
        let deadline = tokio::time::Instant::now() + CALL_OFF_LIMIT;
        self.tell_relay(ToRelay::Abandon).await;
        self.answer(None).await;
        while self.running {
            let event = match tokio::time::timeout(LOOK, self.events.recv()).await {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) if !self.restore_is_there().await => break,
                Err(_) if tokio::time::Instant::now() > deadline => {
                    warn!(migration = self.key.name, "a restore that was called off does not end");
                    break;
                }
                Err(_) => continue,
            };
            match event {
                Event::Relay { line, .. } => {
                    line.send(ToRelay::Abandon).await.ok();
                    self.relay = Some(line);
                }
                Event::Held { .. } => self.tell_relay(ToRelay::Abandon).await,
                Event::Ended { token, .. } | Event::Restored { token, .. } if self.is_current(&token) => {
                    self.running = false;
                }
                Event::Create { create, answer } => {
                    self.asked = Some((create, answer));
                    self.answer(None).await;
                }
                _ => {}
            }
        }
        self.source = None;
        self.relay = None;
        self.remove_everything().await;
        self.local.destroyed = true;
        self.reach(TargetStep::Destroyed);
    }

    /// Whether any process of the restore that was begun last exists, whoever it talks to.
    async fn restore_is_there(&self) -> bool {
        let Some(token) = self.restore.as_ref().map(|restore| restore.token.clone()) else { return false };
        tokio::task::spawn_blocking(move || has_process_of(&token)).await.unwrap_or(true)
    }

    /// The processes run: images are of no further use.
    async fn clean(&mut self) {
        self.remove_everything().await;
        self.local.listening = false;
        self.source = None;
    }

    async fn remove_everything(&self) {
        let (directory, journal, uid) = (self.directory(), self.context.journal.clone(), self.key.uid.clone());
        let removed = tokio::task::spawn_blocking(move || {
            if let Err(error) = crate::agent::images::remove(&directory) {
                warn!(?directory, %error, "images are left");
            }
            journal.remove(&uid)
        });
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(error = %chain(&error), "the journal entry is left"),
            Err(error) => warn!(%error, "cleaning ended unexpectedly"),
        }
    }
}

fn release_options(migration: &Migration) -> ReleaseOptions {
    let policy = migration.status.as_ref().and_then(|status| status.policy.as_ref());
    let limit = policy.map_or(64 << 20, |policy| policy.deleted_file_limit_bytes);
    ReleaseOptions {
        log_level: 2,
        ghost_limit: u32::try_from(limit).unwrap_or(u32::MAX),
        file_locks: true,
        link_remap: true,
        ..ReleaseOptions::default()
    }
}

/// Whether a process has the token of a restore in its environment: runc, the relay and CRIU have. The processes
/// that are restored have their own.
fn has_process_of(token: &str) -> bool {
    let variable = format!("{TOKEN_ENV}={token}");
    let processes = std::path::Path::new("/proc").read_dir().into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("environ")).ok())
        .any(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()))
}

/// 128 random bits, hexadecimal.
fn new_token() -> std::io::Result<String> {
    use std::io::Read;
    let mut random = [0_u8; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn fresh_report(attempt: u32) -> TargetReport {
    TargetReport { attempt, step: TargetStep::Listening, address: None, host: None, timings: None, failure: None }
}
