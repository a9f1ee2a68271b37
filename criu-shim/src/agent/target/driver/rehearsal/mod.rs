//! The rehearsal on its target: an early cut is restored, held before it runs, and destroyed, for all containers of the pod.
//!
//! It is kept apart from the restore that counts: images, tokens and relays are its own, memory and files are what had landed with the
//! cut, and nothing else lands before it is over. It is in no journal entry, and there is
//! no word here that would let its processes run. A relay that comes back to an agent which does not know its token is told to
//! abandon, so a restart of the agent ends a rehearsal too.

mod course;
mod part;

use super::TargetDriver;
use crate::agent::failure::retryable;
use crate::agent::journal::RestoreEntry;
use crate::agent::target::driver::integrity::verify_images;
use crate::agent::target::driver::rehearsal::course::{Consequence, Happening, Stage};
use crate::agent::target::driver::rehearsal::part::{Answer, Part, RehearsalRelay};
use crate::agent::target::driver::restore::{new_token, release_options, with_images};
use crate::agent::target::driver::verdict::criu_failed;
use crate::agent::target::event::Event;
use crate::agent::target::stage::{self, Placed, Trees};
use crate::agent::transfer::message::{IMAGES, REHEARSAL};
use crate::agent::transfer::receive::WORK;
use crate::causes::chain;
use crate::local::{Create, ToShim};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use tideover_crds::{FailureReason, Migration, TargetStep};
use tokio::sync::mpsc;
use tracing::{info, warn};

/// The rehearsal of one attempt.
#[derive(Debug, Default)]
pub(super) struct Rehearsal {
    /// One for each container, in the order in which they are started.
    parts: Vec<Part>,
    /// The attempt has failed or is over: nothing follows from the rehearsal any more.
    off: bool,
}

impl Rehearsal {
    /// Of a pod of which these containers come.
    pub(super) fn of(containers: &[String]) -> Self {
        Self { parts: containers.iter().map(|container| Part::new(container)).collect(), off: false }
    }

    /// Keeps a shim's question.
    pub(super) async fn ask(&mut self, create: Create, answer: mpsc::Sender<ToShim>) {
        match self.parts.iter_mut().find(|part| part.container == create.container_name) {
            Some(part) => part.asked = Some((create, answer)),
            // A shim that is gone has been answered by that.
            None => _ = answer.send(refusal()).await,
        }
    }

    /// The cut of this container has landed.
    pub(super) fn land(&mut self, container: &str) {
        self.parts.iter_mut().filter(|part| part.container == container).for_each(|part| part.landed = true);
    }

    /// Tokens of the restores that were begun for it.
    pub(super) fn tokens(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(Part::token)
    }

    /// Whether a restore was begun that is not known to have ended.
    pub(super) fn is_running(&self) -> bool {
        self.parts.iter().any(Part::is_running)
    }

    /// Whether the event is of one of its restores.
    pub(super) fn concerns(&self, event: &Event) -> bool {
        match event {
            Event::Relay { token, .. }
            | Event::Held { token }
            | Event::Ended { token, .. }
            | Event::Restored { token, .. }
            | Event::RelayLost { token } => self.part_of(token).is_some(),
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
            | Event::Placed { .. } => false,
        }
    }

    /// The part whose restore has this token.
    fn part_of(&self, token: &str) -> Option<usize> {
        self.parts.iter().position(|part| part.token() == Some(token))
    }

    /// Those whose CRIU waits for its request, once none is behind: what lies in the volumes comes with the last.
    fn due(&self) -> Vec<usize> {
        let wait = self.parts.iter().all(|part| part.requests || part.released);
        let due = self.parts.iter().enumerate().filter(|(_, part)| wait && part.requests);
        due.map(|(at, _)| at).collect()
    }

    fn is_over(&self) -> bool {
        self.parts.iter().all(|part| part.stage == Stage::Over)
    }
}

impl TargetDriver {
    /// Answers the shims of the rehearsal pod, once they can be answered.
    pub(super) async fn answer_rehearsal(&mut self) {
        for at in 0..self.rehearsal.parts.len() {
            self.answer_part(at).await;
        }
    }

    async fn answer_part(&mut self, at: usize) {
        let (off, part) = (self.rehearsal.off, &self.rehearsal.parts[at]);
        let Some((create, _)) = &part.asked else { return };
        let answer = match part.known_answer(create, off) {
            Some(answer) => answer,
            None if part.landed => match new_token() {
                Ok(token) => {
                    let Create { pod_uid, container_id, bundle, .. } = create.clone();
                    self.registry.add_token(&token, &self.key.uid);
                    self.rehearsal.parts[at].begun(RestoreEntry { token, pod_uid, container_id, bundle });
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
        let answer = match (answer, self.rehearsal.parts[at].token()) {
            (Answer::Restore, Some(token)) => {
                let (token, directory) = (token.to_owned(), self.rehearsal_directory(at));
                let (images_dir, work_dir) = (directory.join(IMAGES), directory.join(WORK));
                ToShim::Restore {
                    token,
                    images_dir,
                    work_dir,
                    stand_in: at + 1 < self.rehearsal.parts.len(),
                    ahead: None,
                }
            }
            _ => refusal(),
        };
        if let Some((_, shim)) = self.rehearsal.parts[at].asked.take() {
            // A shim that is gone asks again.
            shim.send(answer).await.ok();
        }
    }

    /// Takes one thing that one of its restores did.
    pub(super) async fn rehearse(&mut self, event: Event, migration: Option<&Migration>) {
        let (token, happening, heard) = match event {
            Event::Relay { token, stage, line, .. } => {
                let Some(at) = self.rehearsal.part_of(&token) else { return };
                self.rehearsal.parts[at].relay = Some(RehearsalRelay::new(line));
                (token, Happening::Relay(stage), None)
            }
            Event::Held { token } => (token, Happening::Held, None),
            Event::Ended { token, success, message, heard } => {
                (token, Happening::Ended((!success).then_some(message)), Some(heard))
            }
            Event::Restored { token, exit_code } => {
                let why = (exit_code != 0).then(|| format!("runc restore ended with {exit_code}"));
                (token, Happening::Ended(why), None)
            }
            Event::RelayLost { token } => {
                if let Some(at) = self.rehearsal.part_of(&token) {
                    (self.rehearsal.parts[at].relay, self.rehearsal.parts[at].requests) = (None, false);
                }
                return;
            }
            _ => return,
        };
        let Some(at) = self.rehearsal.part_of(&token) else { return };
        let (stage, consequence) = self.rehearsal.parts[at].stage.step(happening);
        let ends = stage == Stage::Over && self.rehearsal.parts[at].stage != Stage::Over;
        self.rehearsal.parts[at].stage = stage;
        if self.rehearsal.off && !ends {
            self.rehearsal.parts[at].abandon().await;
        } else {
            self.follow_rehearsal(at, consequence, migration).await;
        }
        if let Some(heard) = heard {
            // A relay that is gone has been heard before.
            heard.send(()).ok();
        }
    }

    async fn follow_rehearsal(&mut self, at: usize, consequence: Consequence, migration: Option<&Migration>) {
        match consequence {
            Consequence::Nothing => {}
            Consequence::Abandon => self.rehearsal.parts[at].abandon().await,
            Consequence::Release => {
                self.rehearsal.parts[at].requests = true;
                self.release_rehearsal(migration).await;
            }
            Consequence::Rehearsed => {
                self.remove_part(at).await;
                if !self.rehearsal.off && self.rehearsal.is_over() {
                    self.reach(TargetStep::Rehearsed);
                }
            }
            Consequence::Failed(why) => {
                let message = self.of_lane(at, criu_failed(&self.rehearsal_directory(at).join(WORK), &why));
                self.remove_part(at).await;
                self.fail(retryable(FailureReason::RestoreFailed, format!("in the rehearsal, {message}"))).await;
            }
        }
    }

    /// Puts files in place for all CRIUs that are due, and lets them have their requests.
    async fn release_rehearsal(&mut self, migration: Option<&Migration>) {
        let Some(migration) = migration else { return };
        let mut due = Vec::new();
        for at in self.rehearsal.due() {
            let Some(restore) = self.rehearsal.parts[at].restore.clone() else { continue };
            due.push((at, restore, self.lane_directory(at), release_options(migration)));
        }
        // What is in the volumes is in use from the first release on.
        let used = self.rehearsal.parts.iter().any(|part| part.released);
        let trees = if used { Trees::LayerOnly } else { Trees::All };
        let context = self.context.clone();
        let placed = tokio::task::spawn_blocking(move || {
            let place = |(at, restore, files, options): (usize, RestoreEntry, PathBuf, _)| {
                let directory = files.join(REHEARSAL);
                verify_images(&directory)?;
                let (mut placed, gone) = (Placed::default(), AtomicBool::new(false));
                stage::place_files(&context, &files, &restore, trees, &mut placed, &gone)?;
                Ok((at, with_images(options, &directory)?))
            };
            due.into_iter().map(place).collect::<Result<Vec<_>, _>>()
        });
        match placed.await.unwrap_or_else(|error| Err(retryable(FailureReason::RestoreFailed, chain(&error)))) {
            Ok(ready) => {
                for (at, options) in ready {
                    self.rehearsal.parts[at].release(options).await;
                }
            }
            Err(failure) => self.fail(failure).await,
        }
    }

    /// Ends a rehearsal that is under way, or yet to come, without a result. It has ended when it does not run any more.
    pub(super) async fn call_rehearsal_off(&mut self) {
        self.rehearsal.off = true;
        for part in &mut self.rehearsal.parts {
            part.abandon().await;
            if let Some((_, shim)) = part.asked.take() {
                shim.send(refusal()).await.ok();
            }
        }
    }

    async fn remove_part(&mut self, at: usize) {
        let part = &mut self.rehearsal.parts[at];
        part.relay = None;
        info!(
            migration = self.key.name,
            attempt = self.local.attempt,
            container = part.container,
            "the rehearsal has ended"
        );
        let directory = self.rehearsal_directory(at);
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(directory)).await;
        if let Err(error) = removed.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            warn!(migration = self.key.name, %error, "images of the rehearsal are left until the attempt is over");
        }
    }

    fn rehearsal_directory(&self, at: usize) -> PathBuf {
        self.lane_directory(at).join(REHEARSAL)
    }
}

fn refusal() -> ToShim {
    ToShim::Refuse { reason: "the rehearsal is over".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restore(token: &str) -> RestoreEntry {
        RestoreEntry {
            token: token.into(),
            pod_uid: "u".into(),
            container_id: token.to_uppercase(),
            bundle: "/b".into(),
        }
    }

    fn rehearsal() -> Rehearsal {
        let mut rehearsal = Rehearsal::of(&["one".into(), "two".into()]);
        for (part, token) in rehearsal.parts.iter_mut().zip(["a", "b"]) {
            part.begun(restore(token));
        }
        rehearsal
    }

    #[test]
    fn no_criu_is_due_before_all_of_them_wait() {
        let mut rehearsal = rehearsal();
        assert_eq!(rehearsal.due(), [0; 0]);
        rehearsal.parts[0].requests = true;
        assert_eq!(rehearsal.due(), [0; 0], "the volumes come with the other one");
        rehearsal.parts[1].requests = true;
        assert_eq!(rehearsal.due(), [0, 1]);
    }

    #[tokio::test]
    async fn one_whose_relay_comes_back_is_due_again_and_the_others_are_not() {
        let mut rehearsal = rehearsal();
        for part in &mut rehearsal.parts {
            part.requests = true;
            part.release(crate::local::ReleaseOptions::default()).await;
        }
        assert_eq!(rehearsal.due(), [0; 0]);
        rehearsal.parts[0].requests = true;
        assert_eq!(rehearsal.due(), [0]);
    }

    #[test]
    fn it_is_over_when_each_of_them_is() {
        let mut rehearsal = rehearsal();
        assert_eq!(rehearsal.tokens().collect::<Vec<_>>(), ["a", "b"]);
        rehearsal.parts[0].stage = Stage::Over;
        assert!(!rehearsal.is_over() && rehearsal.is_running());
        rehearsal.parts[1].stage = Stage::Over;
        assert!(rehearsal.is_over() && !rehearsal.is_running());
    }
}
