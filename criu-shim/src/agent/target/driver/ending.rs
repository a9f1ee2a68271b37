//! The end of an attempt on its target: given up, called off, or done.

use super::TargetDriver;
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
        self.placing.call_off();
        self.tell_relay(ToRelay::Abandon).await;
        self.call_rehearsal_off().await;
    }

    /// The attempt was aborted, or its state given up: nothing of it stays here. CRIU ends by its own protocol.
    pub(super) async fn destroy(&mut self, attempt: u32) {
        self.local.attempt = attempt;
        self.local.failed = true;
        self.landing = None;
        // First of all: a source that still sends into an attempt that is over stays frozen as long as it is listened to.
        self.hang_up().await;
        // What is still put in place would keep the container's files from being taken down.
        self.stop_placing().await;
        let deadline = tokio::time::Instant::now() + CALL_OFF_LIMIT;
        self.tell_relay(ToRelay::Abandon).await;
        self.answer(None).await;
        self.call_rehearsal_off().await;
        while self.running || self.rehearsal.is_running() {
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
                    self.rehearsal.ask(create, answer);
                    self.answer_rehearsal().await;
                }
                Event::Relay { line, .. } => {
                    line.send(ToRelay::Abandon).await.ok();
                    self.relay = Some(line);
                }
                Event::Held { .. } => self.tell_relay(ToRelay::Abandon).await,
                Event::Ended { token, success, heard, .. } => {
                    self.ended(&token, success).await;
                    heard.send(()).ok();
                }
                Event::Restored { token, exit_code } => self.ended(&token, exit_code == 0).await,
                Event::Create { create, answer } => {
                    self.asked = Some((create, answer));
                    self.answer(None).await;
                }
                _ => {}
            }
        }
        self.relay = None;
        self.restore_limits();
        self.look_for_mark().await;
        if self.local.resumed {
            // Given up just after it was let go: it runs, and that is what is reported.
            return;
        }
        self.remove_everything().await;
        self.local.destroyed = true;
        self.reach(TargetStep::Destroyed);
    }

    /// The restore of this token has ended while it was being called off.
    async fn ended(&mut self, token: &str, success: bool) {
        if self.is_current(token) {
            self.running = false;
            if success {
                self.resumed().await;
            }
        }
    }

    /// Whether the restore that was begun last has ended well, unheard: runc knows the container's first process only once
    /// CRIU was let go on, and nothing of the restore is there any more that could still say how it ended.
    pub(super) async fn runs_already(&self) -> bool {
        let Some(restore) = &self.restore else { return false };
        if self.local.resumed || self.restore_is_there().await {
            return false;
        }
        let (context, id) = (self.context.clone(), restore.container_id.clone());
        tokio::task::spawn_blocking(move || find(&context.node, &id).is_ok()).await.unwrap_or(false)
    }

    /// Whether any process of the restore that was begun last, or of the rehearsal, exists, whoever it talks to.
    async fn restore_is_there(&self) -> bool {
        let restore = self.restore.as_ref().map(|restore| restore.token.clone());
        let tokens: Vec<String> = restore.into_iter().chain(self.rehearsal.token().map(str::to_owned)).collect();
        tokio::task::spawn_blocking(move || tokens.iter().any(|token| has_process_of(token))).await.unwrap_or(true)
    }

    /// The processes run: images are of no further use, once all of their memory is there.
    pub(super) async fn clean(&mut self) {
        self.filled().await;
        self.remove_everything().await;
        self.local.listening = false;
        self.source = None;
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

/// Whether a process has the token of a restore in its environment: runc, the relay and CRIU have. The processes
/// that are restored have their own.
fn has_process_of(token: &str) -> bool {
    let variable = format!("{TOKEN_ENV}={token}");
    let processes = std::path::Path::new("/proc").read_dir().into_iter().flatten().flatten();
    processes
        .filter_map(|process| std::fs::read(process.path().join("environ")).ok())
        .any(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes()))
}
