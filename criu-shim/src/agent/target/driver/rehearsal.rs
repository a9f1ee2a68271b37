//! The rehearsal on its target: an early cut is restored, held before it runs, and destroyed.
//!
//! It is kept apart from the restore that counts: images, token and relay are its own, memory and files are what had landed with the
//! cut, and nothing else lands before it is over. It is in no journal entry, and there is
//! no word here that would let its processes run. A relay that comes back to an agent which does not know its token is told to
//! abandon, so a restart of the agent ends a rehearsal too.

use super::{TargetDriver, WORD_LIMIT};
use crate::agent::failure::retryable;
use crate::agent::journal::RestoreEntry;
use crate::agent::target::driver::integrity::verify_images;
use crate::agent::target::driver::restore::{new_token, release_options, with_images};
use crate::agent::target::driver::verdict::criu_failed;
use crate::agent::target::event::Event;
use crate::agent::target::stage::{self, Placed, Trees};
use crate::agent::transfer::message::{IMAGES, REHEARSAL};
use crate::agent::transfer::receive::WORK;
use crate::causes::chain;
use crate::local::{Create, RelayStage, ReleaseOptions, ToRelay, ToShim};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use tideover_crds::{FailureReason, Migration, TargetStep};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// The rehearsal of one attempt.
#[derive(Debug, Default)]
pub(super) struct Rehearsal {
    stage: Stage,
    /// The cut is here.
    landed: bool,
    /// A shim's question that is not answered yet.
    asked: Option<(Create, mpsc::Sender<ToShim>)>,
    /// The restore that a shim was told to begin.
    restore: Option<RestoreEntry>,
    relay: Option<RehearsalRelay>,
    /// The attempt has failed or is over: nothing follows from the rehearsal any more.
    off: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The cut, or its container, is waited for.
    #[default]
    Awaited,
    /// `runc restore` was begun, and CRIU has not rebuilt everything yet.
    Restoring,
    /// CRIU has rebuilt everything, and was told to destroy it.
    Shown,
    /// Nothing of it is left.
    Over,
}

/// What the restore of a rehearsal does.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Happening {
    /// The relay is there, in this stage.
    Relay(RelayStage),
    /// The processes are rebuilt.
    Held,
    /// It has ended: `None` where the processes run, else why they don't.
    Ended(Option<String>),
}

/// What follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Consequence {
    Nothing,
    /// Put the files in place and let CRIU have its request.
    Release,
    /// Tell the relay to make CRIU destroy what it has.
    Abandon,
    /// It was shown that the state can be restored here.
    Rehearsed,
    /// It can't, and why.
    Failed(String),
}

impl Stage {
    fn step(self, happening: Happening) -> (Self, Consequence) {
        match (self, happening) {
            (Self::Restoring, Happening::Relay(RelayStage::Requested)) => (self, Consequence::Release),
            (Self::Restoring | Self::Shown, Happening::Held | Happening::Relay(RelayStage::Held)) => {
                (Self::Shown, Consequence::Abandon)
            }
            (Self::Restoring, Happening::Relay(_)) => (self, Consequence::Nothing),
            (_, Happening::Held | Happening::Relay(_)) => (self, Consequence::Abandon),
            (Self::Shown, Happening::Ended(Some(_))) => (Self::Over, Consequence::Rehearsed),
            (Self::Restoring, Happening::Ended(Some(why))) => (Self::Over, Consequence::Failed(why)),
            // Nobody has said the word for that.
            (Self::Restoring | Self::Shown, Happening::Ended(None)) => {
                (Self::Over, Consequence::Failed("the processes were not held".to_owned()))
            }
            (Self::Awaited | Self::Over, Happening::Ended(_)) => (self, Consequence::Nothing),
        }
    }
}

/// The line to a rehearsal's relay. It has no word for "let them run".
#[derive(Debug)]
struct RehearsalRelay(mpsc::Sender<ToRelay>);

impl RehearsalRelay {
    async fn release(&self, options: ReleaseOptions) {
        self.say(ToRelay::Release { options }).await;
    }

    async fn abandon(&self) {
        self.say(ToRelay::Abandon).await;
    }

    async fn say(&self, word: ToRelay) {
        // A relay that is gone comes back and says where it stands.
        tokio::time::timeout(WORD_LIMIT, self.0.send(word)).await.ok();
    }
}

impl Rehearsal {
    /// Keeps a shim's question.
    pub(super) fn ask(&mut self, create: Create, answer: mpsc::Sender<ToShim>) {
        self.asked = Some((create, answer));
    }

    /// The cut has landed.
    pub(super) fn land(&mut self) {
        self.landed = true;
    }

    /// Token of the restore that was begun for it.
    pub(super) fn token(&self) -> Option<&str> {
        self.restore.as_ref().map(|restore| restore.token.as_str())
    }

    /// Whether a restore was begun that is not known to have ended.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Restoring | Stage::Shown)
    }

    /// Whether the event is of its restore.
    pub(super) fn concerns(&self, event: &Event) -> bool {
        let token = match event {
            Event::Relay { token, .. }
            | Event::Held { token }
            | Event::Ended { token, .. }
            | Event::Restored { token, .. }
            | Event::RelayLost { token } => token,
            Event::Source(_)
            | Event::Again(_)
            | Event::Archive { .. }
            | Event::Round { .. }
            | Event::Create { .. }
            | Event::Rehearse { .. }
            | Event::Synced { .. }
            | Event::Taken { .. }
            | Event::StillTaken { .. }
            | Event::Kept { .. }
            | Event::Overdue { .. }
            | Event::Placed { .. } => return false,
        };
        self.token() == Some(token)
    }

    /// What the shim that asks for `create` is to be told, if that is known without beginning anything.
    fn known_answer(&self, create: &Create) -> Option<Answer> {
        let begun = self.restore.as_ref().map(|restore| restore.container_id.as_str());
        if self.off || self.stage == Stage::Over || begun.is_some_and(|id| id != create.container_id) {
            Some(Answer::Refuse)
        } else if begun.is_some() {
            Some(Answer::Restore)
        } else {
            None
        }
    }
}

/// What a shim is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Refuse,
    Restore,
}

impl TargetDriver {
    /// Answers the shim of the rehearsal pod, once it can be answered.
    pub(super) async fn answer_rehearsal(&mut self) {
        let Some((create, _)) = &self.rehearsal.asked else { return };
        let answer = match self.rehearsal.known_answer(create) {
            Some(answer) => answer,
            None if self.rehearsal.landed => match new_token() {
                Ok(token) => {
                    let Create { pod_uid, container_id, bundle, .. } = create.clone();
                    self.registry.add_token(&token, &self.key.uid);
                    self.rehearsal.restore = Some(RestoreEntry { token, pod_uid, container_id, bundle });
                    self.rehearsal.stage = Stage::Restoring;
                    Answer::Restore
                }
                Err(error) => {
                    let message = format!("make a token for the rehearsal: {error}");
                    self.fail(retryable(FailureReason::RestoreFailed, message)).await;
                    Answer::Refuse
                }
            },
            None => return,
        };
        let answer = match (answer, self.rehearsal.token()) {
            (Answer::Restore, Some(token)) => {
                let (token, directory) = (token.to_owned(), self.rehearsal_directory());
                let (images_dir, work_dir) = (directory.join(IMAGES), directory.join(WORK));
                ToShim::Restore { token, images_dir, work_dir, stand_in: false }
            }
            _ => refusal(),
        };
        if let Some((_, shim)) = self.rehearsal.asked.take() {
            // A shim that is gone asks again.
            shim.send(answer).await.ok();
        }
    }

    /// Takes one thing that its restore did.
    pub(super) async fn rehearse(&mut self, event: Event, migration: Option<&Migration>) {
        let (happening, heard) = match event {
            Event::Relay { stage, line, .. } => {
                self.rehearsal.relay = Some(RehearsalRelay(line));
                (Happening::Relay(stage), None)
            }
            Event::Held { .. } => (Happening::Held, None),
            Event::Ended { success, message, heard, .. } => {
                (Happening::Ended((!success).then_some(message)), Some(heard))
            }
            Event::Restored { exit_code, .. } => {
                let why = (exit_code != 0).then(|| format!("runc restore ended with {exit_code}"));
                (Happening::Ended(why), None)
            }
            _ => {
                self.rehearsal.relay = None;
                return;
            }
        };
        let (stage, consequence) = self.rehearsal.stage.step(happening);
        let ends = stage == Stage::Over && self.rehearsal.stage != Stage::Over;
        self.rehearsal.stage = stage;
        if self.rehearsal.off && !ends {
            self.abandon_rehearsal().await;
        } else {
            self.follow_rehearsal(consequence, migration).await;
        }
        if let Some(heard) = heard {
            // A relay that is gone has been heard before.
            heard.send(()).ok();
        }
    }

    async fn follow_rehearsal(&mut self, consequence: Consequence, migration: Option<&Migration>) {
        match consequence {
            Consequence::Nothing => {}
            Consequence::Abandon => self.abandon_rehearsal().await,
            Consequence::Release => self.release_rehearsal(migration).await,
            Consequence::Rehearsed => {
                self.remove_rehearsal().await;
                if !self.rehearsal.off {
                    self.reach(TargetStep::Rehearsed);
                }
            }
            Consequence::Failed(why) => {
                let message = criu_failed(&self.rehearsal_directory().join(WORK), &why);
                self.remove_rehearsal().await;
                self.fail(retryable(FailureReason::RestoreFailed, format!("in the rehearsal, {message}"))).await;
            }
        }
    }

    async fn release_rehearsal(&mut self, migration: Option<&Migration>) {
        let (Some(restore), Some(migration)) = (self.rehearsal.restore.clone(), migration) else { return };
        let (context, directory, files) =
            (self.context.clone(), self.rehearsal_directory(), self.rehearsed_directory());
        let options = release_options(migration);
        let placed = tokio::task::spawn_blocking(move || {
            verify_images(&directory)?;
            let (mut placed, gone) = (Placed::default(), AtomicBool::new(false));
            stage::place_files(&context, &files, &restore, Trees::All, &mut placed, &gone)?;
            with_images(options, &directory)
        });
        match placed.await.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error)))) {
            Ok(options) => {
                if let Some(relay) = &self.rehearsal.relay {
                    relay.release(options).await;
                }
            }
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Ends a rehearsal that is under way, or yet to come, without a result. It has ended when it does not run any more.
    pub(super) async fn call_rehearsal_off(&mut self) {
        self.rehearsal.off = true;
        self.abandon_rehearsal().await;
        if let Some((_, shim)) = self.rehearsal.asked.take() {
            shim.send(refusal()).await.ok();
        }
    }

    async fn abandon_rehearsal(&self) {
        if let Some(relay) = &self.rehearsal.relay {
            relay.abandon().await;
        }
    }

    async fn remove_rehearsal(&mut self) {
        self.rehearsal.relay = None;
        info!(migration = self.key.name, attempt = self.local.attempt, "the rehearsal has ended");
        let directory = self.rehearsal_directory();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            warn!(migration = self.key.name, %error, "images of the rehearsal are left until the attempt is over");
        }
    }

    fn rehearsal_directory(&self) -> PathBuf {
        self.rehearsed_directory().join(REHEARSAL)
    }

    /// Of the container that is rehearsed.
    fn rehearsed_directory(&self) -> PathBuf {
        // Only a pod of one container is.
        let container = self.lanes.first().map(|lane| lane.container.as_str()).unwrap_or_default();
        self.directory().join(container)
    }
}

fn refusal() -> ToShim {
    ToShim::Refuse { reason: "the rehearsal is over".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::ContainerType;
    use proptest::prelude::*;

    fn run(happenings: &[Happening]) -> (Stage, Vec<Consequence>) {
        happenings.iter().fold((Stage::Restoring, Vec::new()), |(stage, mut all), happening| {
            let (stage, consequence) = stage.step(happening.clone());
            all.push(consequence);
            (stage, all)
        })
    }

    fn failed() -> Happening {
        Happening::Ended(Some("why".into()))
    }

    #[test]
    fn what_was_held_and_destroyed_was_rehearsed() {
        let (stage, all) = run(&[Happening::Relay(RelayStage::Requested), Happening::Held, failed()]);
        assert_eq!(all, [Consequence::Release, Consequence::Abandon, Consequence::Rehearsed]);
        assert_eq!(stage, Stage::Over);
    }

    #[test]
    fn what_ended_before_it_was_held_has_failed() {
        let (_, all) = run(&[Happening::Relay(RelayStage::Requested), failed()]);
        assert_eq!(all[1], Consequence::Failed("why".into()));
    }

    #[test]
    fn a_relay_that_comes_back_is_told_what_its_stage_asks_for() {
        let (_, all) = run(&[Happening::Relay(RelayStage::Restoring), Happening::Relay(RelayStage::Held), failed()]);
        assert_eq!(all, [Consequence::Nothing, Consequence::Abandon, Consequence::Rehearsed]);
        let (_, all) =
            run(&[Happening::Held, Happening::Relay(RelayStage::Held), Happening::Relay(RelayStage::Finishing)]);
        assert_eq!(all, [Consequence::Abandon, Consequence::Abandon, Consequence::Abandon]);
    }

    fn happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            prop::sample::select(vec![
                RelayStage::Requested,
                RelayStage::Restoring,
                RelayStage::Held,
                RelayStage::Finishing,
            ])
            .prop_map(Happening::Relay),
            Just(Happening::Held),
            Just(failed()),
            Just(Happening::Ended(None)),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: once, at most, it is said to have been rehearsed, and only after it was held and
        /// destroyed; what was held is never released.
        #[test]
        fn rehearsed_means_held_and_destroyed(happenings in prop::collection::vec(happening(), 0..12)) {
            let (mut stage, mut held, mut results) = (Stage::Restoring, false, 0);
            for happening in happenings {
                let ran = happening == Happening::Ended(None);
                let holds = matches!(happening, Happening::Held | Happening::Relay(RelayStage::Held));
                let (next, consequence) = stage.step(happening);
                held |= holds && stage != Stage::Over;
                match consequence {
                    Consequence::Rehearsed => {
                        prop_assert!(held && !ran);
                        results += 1;
                    }
                    Consequence::Failed(_) => results += 1,
                    Consequence::Release => prop_assert!(!held && stage == Stage::Restoring),
                    Consequence::Abandon | Consequence::Nothing => prop_assert!(!holds || consequence == Consequence::Abandon),
                }
                stage = next;
            }
            prop_assert!(results <= 1);
        }
    }

    #[tokio::test]
    async fn its_relay_is_never_told_to_resume() {
        let (words, mut heard) = mpsc::channel(4);
        let relay = RehearsalRelay(words);
        relay.release(ReleaseOptions::default()).await;
        relay.abandon().await;
        drop(relay);
        assert!(matches!(heard.recv().await, Some(ToRelay::Release { .. })));
        assert_eq!(heard.recv().await, Some(ToRelay::Abandon));
        assert_eq!(heard.recv().await, None);
    }

    #[test]
    fn only_one_container_is_restored_and_none_when_it_is_over() {
        let create = |id: &str| Create {
            container_id: id.into(),
            bundle: "/b".into(),
            pod_namespace: "n".into(),
            pod_name: "p".into(),
            pod_uid: "u".into(),
            container_name: "app".into(),
            container_type: ContainerType::Container,
            replacement_of: None,
            rehearsal_of: Some("m".into()),
        };
        let mut rehearsal = Rehearsal::default();
        assert_eq!(rehearsal.known_answer(&create("one")), None);
        rehearsal.restore = Some(RestoreEntry {
            token: "t".into(),
            pod_uid: "u".into(),
            container_id: "one".into(),
            bundle: "/b".into(),
        });
        rehearsal.stage = Stage::Restoring;
        assert_eq!(rehearsal.known_answer(&create("one")), Some(Answer::Restore));
        assert_eq!(rehearsal.known_answer(&create("two")), Some(Answer::Refuse));
        rehearsal.stage = Stage::Over;
        assert_eq!(rehearsal.known_answer(&create("one")), Some(Answer::Refuse));
        let off = Rehearsal { off: true, landed: true, ..Rehearsal::default() };
        assert_eq!(off.known_answer(&create("one")), Some(Answer::Refuse));
    }
}
