//! How far a node is emptied, and what is next. Pure.

use crate::condition::{self, Says};
use crate::moves::{self, Next};
use crate::policy;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use std::collections::BTreeMap;
use tideover_crds::{
    Migration, NodeMaintenance, NodeMaintenanceStatus, Obstacle, Phase, PodProgress, ProtectedWorkload,
};

/// The most pods that are listed.
const LISTED: usize = 100;

/// `True` where no protected pod is left on the node.
const EMPTY: &str = "Empty";

/// A pod on the node, with what stands in the way of moving it.
#[derive(Debug)]
pub(super) struct OnNode {
    pub(super) pod: Pod,
    pub(super) obstacles: Vec<Obstacle>,
}

/// The cluster as far as a NodeMaintenance depends on it, by namespace.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    pub(super) policies: BTreeMap<String, Vec<ProtectedWorkload>>,
    pub(super) migrations: BTreeMap<String, Vec<Migration>>,
}

impl Cluster {
    fn migrations(&self, namespace: &str) -> &[Migration] {
        self.migrations.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    /// Pods that a policy moves.
    pub(super) fn is_protected(&self, pod: &Pod) -> bool {
        let policies = self.policies.get(&pod.namespace().unwrap_or_default());
        policies.and_then(|policies| policy::selecting(policies, pod)).is_some_and(policy::moves)
    }
}

/// What is to be done about the pods of the node.
#[derive(Debug, Default)]
pub(super) struct Plan<'a> {
    /// Pods to move, with the names of their Migrations.
    pub(super) begin: Vec<(&'a Pod, String)>,
    /// Per pod, how far it is.
    pub(super) pods: Vec<PodProgress>,
}

/// Plans the moves of the protected pods on the node. A move that failed since `since` is not tried again.
pub(super) fn plan<'a>(pods: &'a [OnNode], cluster: &Cluster, since: Option<Timestamp>) -> Plan<'a> {
    let mut plan = Plan::default();
    for OnNode { pod, obstacles } in pods {
        let namespace = pod.namespace().unwrap_or_default();
        let (migration, state) = match (obstacles.first(), moves::next(cluster.migrations(&namespace), pod, since)) {
            (_, Next::UnderWay(migration)) => (Some(migration.name_any()), told(migration)),
            (Some(obstacle), _) => (None, format!("can't be moved: {}", obstacle.message)),
            (None, Next::Failed(migration)) => (Some(migration.name_any()), told(migration)),
            (None, Next::Create(name)) => {
                plan.begin.push((pod, name.clone()));
                (Some(name), "Pending".to_owned())
            }
        };
        plan.pods.push(PodProgress { namespace, name: pod.name_any(), migration, state });
    }
    plan
}

fn told(migration: &Migration) -> String {
    let status = migration.status.as_ref();
    let phase = status.map(|status| status.phase).unwrap_or_default();
    match status.and_then(|status| status.message.as_deref()) {
        Some(message) => format!("{phase:?}: {message}"),
        None => format!("{phase:?}"),
    }
}

/// How many pods have left the node since `since`.
pub(super) fn moved(cluster: &Cluster, node: &str, since: Option<Timestamp>) -> usize {
    let left = |migration: &&Migration| {
        let Some(status) = &migration.status else { return false };
        let from = status.source_pod.as_ref().and_then(|pod| pod.node.as_deref());
        let counts = since.is_none_or(|since| moves::ended_at(migration).is_some_and(|at| at >= since));
        status.phase == Phase::Succeeded && from == Some(node) && counts
    };
    cluster.migrations.values().flatten().filter(left).count()
}

/// The status of `maintenance`.
pub(super) fn status(
    maintenance: &NodeMaintenance,
    pods: Vec<PodProgress>,
    moved: usize,
    cordoned: bool,
    now: Timestamp,
) -> NodeMaintenanceStatus {
    let node = &maintenance.spec.node;
    let message = match pods.len() {
        0 => format!("no protected pod is left on {node}"),
        1 => format!("1 protected pod is left on {node}"),
        left => format!("{left} protected pods are left on {node}"),
    };
    let holds = pods.is_empty();
    let reason = if holds { "NoProtectedPods" } else { "ProtectedPodsLeft" };
    shown(maintenance, &Says { holds, reason, message: &message }, pods, moved, cordoned, now)
}

/// The status of a NodeMaintenance that does nothing for now, for a reason.
pub(super) fn idle(
    maintenance: &NodeMaintenance,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> NodeMaintenanceStatus {
    shown(maintenance, &Says { holds: false, reason, message }, Vec::new(), 0, false, now)
}

fn shown(
    maintenance: &NodeMaintenance,
    says: &Says<'_>,
    pods: Vec<PodProgress>,
    moved: usize,
    cordoned: bool,
    now: Timestamp,
) -> NodeMaintenanceStatus {
    let mut conditions = maintenance.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let generation = maintenance.metadata.generation;
    condition::set(&mut conditions, EMPTY, says, generation, now);
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    NodeMaintenanceStatus {
        observed_generation: generation,
        conditions,
        message: Some(says.message.to_owned()),
        cordoned,
        remaining: count(pods.len()),
        moved: count(moved),
        pods: pods.into_iter().take(LISTED).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tideover_crds::{MigrationReason, ObstacleReason};

    fn pod(name: &str, obstacle: Option<&str>) -> OnNode {
        let pod = json!({ "metadata": { "name": name, "namespace": "ns", "uid": format!("{name}-12345678") } });
        let obstacle = obstacle.map(|message| Obstacle { reason: ObstacleReason::Terminal, message: message.into() });
        OnNode { pod: serde_json::from_value(pod).expect("a pod"), obstacles: obstacle.into_iter().collect() }
    }

    #[test]
    fn every_movable_pod_is_moved_and_the_others_are_explained() {
        let pods = [pod("p", None), pod("q", Some("tty is true"))];
        let plan = plan(&pods, &Cluster::default(), None);
        assert_eq!(plan.begin.len(), 1);
        assert_eq!(plan.pods[0].state, "Pending");
        assert_eq!(plan.pods[1].state, "can't be moved: tty is true");
    }

    #[test]
    fn a_pod_that_is_being_moved_is_not_moved_twice() {
        let pods = [pod("p", None)];
        let migration = moves::migration_of(&pods[0].pod, "m".into(), MigrationReason::Drain);
        let migrations = BTreeMap::from([("ns".to_owned(), vec![migration])]);
        let cluster = Cluster { migrations, ..Default::default() };
        let plan = plan(&pods, &cluster, None);
        assert!(plan.begin.is_empty());
        assert_eq!(plan.pods[0].migration.as_deref(), Some("m"));
    }

    #[test]
    fn a_node_without_protected_pods_is_empty() {
        let maintenance: NodeMaintenance = serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "NodeMaintenance", "metadata": { "name": "n" },
            "spec": { "node": "a" },
        }))
        .expect("a NodeMaintenance");
        let now = Timestamp::from_second(1).expect("a time");
        let told = status(&maintenance, Vec::new(), 2, true, now);
        assert_eq!((told.remaining, told.moved, told.cordoned), (0, 2, true));
        assert_eq!(told.conditions[0].status, "True");
        assert_eq!(told.message.as_deref(), Some("no protected pod is left on a"));
    }
}
