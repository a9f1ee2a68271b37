//! The end of an attempt on its target: given up, called off, or done.

use super::TargetDriver;
use super::lane::Lane;
use super::memory::end_container;
use crate::agent::source::container::find;
use crate::agent::target::event::Event;
use crate::agent::transfer::message::FromTarget;
use crate::causes::chain;
use crate::local::{TOKEN_ENV, ToRelay};
use std::time::Duration;
use tideover_crds::{Failure, TargetStep};
use tracing::warn;

/// How long the end of a restore that was called off is waited for.
const CALL_OFF_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked whether that has ended unheard.
const LOOK: Duration = Duration::from_millis(500);

impl TargetDriver {
    /// Says that this side can't go on.
    pub(super) async fn fail(&mut self, failure: Failure) {
        if std::mem::replace(&mut self.local.failed, true) {
            return;
        }
        warn!(migration = self.key.name, attempt = self.local.attempt, message = failure.message, "target failed");
        self.tell_source(FromTarget::Failed { failure: failure.clone() }).await;
        self.report.failure = Some(failure);
        self.reporter.report(self.report.clone());
        // Nobody can tell the processes to run any more. The sooner, the sooner the source does.
        self.give_up_claim();
        self.lanes.iter_mut().for_each(|lane| lane.placing.call_off());
        self.tell_relays(&ToRelay::Abandon).await;
        self.call_rehearsal_off().await;
    }

    /// The attempt was aborted, or its state given up: nothing of it stays here. CRIU ends by its own protocol.
    pub(super) async fn destroy(&mut self, attempt: u32) {
        self.local.attempt = attempt;
        self.local.failed = true;
        for lane in &mut self.lanes {
            lane.landing = None;
            // First of all: a source that still sends into an attempt that is over stays frozen as long as it is listened to.
            lane.hang_up().await;
        }
        for lane in &mut self.lanes {
            // What is still put in place would keep the container's files from being taken down.
            lane.placing.stop().await;
        }
        let deadline = tokio::time::Instant::now() + CALL_OFF_LIMIT;
        self.tell_relays(&ToRelay::Abandon).await;
        self.answer(None).await;
        self.call_rehearsal_off().await;
        while self.lanes.iter().any(|lane| lane.running) || self.rehearsal.is_running() {
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
                event if self.rehearsal.concerns(&event) => self.rehearse(event, None).await,
                Event::Rehearse { create, answer } => {
                    self.rehearsal.ask(create, answer).await;
                    self.answer_rehearsal().await;
                }
                Event::Relay { token, line, .. } => {
                    line.send(ToRelay::Abandon).await.ok();
                    if let Some(lane) = self.lane_of_token(&token) {
                        self.lanes[lane].relay = Some(line);
                    }
                }
                Event::Held { .. } => self.tell_relays(&ToRelay::Abandon).await,
                Event::Ended { token, success, heard, .. } => {
                    self.ended(&token, success).await;
                    heard.send(()).ok();
                }
                Event::Restored { token, exit_code } => self.ended(&token, exit_code == 0).await,
                Event::Create { create, answer } => {
                    self.ask(create, answer).await;
                    self.answer(None).await;
                }
                _ => {}
            }
        }
        for lane in 0..self.lanes.len() {
            self.lanes[lane].relay = None;
            self.lanes[lane].restore_limits();
            self.look_for_mark(lane).await;
        }
        if self.pod().resumed {
            // Given up just after it was let go: it runs, and that is what is reported.
            return;
        }
        // Of a pod whose other containers will never come, none may stay.
        for lane in 0..self.lanes.len() {
            let Lane { restore: Some(restore), local, .. } = &self.lanes[lane] else { continue };
            if local.resumed
                && let Err(error) = end_container(&self.context, &restore.container_id).await
            {
                warn!(migration = self.key.name, error, "a container of a pod that was given up can't be ended");
            }
        }
        self.remove_everything().await;
        self.local.destroyed = true;
        self.reach(TargetStep::Destroyed);
    }

    /// The restore of this token has ended while it was being called off.
    async fn ended(&mut self, token: &str, success: bool) {
        if let Some(lane) = self.lane_of_token(token) {
            self.lanes[lane].running = false;
            if success {
                self.resumed(lane).await;
            }
        }
    }

    /// Whether the restore of a container that was begun last has ended well, unheard: runc knows the container's first process, which
    /// is there, and nothing of the restore is that could still say how it ended. Of one that has failed runc knows it as well, until the
    /// shim has had it removed.
    pub(super) async fn runs_already(&self, lane: usize) -> bool {
        let Lane { restore: Some(restore), local, .. } = &self.lanes[lane] else { return false };
        if local.resumed || is_there(vec![restore.token.clone()]).await {
            return false;
        }
        let (context, id) = (self.context.clone(), restore.container_id.clone());
        tokio::task::spawn_blocking(move || find(&context.node, &id).is_ok()).await.unwrap_or(false)
    }

    /// Whether any process of the restores that were begun last, or of the rehearsal, exists, whoever it talks to.
    async fn restore_is_there(&self) -> bool {
        let restores = self.lanes.iter().filter_map(|lane| lane.restore.as_ref());
        let tokens = restores.map(|restore| restore.token.as_str()).chain(self.rehearsal.tokens());
        is_there(tokens.map(str::to_owned).collect()).await
    }

    /// The processes run: images are of no further use, once all of their memory is there.
    pub(super) async fn clean(&mut self) {
        for lane in 0..self.lanes.len() {
            self.filled(lane).await;
        }
        self.remove_everything().await;
        self.local.listening = false;
        self.lanes.iter_mut().for_each(|lane| lane.source = None);
    }

    async fn remove_everything(&mut self) {
        self.limits_restored().await;
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

/// Whether any process of the restores with these tokens exists.
async fn is_there(tokens: Vec<String>) -> bool {
    tokio::task::spawn_blocking(move || tokens.iter().any(|token| has_process_of(token))).await.unwrap_or(true)
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
