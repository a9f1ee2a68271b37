//! Looks at a NodeMaintenance on any change of it, of its node, of the pods there and of their Migrations.
//!
//! Who cordoned a node is kept on the node itself, in the same write as the cordon: what a person cordoned is never
//! uncordoned, whatever happens to the operator in between.

use super::progress::{self, Cluster, OnNode};
use crate::begin::{BeginError, begin};
use crate::causes::chain;
use crate::migration::{Context, ObserveError, claim_modes};
use crate::node::{self, CordonChanges};
use crate::pod::obstacles::obstacles;
use crate::pod::seen;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tideover_crds::{Migration, MigrationReason, NodeMaintenance, NodeMaintenanceStatus, ProtectedWorkload, names};
use tracing::{info, warn};

/// How often to look without being told to.
const REFRESH: Duration = Duration::from_secs(30);

/// Pause after an error.
const RETRY: Duration = Duration::from_secs(2);

/// Pods and Migrations change in bursts; one look is enough for one.
const BURST: Duration = Duration::from_millis(300);

#[derive(Debug, Error)]
enum MaintainError {
    #[error("read {what}")]
    Read {
        what: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("read the volumes of a pod")]
    Volumes(#[source] ObserveError),
    #[error("change the finalizers")]
    Finalizer(#[source] Box<kube::Error>),
    #[error("{step} the node {node}")]
    Node {
        step: &'static str,
        node: String,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("begin a move")]
    Begin(#[source] BeginError),
    #[error("write the status")]
    Status(#[source] Box<kube::Error>),
}

fn read(what: &'static str) -> impl FnOnce(kube::Error) -> MaintainError {
    move |source| MaintainError::Read { what, source: Box::new(source) }
}

/// Runs until it is dropped.
pub async fn run(context: Context) {
    let client = context.client.clone();
    let controller = Controller::new(Api::<NodeMaintenance>::all(client.clone()), watcher::Config::default());
    let (of_pods, of_nodes, of_migrations) = (controller.store(), controller.store(), controller.store());
    let cordons = CordonChanges::default();
    controller
        .with_config(Config::default().debounce(BURST))
        .watches(Api::<Pod>::all(client.clone()), watcher::Config::default(), move |pod| {
            seen::node(&pod).map(|node| of_node(&of_pods, node)).unwrap_or_default()
        })
        .watches(Api::<Node>::all(client.clone()), watcher::Config::default(), move |node| {
            if cordons.is_new(&node) { of_node(&of_nodes, &node.name_any()) } else { Vec::new() }
        })
        .watches(Api::<Migration>::all(client), watcher::Config::default(), move |migration| {
            let from = migration.status.as_ref().and_then(|status| status.source_pod.as_ref()?.node.clone());
            from.map(|node| of_node(&of_migrations, &node)).unwrap_or_default()
        })
        .run(reconcile, retry, Arc::new(context))
        .for_each(|_| async {})
        .await;
}

fn of_node(store: &Store<NodeMaintenance>, node: &str) -> Vec<ObjectRef<NodeMaintenance>> {
    let all = store.state();
    let chosen = all.iter().filter(|maintenance| maintenance.spec.node == node);
    chosen.map(|maintenance| ObjectRef::from_obj(&**maintenance)).collect()
}

fn retry(maintenance: Arc<NodeMaintenance>, error: &MaintainError, _: Arc<Context>) -> Action {
    warn!(name = maintenance.name_any(), error = chain(error), "trying again");
    Action::requeue(RETRY)
}

async fn reconcile(maintenance: Arc<NodeMaintenance>, context: Arc<Context>) -> Result<Action, MaintainError> {
    let client = &context.client;
    let now = Timestamp::now();
    let has_finalizer = maintenance.finalizers().iter().any(|name| name == names::MAINTENANCE_FINALIZER);
    if maintenance.metadata.deletion_timestamp.is_some() {
        if has_finalizer {
            uncordon(client, &maintenance).await?;
            set_finalizer(client, &maintenance, false).await?;
        }
        return Ok(Action::await_change());
    }
    if let Some(begins) = maintenance.spec.not_before.as_ref().map(|time| time.0).filter(|begins| *begins > now) {
        let message = format!("begins at {begins}");
        write(client, &maintenance, progress::idle(&maintenance, "NotYet", &message, now)).await?;
        let pause = Duration::try_from(begins.duration_since(now)).unwrap_or(REFRESH);
        return Ok(Action::requeue(pause));
    }
    if !has_finalizer {
        set_finalizer(client, &maintenance, true).await?;
    }
    let Some(node) = cordon(client, &maintenance).await? else {
        let message = format!("there is no node {}", maintenance.spec.node);
        write(client, &maintenance, progress::idle(&maintenance, "NoNode", &message, now)).await?;
        return Ok(Action::requeue(REFRESH));
    };
    let cluster = cluster(client).await?;
    let pods = pods(client, &maintenance.spec.node, &cluster).await?;
    let since = maintenance.creation_timestamp().map(|time| time.0);
    let plan = progress::plan(&pods, &cluster, since);
    for (pod, name) in plan.begin {
        begin(client, pod, name, MigrationReason::Maintenance).await.map_err(MaintainError::Begin)?;
    }
    let moved = progress::moved(&cluster, &maintenance.spec.node, since);
    let cordoned = cordoned_by(&node) == Some(&maintenance.name_any());
    write(client, &maintenance, progress::status(&maintenance, plan.pods, moved, cordoned, now)).await?;
    Ok(Action::requeue(REFRESH))
}

async fn set_finalizer(client: &Client, maintenance: &NodeMaintenance, wanted: bool) -> Result<(), MaintainError> {
    let mut finalizers = maintenance.finalizers().to_vec();
    finalizers.retain(|name| name != names::MAINTENANCE_FINALIZER);
    if wanted {
        finalizers.push(names::MAINTENANCE_FINALIZER.to_owned());
    }
    let patch = Patch::Merge(json!({ "metadata": {
        "uid": maintenance.uid(),
        "resourceVersion": maintenance.resource_version(),
        "finalizers": finalizers,
    } }));
    let api: Api<NodeMaintenance> = Api::all(client.clone());
    let written = api.patch(&maintenance.name_any(), &PatchParams::default(), &patch).await;
    written.map(|_| ()).map_err(|error| MaintainError::Finalizer(Box::new(error)))
}

fn cordoned_by(node: &Node) -> Option<&String> {
    node.annotations().get(names::CORDONED_BY)
}

/// Cordons the node if it is not cordoned. None where there is no such node.
async fn cordon(client: &Client, maintenance: &NodeMaintenance) -> Result<Option<Node>, MaintainError> {
    let api: Api<Node> = Api::all(client.clone());
    let name = &maintenance.spec.node;
    let Some(node) = api.get_opt(name).await.map_err(read("the node"))? else { return Ok(None) };
    if node::is_cordoned(&node) {
        return Ok(Some(node));
    }
    info!(node = name, maintenance = maintenance.name_any(), "cordoning");
    let by = json!(maintenance.name_any());
    Ok(Some(write_node(&api, &node, true, by, "cordon").await?))
}

/// Uncordons the node, if it was cordoned by `maintenance` and no other NodeMaintenance wants it empty.
async fn uncordon(client: &Client, maintenance: &NodeMaintenance) -> Result<(), MaintainError> {
    let api: Api<Node> = Api::all(client.clone());
    let Some(node) = api.get_opt(&maintenance.spec.node).await.map_err(read("the node"))? else { return Ok(()) };
    if cordoned_by(&node) != Some(&maintenance.name_any()) {
        return Ok(());
    }
    let all = Api::<NodeMaintenance>::all(client.clone()).list(&ListParams::default()).await;
    let heir = all.map_err(read("the NodeMaintenances"))?.items.into_iter().find(|other| {
        other.spec.node == maintenance.spec.node
            && other.metadata.deletion_timestamp.is_none()
            && other.name_any() != maintenance.name_any()
    });
    let (cordoned, by) = match heir {
        Some(heir) => (true, json!(heir.name_any())),
        None => (false, Value::Null),
    };
    info!(node = node.name_any(), maintenance = maintenance.name_any(), cordoned, "leaving the node as it was");
    write_node(&api, &node, cordoned, by, "uncordon").await.map(|_| ())
}

/// Writes the cordon and its author at once, onto the version of the node that was looked at.
async fn write_node(
    api: &Api<Node>,
    node: &Node,
    cordoned: bool,
    by: Value,
    step: &'static str,
) -> Result<Node, MaintainError> {
    let name = node.name_any();
    let patch = Patch::Merge(json!({
        "metadata": { "resourceVersion": node.resource_version(), "annotations": { names::CORDONED_BY: by } },
        "spec": { "unschedulable": if cordoned { json!(true) } else { Value::Null } },
    }));
    let written = api.patch(&name, &PatchParams::default(), &patch).await;
    written.map_err(|source| MaintainError::Node { step, node: name, source: Box::new(source) })
}

async fn cluster(client: &Client) -> Result<Cluster, MaintainError> {
    let mut cluster = Cluster::default();
    let policies = Api::<ProtectedWorkload>::all(client.clone()).list(&ListParams::default()).await;
    for policy in policies.map_err(read("the ProtectedWorkloads"))? {
        cluster.policies.entry(policy.namespace().unwrap_or_default()).or_default().push(policy);
    }
    let migrations = Api::<Migration>::all(client.clone()).list(&ListParams::default()).await;
    for migration in migrations.map_err(read("the Migrations"))? {
        cluster.migrations.entry(migration.namespace().unwrap_or_default()).or_default().push(migration);
    }
    Ok(cluster)
}

/// The protected pods on the node that are not gone yet.
async fn pods(client: &Client, node: &str, cluster: &Cluster) -> Result<Vec<OnNode>, MaintainError> {
    let on_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let all = Api::<Pod>::all(client.clone()).list(&on_node).await.map_err(read("the pods of the node"))?;
    let mut pods = Vec::new();
    for pod in all.items {
        if !cluster.is_protected(&pod) || seen::pod_seen(&pod).state.is_over() {
            continue;
        }
        let claims = claim_modes(client, &pod).await.map_err(MaintainError::Volumes)?;
        pods.push(OnNode { obstacles: obstacles(&pod, &claims), pod });
    }
    Ok(pods)
}

async fn write(
    client: &Client,
    maintenance: &NodeMaintenance,
    status: NodeMaintenanceStatus,
) -> Result<(), MaintainError> {
    if maintenance.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<NodeMaintenance> = Api::all(client.clone());
    let patch = Patch::Merge(json!({ "metadata": { "uid": maintenance.uid() }, "status": status }));
    let written = api.patch_status(&maintenance.name_any(), &PatchParams::default(), &patch).await;
    written.map(|_| ()).map_err(|error| MaintainError::Status(Box::new(error)))
}
