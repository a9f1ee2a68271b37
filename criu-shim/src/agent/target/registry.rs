//! Which task an event belongs to, and what the watch has shown last.

use crate::agent::target::event::Event;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tideover_crds::Migration;
use tokio::sync::mpsc;

/// Shared by the watch, which fills it, and the two servers, which look things up.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    targets: HashMap<String, mpsc::Sender<Event>>,
    tokens: HashMap<String, String>,
    migrations: HashMap<String, Arc<Migration>>,
    synced: bool,
}

impl Registry {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here panics while it holds the lock.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The target task of the Migration `uid` takes events here.
    pub fn add_target(&self, uid: &str, events: mpsc::Sender<Event>) {
        self.inner().targets.insert(uid.to_owned(), events);
    }

    /// The task of `uid` has ended.
    pub fn remove(&self, uid: &str) {
        let mut inner = self.inner();
        inner.targets.remove(uid);
        inner.tokens.retain(|_, owner| owner != uid);
    }

    /// A relay that names `token` belongs to `uid`.
    pub fn add_token(&self, token: &str, uid: &str) {
        self.inner().tokens.insert(token.to_owned(), uid.to_owned());
    }

    /// Where events of the Migration `uid` go.
    pub fn target(&self, uid: &str) -> Option<mpsc::Sender<Event>> {
        self.inner().targets.get(uid).cloned()
    }

    /// Where events of the restore `token` go.
    pub fn target_of_token(&self, token: &str) -> Option<mpsc::Sender<Event>> {
        let inner = self.inner();
        inner.targets.get(inner.tokens.get(token)?).cloned()
    }

    /// The watch has shown `migration`.
    pub fn show(&self, uid: &str, migration: Arc<Migration>) {
        self.inner().migrations.insert(uid.to_owned(), migration);
    }

    /// The Migration `uid` is gone.
    pub fn forget(&self, uid: &str) {
        self.inner().migrations.remove(uid);
    }

    /// The watch has shown everything there is.
    pub fn set_synced(&self) {
        self.inner().synced = true;
    }

    /// Whether it has.
    pub fn is_synced(&self) -> bool {
        self.inner().synced
    }

    /// Whether a Migration that is not over has to do with the pod `uid`.
    pub fn is_moving(&self, pod_uid: &str) -> bool {
        let open =
            |migration: &Arc<Migration>| !migration.status.as_ref().is_some_and(|status| status.phase.is_terminal());
        self.concerning(pod_uid).iter().any(open)
    }

    /// The Migrations that have to do with the pod `uid`: its source is it, or its replacement.
    pub fn concerning(&self, pod_uid: &str) -> Vec<Arc<Migration>> {
        let concerns = |migration: &&Arc<Migration>| {
            migration.status.as_ref().is_some_and(|status| {
                [&status.source_pod, &status.replacement].into_iter().flatten().any(|pod| pod.uid == pod_uid)
            })
        };
        self.inner().migrations.values().filter(concerns).cloned().collect()
    }
}
