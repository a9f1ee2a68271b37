//! Reads what a decision depends on from the API server, never from a cache: a stale answer could make a second copy.

use super::Context;
use crate::pod::obstacles::ClaimModes;
use crate::pod::restarts;
use crate::pod::seen::{annotation, node, pod_seen, source_seen};
use crate::transition::{Claim, NodeSeen, Observed, PodSeen, Room, SourceSeen};
use crate::{moves, policy, transition};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use thiserror::Error;
use tideover_crds::{
    Migration, MigrationPolicy, MigrationReason, MigrationStatus, NodeMaintenance, Phase, ProtectedWorkload, names,
};

/// What could not be read.
#[derive(Debug, Error)]
#[error("read {what}")]
pub struct ObserveError {
    what: &'static str,
    #[source]
    source: Box<kube::Error>,
}

fn failed(what: &'static str) -> impl FnOnce(kube::Error) -> ObserveError {
    move |source| ObserveError { what, source: Box::new(source) }
}

/// Reads everything that a decision about the Migration depends on. None where it is gone.
pub(super) async fn observe(context: &Context, namespace: &str, name: &str) -> Result<Option<Observed>, ObserveError> {
    let client = &context.client;
    let migrations: Api<Migration> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let Some(migration) = migrations.get_opt(name).await.map_err(failed("the Migration"))? else { return Ok(None) };
    let status = migration.status.clone().unwrap_or_default();
    let pending = status.owner.is_none() && !status.phase.is_terminal();
    let pod = pods.get_opt(&migration.spec.pod.name).await.map_err(failed("the pod"))?;

    let from = status.source_pod.as_ref().and_then(|pod| pod.node.clone());
    let from = from.or_else(|| pod.as_ref().and_then(node).map(str::to_owned));
    // All at once: after the commit of a pod whose name had to be free, this is inside the freeze.
    let (source_node, target_node, source, reservation, rehearsal, replacements) = tokio::try_join!(
        optional_node(client, from.as_deref()),
        optional_node(client, status.target_node.as_deref()),
        source(client, &migrations, &migration, pod.as_ref(), pending),
        beside(&pods, &migration, status.attempt, transition::reservation_name, "the reservation"),
        beside(&pods, &migration, status.attempt, transition::rehearsal_name, "the rehearsal"),
        replacements(&pods, &migration, &status, pod.as_ref()),
    )?;
    let source_node = source_node.unwrap_or(NodeSeen::Present { schedulable: true });
    Ok(Some(Observed {
        source,
        source_node,
        target_node,
        reservation,
        rehearsal,
        replacements,
        policy: if pending { selecting_policy(client, namespace, pod.as_ref()).await? } else { None },
        reason_stands: reason_stands(client, &migration, source_node, from.as_deref(), pod.as_ref()).await?,
        room: if pending { room(context, from.as_deref(), pod.as_ref()).await? } else { unlimited() },
        excluded: context.settings.excludes(namespace),
        refused: None,
        migration,
    }))
}

async fn optional_node(client: &Client, name: Option<&str>) -> Result<Option<NodeSeen>, ObserveError> {
    match name {
        Some(name) => node_seen(client, name).await.map(Some),
        None => Ok(None),
    }
}

async fn source(
    client: &Client,
    migrations: &Api<Migration>,
    migration: &Migration,
    pod: Option<&Pod>,
    pending: bool,
) -> Result<Option<SourceSeen>, ObserveError> {
    let Some(pod) = pod else { return Ok(None) };
    let claims = if pending { claim_modes(client, pod).await? } else { ClaimModes::new() };
    Ok(Some(source_seen(pod, &claims, claim(migrations, migration, pod).await?)))
}

async fn node_seen(client: &Client, name: &str) -> Result<NodeSeen, ObserveError> {
    let node = Api::<Node>::all(client.clone()).get_opt(name).await.map_err(failed("a node"))?;
    Ok(node.map_or(NodeSeen::Gone, |node| NodeSeen::Present { schedulable: !crate::node::is_cordoned(&node) }))
}

async fn claim(migrations: &Api<Migration>, ours: &Migration, pod: &Pod) -> Result<Claim, ObserveError> {
    let Some(uid) = annotation(pod, names::CLAIMED_BY) else { return Ok(Claim::Free) };
    if ours.metadata.uid.as_deref() == Some(uid) {
        return Ok(Claim::Ours);
    }
    let all = migrations.list(&ListParams::default()).await.map_err(failed("the Migrations of the namespace"))?;
    let holder = all.items.into_iter().find(|migration| migration.metadata.uid.as_deref() == Some(uid));
    Ok(match holder {
        Some(holder) if !moves::is_over(&holder) => Claim::Taken(holder.name_any()),
        _ => Claim::Stale(uid.to_owned()),
    })
}

/// The access modes of the claims that a pod uses.
///
/// # Errors
/// Where one can't be read; one that does not exist is left out.
pub(crate) async fn claim_modes(client: &Client, pod: &Pod) -> Result<ClaimModes, ObserveError> {
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(client.clone(), pod.namespace().as_deref().unwrap_or_default());
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut modes = ClaimModes::new();
    for source in volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()) {
        let claim = claims.get_opt(&source.claim_name).await.map_err(failed("a PersistentVolumeClaim"))?;
        if let Some(spec) = claim.and_then(|claim| claim.spec) {
            modes.insert(source.claim_name.clone(), spec.access_modes.unwrap_or_default());
        }
    }
    Ok(modes)
}

/// A pod that the operator made beside the source for this attempt.
async fn beside(
    pods: &Api<Pod>,
    migration: &Migration,
    attempt: u32,
    name: fn(&str, u32) -> String,
    what: &'static str,
) -> Result<Option<PodSeen>, ObserveError> {
    if attempt == 0 {
        return Ok(None);
    }
    let pod = pods.get_opt(&name(&migration.name_any(), attempt)).await.map_err(failed(what))?;
    // A pod of that name which is not ours is not touched; creating ours then fails and says so.
    let ours = |pod: &Pod| {
        let uid = migration.metadata.uid.as_deref();
        pod.owner_references().iter().any(|owner| Some(owner.uid.as_str()) == uid)
    };
    Ok(pod.filter(ours).as_ref().map(pod_seen))
}

async fn replacements(
    pods: &Api<Pod>,
    migration: &Migration,
    status: &MigrationStatus,
    same_name: Option<&Pod>,
) -> Result<Vec<PodSeen>, ObserveError> {
    if status.phase < Phase::Handover {
        return Ok(Vec::new());
    }
    let name = migration.name_any();
    let source = status.source_pod.as_ref().map(|pod| pod.uid.clone());
    let ours = |pod: &Pod| annotation(pod, names::REPLACEMENT_OF) == Some(&name) && pod.metadata.uid != source;
    let under_way = status.phase > Phase::Handover && status.phase <= Phase::Committing;
    if under_way && let Some(recorded) = &status.replacement {
        // Inside the freeze one request has to do.
        let pod = match same_name.filter(|pod| pod.name_any() == recorded.name) {
            Some(pod) => Some(pod.clone()),
            None => pods.get_opt(&recorded.name).await.map_err(failed("the replacement"))?,
        };
        return Ok(pod.filter(ours).iter().map(pod_seen).collect());
    }
    let all = pods.list(&ListParams::default()).await.map_err(failed("the pods of the namespace"))?;
    Ok(all.items.iter().filter(|pod| ours(pod)).map(pod_seen).collect())
}

async fn selecting_policy(
    client: &Client,
    namespace: &str,
    pod: Option<&Pod>,
) -> Result<Option<(String, MigrationPolicy)>, ObserveError> {
    let Some(pod) = pod else { return Ok(None) };
    let api: Api<ProtectedWorkload> = Api::namespaced(client.clone(), namespace);
    let all = api.list(&ListParams::default()).await.map_err(failed("the ProtectedWorkloads"))?;
    let selecting = policy::selecting(&all.items, pod);
    Ok(selecting.map(|policy| (policy.name_any(), policy.spec.migration.clone())))
}

async fn reason_stands(
    client: &Client,
    migration: &Migration,
    source_node: NodeSeen,
    node: Option<&str>,
    pod: Option<&Pod>,
) -> Result<bool, ObserveError> {
    match migration.spec.reason {
        MigrationReason::Manual => Ok(true),
        MigrationReason::Cordon => Ok(source_node != NodeSeen::Present { schedulable: true }),
        MigrationReason::Drain => {
            let accepted = migration.status.as_ref().is_some_and(|status| status.owner.is_some());
            // Before it is accepted nobody has noted whether the node was cordoned when the eviction came.
            Ok(!accepted || source_node != NodeSeen::Present { schedulable: true })
        }
        MigrationReason::Maintenance => {
            let api: Api<NodeMaintenance> = Api::all(client.clone());
            let all = api.list(&ListParams::default()).await.map_err(failed("the NodeMaintenances"))?;
            let stands = |one: &NodeMaintenance| {
                Some(one.spec.node.as_str()) == node && one.metadata.deletion_timestamp.is_none()
            };
            Ok(all.items.iter().any(stands))
        }
        // Where the pod is gone, that is what is said of it.
        MigrationReason::StartLimit => Ok(pod.is_none_or(|pod| restarts::held(pod, Timestamp::now()).is_some())),
    }
}

async fn room(context: &Context, node: Option<&str>, pod: Option<&Pod>) -> Result<Room, ObserveError> {
    let api: Api<Migration> = Api::all(context.client.clone());
    let all = api.list(&ListParams::default()).await.map_err(failed("the Migrations of the cluster"))?;
    let under_way = || all.items.iter().filter(|migration| moves::is_under_way(migration));
    let leaves = |migration: &&Migration| {
        let from = migration.status.as_ref().and_then(|status| status.source_pod.as_ref()?.node.as_deref());
        from == node
    };
    let controller = pod.and_then(names_as_it_likes);
    let has_controller = |migration: &&Migration| {
        let status = migration.status.as_ref();
        controller.is_some() && status.and_then(|status| status.controller_uid.as_deref()) == controller
    };
    Ok(Room {
        active: under_way().count(),
        max_active: context.settings.max_migrations,
        outbound: under_way().filter(leaves).count(),
        max_outbound: context.settings.max_outbound,
        of_controller: under_way().filter(has_controller).count(),
    })
}

/// The UID of the pod's controller, where that makes a replacement only once a pod is gone, and by a name from which nobody can tell
/// for which one: a Job does. Of its pods one moves at a time.
fn names_as_it_likes(pod: &Pod) -> Option<&str> {
    let controller = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))?;
    (!matches!(controller.kind.as_str(), "ReplicaSet" | "StatefulSet")).then_some(controller.uid.as_str())
}

fn unlimited() -> Room {
    Room { active: 0, max_active: usize::MAX, outbound: 0, max_outbound: usize::MAX, of_controller: 0 }
}
