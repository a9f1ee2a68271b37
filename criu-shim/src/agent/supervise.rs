//! The watch of Migrations, and one task for each that has to do with this node.

use crate::agent::context::{Context, Key};
use crate::agent::duty::{
    Role, SourceAt, SourceDuty, SourceLocal, TargetDuty, TargetLocal, role, source_duty, target_duty,
};
use crate::agent::journal::{Entry, Side, TargetEntry};
use crate::agent::source::driver::{Left, SourceDriver};
use crate::agent::target::driver::TargetDriver;
use crate::agent::target::registry::Registry;
use crate::causes::chain;
use futures::StreamExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tideover_crds::Migration;
use tokio::sync::watch;
use tracing::{info, warn};

/// Starts and feeds the tasks.
#[derive(Debug)]
pub struct Supervisor {
    context: Arc<Context>,
    registry: Registry,
    tasks: HashMap<String, Task>,
}

#[derive(Debug)]
struct Task {
    news: watch::Sender<Option<Arc<Migration>>>,
    ended: tokio::task::JoinHandle<()>,
}

impl Supervisor {
    /// With one task for each entry of the journal, before anything is watched.
    pub fn new(context: Arc<Context>, registry: Registry, entries: Vec<Entry>) -> Self {
        let mut supervisor = Self { context, registry, tasks: HashMap::new() };
        for entry in entries {
            let key = Key { namespace: entry.namespace, name: entry.name, uid: entry.uid };
            info!(migration = key.name, attempt = entry.attempt, "found in the journal");
            match entry.side {
                Side::Source(source) => {
                    supervisor.start_source(key, Some((entry.attempt, Left::Frozen(source))));
                }
                Side::Target(target) => supervisor.start_target(key, Some((entry.attempt, target))),
                Side::Slowed(slowed) => supervisor.start_source(key, Some((entry.attempt, Left::Slowed(slowed)))),
                // Thawed before anything is started.
                Side::Checkpoint(_) => {}
            }
        }
        supervisor
    }

    /// Watches for ever.
    pub async fn run(mut self) {
        let api: Api<Migration> = Api::all(self.context.client.clone());
        let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut listed = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(migration)) => {
                    listed.extend(migration.metadata.uid.clone());
                    self.show(migration);
                }
                Ok(watcher::Event::Apply(migration)) => self.show(migration),
                Ok(watcher::Event::Delete(migration)) => {
                    if let Some(uid) = &migration.metadata.uid {
                        self.gone(uid);
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    let missing: Vec<String> =
                        self.tasks.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                    for uid in missing {
                        self.gone(&uid);
                    }
                    self.registry.set_synced();
                }
                Err(error) => warn!(error = %chain(&error), "the watch of Migrations was interrupted"),
            }
        }
    }

    fn show(&mut self, migration: Migration) {
        let key = Key::of(&migration);
        let migration = Arc::new(migration);
        self.registry.show(&key.uid, migration.clone());
        self.tasks.retain(|_, task| !task.ended.is_finished());
        if !self.tasks.contains_key(&key.uid) {
            match role(&migration, &self.context.settings.node_name) {
                Some(Role::Source) if has_source_duty(&migration) => self.start_source(key.clone(), None),
                Some(Role::Target) if self.has_target_duty(&migration) => self.start_target(key.clone(), None),
                _ => return,
            }
        }
        if let Some(task) = self.tasks.get(&key.uid) {
            task.news.send_replace(Some(migration));
        }
    }

    fn gone(&mut self, uid: &str) {
        self.registry.forget(uid);
        // Dropping its news is how a task learns of it. One that must not end does not.
        self.tasks.remove(uid);
    }

    fn has_target_duty(&self, migration: &Migration) -> bool {
        target_duty(migration, &self.context.settings.node_name, TargetLocal::default()) != TargetDuty::None
    }

    fn start_source(&mut self, key: Key, left: Option<(u32, Left)>) {
        let (news, receiver) = watch::channel(None);
        let driver = SourceDriver::new(self.context.clone(), key.clone(), left);
        let ended = tokio::spawn(driver.run(receiver));
        self.tasks.insert(key.uid, Task { news, ended });
    }

    fn start_target(&mut self, key: Key, entry: Option<(u32, TargetEntry)>) {
        let (news, receiver) = watch::channel(None);
        let driver = TargetDriver::new(self.context.clone(), self.registry.clone(), key.clone(), entry);
        let ended = tokio::spawn(driver.run(receiver));
        self.tasks.insert(key.uid, Task { news, ended });
    }
}

/// Whether a source that has done nothing yet has anything to do.
fn has_source_duty(migration: &Migration) -> bool {
    source_duty(migration, SourceLocal { attempt: 0, at: SourceAt::Idle }) != SourceDuty::None
}

/// UIDs of the Migrations in the journal.
pub fn known(entries: &[Entry]) -> HashSet<String> {
    entries.iter().map(|entry| entry.uid.clone()).collect()
}
