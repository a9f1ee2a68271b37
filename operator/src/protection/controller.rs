//! Looks at a ProtectedWorkload on any change of it, of its namespace's pods, and of a node's cordon.

use super::assess::{self, Seen, Unusable};
use super::limit::{self, Answer};
use crate::begin::{BeginError, begin};
use crate::causes::chain;
use crate::migration::{Context, ObserveError, claim_modes};
use crate::node::{self, CordonChanges};
use crate::pod::restarts::{self, Held};
use crate::pod::seen;
use crate::{moves, policy};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::core::Selector;
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tideover_crds::{Migration, MigrationReason, PodProtection, ProtectedWorkload};
use tracing::warn;

/// How often to look without being told to.
const REFRESH: Duration = Duration::from_secs(60);

/// Pause after an error.
const RETRY: Duration = Duration::from_secs(2);

/// Pods change in bursts; one look is enough for one.
const BURST: Duration = Duration::from_millis(300);

#[derive(Debug, Error)]
enum ProtectError {
    #[error("read {what}")]
    Read {
        what: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("read the volumes of a pod")]
    Volumes(#[source] ObserveError),
    #[error("write the status")]
    Status(#[source] Box<kube::Error>),
    #[error("begin a move")]
    Begin(#[source] BeginError),
}

fn read(what: &'static str) -> impl FnOnce(kube::Error) -> ProtectError {
    move |source| ProtectError::Read { what, source: Box::new(source) }
}

/// Runs until it is dropped.
pub async fn run(context: Context) {
    let client = context.client.clone();
    let controller = Controller::new(Api::<ProtectedWorkload>::all(client.clone()), watcher::Config::default());
    let (of_pods, of_nodes) = (controller.store(), controller.store());
    let cordons = CordonChanges::default();
    controller
        .with_config(Config::default().debounce(BURST))
        .watches(Api::<Pod>::all(client.clone()), watcher::Config::default(), move |pod| {
            let namespace = pod.namespace();
            refs(&of_pods, |workload| workload.namespace() == namespace)
        })
        .watches(Api::<Node>::all(client), watcher::Config::default(), move |node| {
            if cordons.is_new(&node) { refs(&of_nodes, |_| true) } else { Vec::new() }
        })
        .run(reconcile, retry, Arc::new(context))
        .for_each(|_| async {})
        .await;
}

fn refs(
    store: &Store<ProtectedWorkload>,
    chosen: impl Fn(&ProtectedWorkload) -> bool,
) -> Vec<ObjectRef<ProtectedWorkload>> {
    let all = store.state();
    all.iter().filter(|workload| chosen(workload)).map(|workload| ObjectRef::from_obj(&**workload)).collect()
}

fn retry(workload: Arc<ProtectedWorkload>, error: &ProtectError, _: Arc<Context>) -> Action {
    warn!(namespace = workload.namespace(), name = workload.name_any(), error = chain(error), "trying again");
    Action::requeue(RETRY)
}

async fn reconcile(workload: Arc<ProtectedWorkload>, context: Arc<Context>) -> Result<Action, ProtectError> {
    if workload.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let client = &context.client;
    let namespace = workload.namespace().unwrap_or_default();
    let now = Timestamp::now();
    let status = match usable(&workload, &context, &namespace) {
        Err(unusable) => assess::status(&workload, Err(unusable), now),
        Ok(selector) => {
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let all = api.list(&ListParams::default().labels_from(&selector)).await.map_err(read("the pods"))?;
            let (pods, known) = look_at(client, all.items).await?;
            if policy::moves(&workload) && workload.spec.on_maintenance.on_cordon {
                begin_where_cordoned(client, &namespace, &pods, &known).await?;
            }
            let seen = begin_where_held(&context, &workload, &pods, known, now).await?;
            assess::status(&workload, Ok(seen), now)
        }
    };
    if workload.status.as_ref() != Some(&status) {
        let api: Api<ProtectedWorkload> = Api::namespaced(client.clone(), &namespace);
        let patch = Patch::Merge(json!({ "metadata": { "uid": workload.uid() }, "status": status }));
        let written = api.patch_status(&workload.name_any(), &PatchParams::default(), &patch).await;
        written.map_err(|error| ProtectError::Status(Box::new(error)))?;
    }
    Ok(Action::requeue(REFRESH))
}

/// The selector of a policy that can protect something.
fn usable(workload: &ProtectedWorkload, context: &Context, namespace: &str) -> Result<Selector, Unusable> {
    if context.settings.excludes(namespace) {
        let message = format!("the namespace {namespace} is excluded from Tideover");
        return Err(Unusable { reason: "NamespaceExcluded", message });
    }
    policy::selector(workload).map_err(|error| Unusable {
        reason: "InvalidSelector",
        message: format!("the selector can't be used: {error}"),
    })
}

/// The pods that count: not those that the operator made for a move, nor those that are going or gone.
async fn look_at(client: &Client, all: Vec<Pod>) -> Result<(Vec<Pod>, Vec<PodProtection>), ProtectError> {
    let counts = |pod: &Pod| {
        !seen::stands_beside(pod) && pod.metadata.deletion_timestamp.is_none() && !seen::pod_seen(pod).state.is_over()
    };
    let pods: Vec<Pod> = all.into_iter().filter(counts).collect();
    let mut known = Vec::with_capacity(pods.len());
    for pod in &pods {
        let claims = claim_modes(client, pod).await.map_err(ProtectError::Volumes)?;
        known.push(assess::pod_protection(pod, &claims));
    }
    Ok((pods, known))
}

async fn begin_where_cordoned(
    client: &Client,
    namespace: &str,
    pods: &[Pod],
    known: &[PodProtection],
) -> Result<(), ProtectError> {
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.map_err(read("the nodes"))?;
    let cordoned = |pod: &Pod| {
        let on = seen::node(pod)?;
        nodes.items.iter().find(|node| node.name_any() == on && node::is_cordoned(node))
    };
    let leaving: Vec<(&Pod, &Node)> = pods
        .iter()
        .zip(known)
        .filter(|(_, known)| known.movable)
        .filter_map(|(pod, _)| Some((pod, cordoned(pod)?)))
        .collect();
    if leaving.is_empty() {
        return Ok(());
    }
    let api: Api<Migration> = Api::namespaced(client.clone(), namespace);
    let migrations = api.list(&ListParams::default()).await.map_err(read("the Migrations"))?.items;
    for (pod, node) in leaving {
        // A move that failed is not tried again until the node is cordoned once more.
        if let moves::Next::Create(name) = moves::next(&migrations, pod, node::cordoned_at(node)) {
            begin(client, pod, name, MigrationReason::Cordon).await.map_err(ProtectError::Begin)?;
        }
    }
    Ok(())
}

/// Has pods moved whose containers wait for that. The policy's rules for restarts ask for it, whatever it says about maintenance.
async fn begin_where_held(
    context: &Context,
    workload: &ProtectedWorkload,
    pods: &[Pod],
    known: Vec<PodProtection>,
    now: Timestamp,
) -> Result<Seen, ProtectError> {
    let before = workload.status.as_ref().map(|status| status.start_limit_moves.as_slice()).unwrap_or_default();
    let held = |(pod, known)| restarts::held(pod, now).map(|held| (pod, known, held));
    let held: Vec<(&Pod, &PodProtection, Held)> = pods.iter().zip(&known).filter_map(held).collect();
    if held.is_empty() && before.is_empty() && !policy::moves_at_start_limit(workload) {
        return Ok(Seen { pods: known, ..Seen::default() });
    }
    let api: Api<Migration> = Api::namespaced(context.client.clone(), &workload.namespace().unwrap_or_default());
    let migrations = api.list(&ListParams::default()).await.map_err(read("the Migrations"))?.items;
    let uids: BTreeSet<String> = pods.iter().filter_map(ResourceExt::uid).collect();
    let moves = limit::remembered(before, &migrations, &uids, now);
    let mut bound = None;
    for (pod, known, held) in held {
        match limit::answer(pod, &held, &known.obstacles, (&migrations, &moves), now) {
            Answer::Bound(why) => {
                if !assess::says(workload, known) {
                    warn_of(context, pod, &why).await;
                }
                bound.get_or_insert_with(|| format!("the pod {} waits at its start limit, but {why}", known.name));
            }
            Answer::Begin(name) => {
                let begun = begin(&context.client, pod, name, MigrationReason::StartLimit).await;
                begun.map_err(ProtectError::Begin)?;
            }
            // The status that is written next says so too, and then it was told.
            Answer::Refuse(why) if !assess::says(workload, known) => warn_of(context, pod, &why).await,
            Answer::Refuse(_) | Answer::Nothing => {}
        }
    }
    Ok(Seen { pods: known, moves, bound })
}

async fn warn_of(context: &Context, pod: &Pod, why: &str) {
    let event = Event {
        type_: EventType::Warning,
        reason: "NotMoved".to_owned(),
        note: Some(format!("the start limit was hit and the policy would have the pod moved, but {why}")),
        action: "Migrate".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &pod.object_ref(&())).await {
        warn!(%error, "an Event was lost");
    }
}
