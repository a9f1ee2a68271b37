//! One restore of a checkpoint, from the answer to the shim until all of its memory has come.
//!
//! What it begins from is a copy that only it uses. Whatever ends it before the processes run poisons the checkpoint, also the end
//! of this agent: the next one finds it unfinished, and a relay that it does not know is told to abandon.

use super::about::About;
use super::shelf::ShelfError;
use super::stage::{Consequence, Happening, Stage};
use super::take::millis;
use super::tell::{News, Outcome, tell};
use super::{Subject, ledger::Ledger};
use crate::agent::context::Context;
use crate::agent::failure::retryable;
use crate::agent::journal::RestoreEntry;
use crate::agent::target::driver::{
    WORD_LIMIT, criu_failed, filled, is_served, new_token, options_within, with_images,
};
use crate::agent::target::event::Event;
use crate::agent::target::registry::Registry;
use crate::agent::target::stage::{self as files, Placed, Trees};
use crate::agent::transfer::message::IMAGES;
use crate::agent::transfer::receive::WORK;
use crate::causes::chain;
use crate::criu::DumpOptions;
use crate::local::{Create, SILENCE, ToRelay, ToShim, has_ran_mark};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};
use tideover_crds::{Failure, FailureReason};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

/// Events that wait for the task of a restore.
const BACKLOG: usize = 16;
/// How long nothing may happen: longer than kubelet's two minutes for a `create`, by which shim and relay have ended.
const QUIET: Duration = Duration::from_secs(SILENCE.as_secs() + 50);

/// By which the registry knows the restore of a container.
pub fn name(container_id: &str) -> String {
    format!("checkpoint/{container_id}")
}

/// What a restore begins with.
#[derive(Clone, Debug)]
pub struct Begun {
    /// Whose it is.
    pub subject: Subject,
    /// From which checkpoint.
    pub about: About,
    /// The copy of it.
    pub directory: PathBuf,
    /// Into which container.
    pub create: Create,
}

/// Begins it: from here on shim and relay are answered.
///
/// # Errors
/// Where there is no randomness for a token.
pub fn begin(context: &Arc<Context>, registry: &Registry, begun: Begun) -> std::io::Result<()> {
    let token = new_token()?;
    let (sender, events) = mpsc::channel(BACKLOG);
    let name = name(&begun.create.container_id);
    registry.add_target(&name, sender);
    registry.add_token(&token, &name);
    let (context, registry) = (context.clone(), registry.clone());
    let task =
        Task { context, begun, token, stage: Stage::default(), relay: None, placed: Placed::default(), why: None };
    tokio::spawn(async move {
        task.run(events).await;
        registry.remove(&name);
    });
    Ok(())
}

struct Task {
    context: Arc<Context>,
    begun: Begun,
    token: String,
    stage: Stage,
    relay: Option<mpsc::Sender<ToRelay>>,
    /// What of the files is in place.
    placed: Placed,
    /// Why it fails, as far as that is known.
    why: Option<String>,
}

impl Task {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        while self.stage != Stage::Over {
            match tokio::time::timeout(QUIET, events.recv()).await {
                Ok(Some(event)) => self.take(event).await,
                // Shim and relay are gone, and what the shim has left says what became of it.
                Ok(None) | Err(_) => {
                    let ran = has_ran_mark(&self.begun.directory.join(WORK));
                    self.why.get_or_insert_with(|| "nothing more was heard of it".to_owned());
                    self.stage = Stage::Over;
                    if ran { self.ran().await } else { self.failed().await }
                }
            }
        }
    }

    async fn take(&mut self, event: Event) {
        let happening = match event {
            Event::Create { answer, .. } => {
                let (token, directory) = (self.token.clone(), &self.begun.directory);
                let (images_dir, work_dir) = (directory.join(IMAGES), directory.join(WORK));
                let restore = ToShim::Restore { token, images_dir, work_dir, stand_in: false, ahead: None };
                // A shim that is gone asks again.
                answer.send(restore).await.ok();
                return;
            }
            Event::Relay { stage, line, .. } => {
                self.relay = Some(line);
                Happening::Relay(stage)
            }
            Event::Held { .. } => Happening::Held,
            Event::Ended { success, message, heard, .. } => {
                if !success {
                    self.why.get_or_insert(message);
                }
                // What counts is what becomes of the container, which the shim says.
                heard.send(()).ok();
                return;
            }
            Event::Restored { exit_code, .. } => Happening::Restored(exit_code),
            Event::RelayLost { .. } => {
                self.relay = None;
                return;
            }
            // They are of a move.
            Event::Source(_)
            | Event::Again(_)
            | Event::Taken { .. }
            | Event::StillTaken { .. }
            | Event::Kept { .. }
            | Event::Overdue { .. }
            | Event::Archive { .. }
            | Event::Round { .. }
            | Event::Rehearse { .. }
            | Event::Synced { .. }
            | Event::Placed { .. } => {
                return;
            }
        };
        self.happen(happening).await;
    }

    async fn happen(&mut self, happening: Happening) {
        let (stage, consequence) = self.stage.step(happening);
        self.stage = stage;
        if let Err(failure) = self.follow(consequence).await {
            self.why.get_or_insert(failure.message);
            let (stage, consequence) = self.stage.step(Happening::Refused);
            self.stage = stage;
            if consequence == Consequence::Abandon {
                self.tell_relay(ToRelay::Abandon).await;
            }
        }
    }

    async fn follow(&mut self, consequence: Consequence) -> Result<(), Failure> {
        match consequence {
            Consequence::Nothing => {}
            Consequence::Abandon => self.tell_relay(ToRelay::Abandon).await,
            Consequence::Release => self.release().await?,
            Consequence::Resume => {
                is_served(&self.begun.directory).await?;
                self.tell_relay(ToRelay::Resume).await;
            }
            Consequence::Ran => self.ran().await,
            Consequence::Failed => self.failed().await,
        }
        Ok(())
    }

    /// Puts the files in place of what the container and its volumes have, and lets CRIU begin.
    async fn release(&mut self) -> Result<(), Failure> {
        let (context, directory) = (self.context.clone(), self.begun.directory.clone());
        let Create { pod_uid, container_id, bundle, .. } = self.begun.create.clone();
        let entry = RestoreEntry { token: self.token.clone(), pod_uid, container_id, bundle };
        let options = options_within(u64::from(DumpOptions::default().ghost_limit));
        let mut placed = std::mem::take(&mut self.placed);
        let placing = tokio::task::spawn_blocking(move || {
            files::place_files(&context, &directory, &entry, Trees::All, &mut placed, &AtomicBool::new(false))?;
            Ok((with_images(options, &directory)?, placed))
        });
        let placing = placing.await;
        let placing = placing.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error))));
        let (options, placed) = placing?;
        self.placed = placed;
        self.tell_relay(ToRelay::Release { options }).await;
        Ok(())
    }

    async fn tell_relay(&self, word: ToRelay) {
        if let Some(relay) = &self.relay {
            // A relay that is gone comes back and says where it stands.
            tokio::time::timeout(WORD_LIMIT, relay.send(word)).await.ok();
        }
    }

    async fn ran(&mut self) {
        self.relay = None;
        let (subject, id) = (self.begun.subject.clone(), self.begun.create.container_id.clone());
        let now = millis(SystemTime::now());
        self.remember(move |ledger| ledger.ran(&id, now)).await;
        self.context.checkpoints.figures.count(&subject, Outcome::Restored);
        tell(&self.context, &subject, &News::Restored(self.begun.about.clone()));
        complete(&self.context, &subject, &self.begun.create.container_id).await;
    }

    async fn remember(&self, change: impl FnOnce(&mut Ledger) + Send + 'static) {
        let (shelf, subject) = (self.context.checkpoints.shelf.clone(), self.begun.subject.clone());
        match tokio::task::spawn_blocking(move || shelf.edit(&subject, change)).await {
            Ok(Ok(())) => {}
            // The shim's mark says it too.
            Ok(Err(error)) => error!(error = %chain(&error), "that a checkpoint was restored can't be written down"),
            Err(error) => error!(%error, "writing that a checkpoint was restored ended early"),
        }
    }

    async fn failed(&mut self) {
        self.relay = None;
        let why = self.why.take().unwrap_or_else(|| "runc's restore failed".to_owned());
        let why = criu_failed(&self.begun.directory.join(WORK), &why);
        warn!(pod = self.begun.subject.pod_name, number = self.begun.about.number, why, "a restore has failed");
        let (shelf, subject) = (self.context.checkpoints.shelf.clone(), self.begun.subject.clone());
        let (now, id) = (millis(SystemTime::now()), self.begun.create.container_id.clone());
        let judged = tokio::task::spawn_blocking(move || {
            let poisoned = shelf.judge(&subject, now, |ledger| ledger.failed(&id, &why))?;
            shelf.clear_restoring(&subject, &id)?;
            Ok(poisoned)
        });
        let judged: Result<Result<_, ShelfError>, _> = judged.await;
        let subject = &self.begun.subject;
        match judged {
            Ok(Ok(None)) => {}
            Ok(Ok(Some((about, why)))) => {
                self.context.checkpoints.figures.count(subject, Outcome::Poisoned);
                tell(&self.context, subject, &News::Poisoned(about, why));
            }
            // Unfinished as it is, the next `create` lays it to the checkpoint.
            Ok(Err(error)) => error!(error = %chain(&error), "that a checkpoint can't be restored is not written down"),
            Err(error) => error!(%error, "judging a checkpoint ended early"),
        }
    }
}

/// Waits until all memory of what was restored has come, and removes what it came from.
async fn complete(context: &Arc<Context>, subject: &Subject, container_id: &str) {
    let shelf = context.checkpoints.shelf.clone();
    let directory = shelf.restoring(subject, container_id);
    // Where memory is lost, the container has been ended, and that is logged and counted.
    filled(context, &directory, container_id, &subject.pod_name).await.ok();
    let (subject, id) = (subject.clone(), container_id.to_owned());
    match tokio::task::spawn_blocking(move || shelf.clear_restoring(&subject, &id)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => warn!(error = %chain(&error), "the copy of a checkpoint is left"),
        Err(error) => warn!(%error, "removing the copy of a checkpoint ended early"),
    }
}

/// Goes on watching over the memory of what was restored under an agent before this one.
pub async fn take_over(context: &Arc<Context>) {
    let shelf = context.checkpoints.shelf.clone();
    let left = tokio::task::spawn_blocking(move || {
        let mut left = Vec::new();
        for ledger in shelf.all()? {
            let subject = &ledger.subject;
            if let Some(unfinished) = ledger.unfinished() {
                let (id, now) = (&unfinished.container_id, millis(SystemTime::now()));
                if has_ran_mark(&shelf.restoring(subject, id).join(WORK)) {
                    shelf.edit(subject, |ledger| ledger.ran(id, now))?;
                }
            }
            let Some(ledger) = shelf.ledger(subject)? else { continue };
            // Of one that is unfinished, the shim's mark may still come.
            shelf.clear_restored(subject, ledger.restoring())?;
            left.extend(
                ledger
                    .restored()
                    .filter(|id| shelf.restoring(subject, id).exists())
                    .map(|id| (subject.clone(), id.to_owned())),
            );
        }
        Ok(left)
    });
    let left: Result<Result<Vec<(Subject, String)>, ShelfError>, _> = left.await;
    let left = match left {
        Ok(Ok(left)) => left,
        Ok(Err(error)) => return error!(error = %chain(&error), "what was being restored can't be listed"),
        Err(error) => return error!(%error, "the look for what was being restored ended early"),
    };
    for (subject, id) in left {
        info!(pod = subject.pod_name, container = id, "its memory may still be coming");
        let context = context.clone();
        tokio::spawn(async move { complete(&context, &subject, &id).await });
    }
}
