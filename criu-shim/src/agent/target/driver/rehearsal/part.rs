//! What one container of the pod has in a rehearsal: its shim's question, its restore, its relay.

use super::course::Stage;
use crate::agent::journal::RestoreEntry;
use crate::agent::target::driver::WORD_LIMIT;
use crate::local::{Create, ReleaseOptions, ToRelay, ToShim};
use tokio::sync::mpsc;

/// One container.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Its name in the pod.
    pub(super) container: String,
    pub(super) stage: Stage,
    /// The cut is here.
    pub(super) landed: bool,
    /// A shim's question that is not answered yet.
    pub(super) asked: Option<(Create, mpsc::Sender<ToShim>)>,
    /// The restore that a shim was told to begin.
    pub(super) restore: Option<RestoreEntry>,
    pub(super) relay: Option<RehearsalRelay>,
    /// CRIU waits for its request.
    pub(super) requests: bool,
    /// It has had it.
    pub(super) released: bool,
}

/// What a shim is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Refuse,
    Restore,
}

impl Part {
    /// Of the container with this name.
    pub(super) fn new(container: &str) -> Self {
        Self { container: container.to_owned(), ..Self::default() }
    }

    /// Token of the restore that was begun for it.
    pub(super) fn token(&self) -> Option<&str> {
        self.restore.as_ref().map(|restore| restore.token.as_str())
    }

    /// Whether a restore was begun that is not known to have ended.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Restoring | Stage::Shown)
    }

    /// A shim is about to be told to begin this restore.
    pub(super) fn begun(&mut self, restore: RestoreEntry) {
        (self.restore, self.stage) = (Some(restore), Stage::Restoring);
    }

    /// What the shim that asks for `create` is to be told, if that is known without beginning anything. `off`: nothing follows from the
    /// rehearsal any more.
    pub(super) fn known_answer(&self, create: &Create, off: bool) -> Option<Answer> {
        let begun = self.restore.as_ref().map(|restore| restore.container_id.as_str());
        if off || self.stage == Stage::Over || begun.is_some_and(|id| id != create.container_id) {
            Some(Answer::Refuse)
        } else if begun.is_some() {
            Some(Answer::Restore)
        } else {
            None
        }
    }

    /// Lets CRIU use the images.
    pub(super) async fn release(&mut self, options: ReleaseOptions) {
        (self.requests, self.released) = (false, true);
        if let Some(relay) = &self.relay {
            relay.say(ToRelay::Release { options }).await;
        }
    }

    /// Has CRIU destroy what it has made.
    pub(super) async fn abandon(&mut self) {
        if let Some(relay) = &self.relay {
            relay.say(ToRelay::Abandon).await;
        }
    }
}

/// The line to a rehearsal's relay. Nothing here has the word that lets processes run.
#[derive(Debug)]
pub(super) struct RehearsalRelay(mpsc::Sender<ToRelay>);

impl RehearsalRelay {
    pub(super) fn new(line: mpsc::Sender<ToRelay>) -> Self {
        Self(line)
    }

    async fn say(&self, word: ToRelay) {
        // A relay that is gone comes back and says where it stands.
        tokio::time::timeout(WORD_LIMIT, self.0.send(word)).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::ContainerType;

    #[tokio::test]
    async fn its_relay_is_never_told_to_resume() {
        let (words, mut heard) = mpsc::channel(4);
        let mut part = Part { relay: Some(RehearsalRelay::new(words)), requests: true, ..Part::new("one") };
        part.release(ReleaseOptions::default()).await;
        assert!(part.released && !part.requests);
        part.abandon().await;
        drop(part);
        assert!(matches!(heard.recv().await, Some(ToRelay::Release { .. })));
        assert_eq!(heard.recv().await, Some(ToRelay::Abandon));
        assert_eq!(heard.recv().await, None);
    }

    #[test]
    fn a_container_is_restored_once_and_not_when_it_is_over() {
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
        let mut part = Part::new("app");
        assert_eq!(part.known_answer(&create("one"), false), None);
        part.begun(RestoreEntry {
            token: "t".into(),
            pod_uid: "u".into(),
            container_id: "one".into(),
            bundle: "/b".into(),
        });
        assert_eq!((part.token(), part.is_running()), (Some("t"), true));
        assert_eq!(part.known_answer(&create("one"), false), Some(Answer::Restore));
        assert_eq!(part.known_answer(&create("two"), false), Some(Answer::Refuse));
        part.stage = Stage::Over;
        assert_eq!(part.known_answer(&create("one"), false), Some(Answer::Refuse));
        assert_eq!(Part::new("app").known_answer(&create("one"), true), Some(Answer::Refuse));
    }
}
