//! When to look at which Migration: on any change of it, of its pods, of its nodes and of what asked for it.

use super::{Context, drive};
use crate::causes::chain;
use crate::moves;
use crate::node::CordonChanges;
use crate::pod::seen::annotation;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::runtime::controller::Action;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, watcher};
use kube::{Api, ResourceExt};
use std::sync::Arc;
use std::time::Duration;
use tideover_crds::{Migration, MigrationReason, NodeMaintenance, Phase, Strategy, names};
use tracing::{debug, warn};

/// Pause after an error.
const RETRY: Duration = Duration::from_secs(1);

/// How long news of a pod that is frozen waits. One look is some eight requests, and the commit, of which the news may be, has
/// yet to be followed by the first instruction on the target.
const FROZEN: Duration = Duration::from_millis(250);

/// Runs until it is dropped.
pub async fn run(context: Context) {
    let client = context.client.clone();
    let controller = Controller::new(Api::<Migration>::all(client.clone()), watcher::Config::default());
    let (of_pods, of_nodes, of_maintenances) = (controller.store(), controller.store(), controller.store());
    let cordons = CordonChanges::default();
    controller
        .watches(Api::<Pod>::all(client.clone()), watcher::Config::default(), move |pod| concerned(&of_pods, &pod))
        .watches(Api::<Node>::all(client.clone()), watcher::Config::default(), move |node| {
            if cordons.is_new(&node) { leaving_or_reaching(&of_nodes, &node.name_any()) } else { Vec::new() }
        })
        .watches(Api::<NodeMaintenance>::all(client), watcher::Config::default(), move |_| asked_by(&of_maintenances))
        .run(reconcile, retry, Arc::new(context))
        .for_each(|looked| async move {
            if let Err(error) = looked {
                debug!(%error, "a look at a Migration failed");
            }
        })
        .await;
}

async fn reconcile(migration: Arc<Migration>, context: Arc<Context>) -> Result<Action, drive::DriveError> {
    let namespace = migration.namespace().unwrap_or_default();
    if let Some(rest) = rest(&migration) {
        tokio::time::sleep(rest).await;
    }
    let pause = drive::drive(&context, &namespace, &migration.name_any()).await?;
    Ok(pause.map_or_else(Action::await_change, Action::requeue))
}

/// How long a look can wait: while the agents act on their own and the operator has nothing to do for them. Where the pod's name
/// has to be free first, it has. Decided by what the watch shows, which may be old: a rest changes nothing but the time of a look.
fn rest(migration: &Migration) -> Option<Duration> {
    let status = migration.status.as_ref()?;
    let frozen = status.phase >= Phase::Freezing && status.phase < Phase::RollingBack;
    (frozen && status.strategy == Some(Strategy::ReplaceFirst)).then_some(FROZEN)
}

fn retry(migration: Arc<Migration>, error: &drive::DriveError, _: Arc<Context>) -> Action {
    warn!(namespace = migration.namespace(), name = migration.name_any(), error = chain(error), "trying again");
    Action::requeue(RETRY)
}

fn open(store: &Store<Migration>, concerns: impl Fn(&Migration) -> bool) -> Vec<ObjectRef<Migration>> {
    let all = store.state();
    let chosen = all.iter().filter(|migration| !moves::is_over(migration) && concerns(migration));
    chosen.map(|migration| ObjectRef::from_obj(&**migration)).collect()
}

fn concerned(store: &Store<Migration>, pod: &Pod) -> Vec<ObjectRef<Migration>> {
    let name = pod.name_any();
    let owners: Vec<&str> = pod.owner_references().iter().map(|owner| owner.uid.as_str()).collect();
    let stamp = annotation(pod, names::REPLACEMENT_OF);
    open(store, |migration| {
        migration.namespace() == pod.namespace()
            && (migration.spec.pod.name == name
                || stamp == migration.metadata.name.as_deref()
                || migration.metadata.uid.as_deref().is_some_and(|uid| owners.contains(&uid)))
    })
}

fn leaving_or_reaching(store: &Store<Migration>, node: &str) -> Vec<ObjectRef<Migration>> {
    open(store, |migration| {
        let Some(status) = &migration.status else { return false };
        let source = status.source_pod.as_ref().and_then(|pod| pod.node.as_deref());
        source == Some(node) || status.target_node.as_deref() == Some(node)
    })
}

fn asked_by(store: &Store<Migration>) -> Vec<ObjectRef<Migration>> {
    open(store, |migration| migration.spec.reason == MigrationReason::Maintenance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tideover_crds::{MigrationSpec, MigrationStatus, PodRef};

    fn at(phase: Phase, strategy: Strategy) -> Option<Duration> {
        let pod = PodRef { name: "app".into(), uid: None };
        let spec = MigrationSpec { pod, target_node: None, reason: MigrationReason::Manual };
        let mut migration = Migration::new("move", spec);
        migration.status = Some(MigrationStatus { phase, strategy: Some(strategy), ..MigrationStatus::default() });
        rest(&migration)
    }

    #[test]
    fn looks_wait_while_the_agents_act_on_their_own() {
        let resting = [Phase::Freezing, Phase::Transferring, Phase::Restoring, Phase::Committing];
        assert!(resting.into_iter().all(|phase| at(phase, Strategy::ReplaceFirst) == Some(FROZEN)));
        for phase in [Phase::Preparing, Phase::Handover, Phase::RollingBack, Phase::Succeeded] {
            assert_eq!(at(phase, Strategy::ReplaceFirst), None, "{phase:?}");
        }
    }

    #[test]
    fn no_look_waits_where_the_frozen_pod_waits_for_the_operator() {
        assert_eq!(at(Phase::Committing, Strategy::DeleteFirst), None);
    }
}
