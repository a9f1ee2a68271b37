//! What an eviction is answered. Pure.

use crate::node;
use crate::pod::seen;
use crate::{moves, policy};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use tideover_crds::migration::Verdict;
use tideover_crds::{FailurePolicy, Migration, Obstacle, ProtectedWorkload};

/// For how long a failed move decides what an eviction is answered. After that the pod is tried once more: whoever
/// drains again has perhaps done something about it.
const FAILURE_COUNTS: SignedDuration = SignedDuration::from_secs(60);

/// For how long a pod that was moved counts as gone for those who evict it by its name. `kubectl drain` looks again
/// every five seconds.
const MOVE_COUNTS: SignedDuration = SignedDuration::from_mins(2);

/// An eviction, and what is known about it.
#[derive(Debug)]
pub(super) struct Eviction<'a> {
    /// The pod that has the name now.
    pub(super) pod: &'a Pod,
    /// Its node.
    pub(super) node: Option<&'a Node>,
    /// The policies of the namespace.
    pub(super) policies: &'a [ProtectedWorkload],
    /// The Migrations of the namespace.
    pub(super) migrations: &'a [Migration],
    /// What stands in the way of moving the pod.
    pub(super) obstacles: &'a [Obstacle],
}

/// The answer.
#[derive(Debug, PartialEq)]
pub(super) enum Ruling {
    /// The pod is none of Tideover's business.
    Allow,
    /// The pod is protected, but can't be moved: Kubernetes does what it always did, and somebody is told.
    AllowUnmovable(String),
    /// The pod is not where the eviction meant it to be any more.
    MovedAway(String),
    /// The pod is being moved, by a new Migration where a name is given.
    Wait {
        /// What to tell.
        message: String,
        /// Name of the Migration to create.
        create: Option<String>,
    },
    /// The move has failed, and the policy says that the pod stays.
    Refuse(String),
}

/// Decides.
pub(super) fn rule(eviction: &Eviction<'_>, now: Timestamp) -> Ruling {
    let Eviction { pod, policies, migrations, .. } = *eviction;
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    if seen::stands_beside(pod) {
        return Ruling::Allow;
    }
    let under_way = migrations.iter().find(|one| !moves::is_over(one) && moves::concerns(one, &name, &uid));
    if let Some(migration) = under_way {
        return Ruling::Wait { message: progress(&name, migration), create: None };
    }
    let Some(policy) = policy::selecting(policies, pod).filter(|policy| policy::moves(policy)) else {
        return Ruling::Allow;
    };
    if let Some(message) = moved_away(eviction, &name, &uid, now) {
        return Ruling::MovedAway(message);
    }
    if let Some(obstacle) = eviction.obstacles.first() {
        return Ruling::AllowUnmovable(format!("the pod {name} is protected but can't be moved: {}", obstacle.message));
    }
    let cordoned_at = eviction.node.and_then(node::cordoned_at);
    let since = (now - FAILURE_COUNTS).max(cordoned_at.unwrap_or(Timestamp::MIN));
    match moves::next(migrations, pod, Some(since)) {
        moves::Next::UnderWay(migration) => Ruling::Wait { message: progress(&name, migration), create: None },
        moves::Next::Failed(migration) => after_failure(policy, &name, migration),
        moves::Next::Create(migration) => {
            let message = format!("the pod {name} is being moved to another node by the Migration {migration}");
            Ruling::Wait { message, create: Some(migration) }
        }
    }
}

fn progress(pod: &str, migration: &Migration) -> String {
    let status = migration.status.as_ref();
    let message = status.and_then(|status| status.message.as_deref()).unwrap_or("it is about to begin");
    format!("the pod {pod} is being moved by the Migration {}: {message}", migration.name_any())
}

/// The pod of this name is the one that a move has just put on a healthy node, with its state or, where that was given up,
/// without: the eviction meant its predecessor.
fn moved_away(eviction: &Eviction<'_>, name: &str, uid: &str, now: Timestamp) -> Option<String> {
    let node = eviction.node.filter(|node| node::is_ready(node) && !node::is_cordoned(node))?;
    let came_here = eviction.migrations.iter().any(|migration| {
        let Some(status) = &migration.status else { return false };
        let recently = moves::ended_at(migration).is_some_and(|at| now.duration_since(at) <= MOVE_COUNTS);
        status.phase.is_terminal()
            && status.verdict() == Verdict::Committed
            && recently
            && migration.spec.pod.name == name
            && status.replacement.as_ref().is_some_and(|pod| pod.uid == uid)
    });
    came_here.then(|| format!("the pod {name} has already been moved to {}", node.name_any()))
}

fn after_failure(policy: &ProtectedWorkload, pod: &str, migration: &Migration) -> Ruling {
    if policy.spec.migration.on_failure == FailurePolicy::Evict {
        return Ruling::Allow;
    }
    let why =
        migration.status.as_ref().and_then(|status| status.message.as_deref()).unwrap_or("the reason is not known");
    Ruling::Refuse(format!(
        "the pod {pod} could not be moved ({why}; Migration {}) and runs on where it is; set migration.onFailure of \
         the ProtectedWorkload {} to Evict to let it go all the same",
        migration.name_any(),
        policy.name_any()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tideover_crds::{ObstacleReason, names};

    struct Scene {
        pod: Pod,
        node: Node,
        policies: Vec<ProtectedWorkload>,
        migrations: Vec<Migration>,
        obstacles: Vec<Obstacle>,
    }

    fn scene() -> Scene {
        Scene {
            pod: serde_json::from_value(json!({
                "metadata": { "name": "p", "uid": "0123456789", "labels": { "app": "x" } },
            }))
            .expect("a pod"),
            node: serde_json::from_value(json!({
                "metadata": { "name": "b" },
                "spec": { "unschedulable": true },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            }))
            .expect("a node"),
            policies: vec![policy(json!({}))],
            migrations: Vec::new(),
            obstacles: Vec::new(),
        }
    }

    fn policy(more: Value) -> ProtectedWorkload {
        let mut spec = json!({ "selector": { "matchLabels": { "app": "x" } } });
        json_patch::merge(&mut spec, &more);
        serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "ProtectedWorkload", "metadata": { "name": "w" }, "spec": spec,
        }))
        .expect("a policy")
    }

    fn now() -> Timestamp {
        "2026-01-01T00:10:00Z".parse().expect("a time")
    }

    impl Scene {
        fn migration(mut self, phase: &str, ended: Option<&str>, replacement: Option<&str>) -> Self {
            let source = if replacement.is_some() { "old" } else { "0123456789" };
            let mut status = json!({
                "phase": phase, "attempt": 1, "message": "it is so",
                "owner": { "node": if replacement.is_some() { "b" } else { "a" }, "attempt": 1 },
                "sourcePod": { "name": "p", "uid": source, "node": "a" },
            });
            if let Some(at) = ended {
                status["conditions"] = json!([{ "type": "Completed", "status": "True", "reason": "R", "message": "",
                    "lastTransitionTime": at }]);
            }
            if let Some(uid) = replacement {
                status["replacement"] = json!({ "name": "p", "uid": uid, "node": "b" });
            }
            let migration = serde_json::from_value(json!({
                "apiVersion": "tideover.dev/v1alpha1", "kind": "Migration", "metadata": { "name": "m" },
                "spec": { "pod": { "name": "p", "uid": source } }, "status": status,
            }));
            self.migrations.push(migration.expect("a Migration"));
            self
        }

        fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }

        fn rule(&self) -> Ruling {
            let Self { pod, node, policies, migrations, obstacles } = self;
            rule(&Eviction { pod, node: Some(node), policies, migrations, obstacles }, now())
        }
    }

    #[test]
    fn a_pod_without_a_policy_is_evicted_as_always() {
        assert_eq!(scene().with(|scene| scene.policies.clear()).rule(), Ruling::Allow);
        let ignored = policy(json!({ "onMaintenance": { "action": "Ignore" } }));
        assert_eq!(scene().with(|scene| scene.policies = vec![ignored]).rule(), Ruling::Allow);
    }

    #[test]
    fn what_the_operator_made_for_a_move_is_never_held() {
        let reservation = scene().with(|scene| {
            scene.pod.labels_mut().insert(names::RESERVATION_FOR.into(), "m".into());
        });
        assert_eq!(reservation.rule(), Ruling::Allow);
        let rehearsal = scene().with(|scene| {
            scene.pod.annotations_mut().insert(names::REHEARSAL_OF.into(), "m".into());
        });
        assert_eq!(rehearsal.rule(), Ruling::Allow);
    }

    #[test]
    fn the_first_eviction_begins_the_move_and_waits() {
        let message = "the pod p is being moved to another node by the Migration p-01234567-1".to_owned();
        assert_eq!(scene().rule(), Ruling::Wait { message, create: Some("p-01234567-1".into()) });
    }

    #[test]
    fn further_evictions_wait_for_the_same_move() {
        let told = scene().migration("PreCopying", None, None).rule();
        let message = "the pod p is being moved by the Migration m: it is so".to_owned();
        assert_eq!(told, Ruling::Wait { message, create: None });
    }

    #[test]
    fn a_replacement_that_comes_up_is_not_evicted() {
        let told = scene().migration("Handover", None, Some("0123456789")).rule();
        assert!(matches!(told, Ruling::Wait { create: None, .. }));
    }

    #[test]
    fn a_restored_pod_on_a_healthy_node_counts_as_gone() {
        let moved = scene().migration("Succeeded", Some("2026-01-01T00:09:00Z"), Some("0123456789"));
        let healthy = moved.with(|scene| scene.node.spec.get_or_insert_default().unschedulable = None);
        let message = "the pod p has already been moved to b".to_owned();
        assert_eq!(healthy.rule(), Ruling::MovedAway(message));
    }

    #[test]
    fn a_pod_that_was_made_again_cold_counts_as_gone_too() {
        let given_up = scene().migration("Failed", Some("2026-01-01T00:09:00Z"), Some("0123456789"));
        let healthy = given_up.with(|scene| scene.node.spec.get_or_insert_default().unschedulable = None);
        assert!(matches!(healthy.rule(), Ruling::MovedAway(_)));
    }

    #[test]
    fn a_restored_pod_whose_new_node_is_drained_moves_again() {
        let moved = scene().migration("Succeeded", Some("2026-01-01T00:09:00Z"), Some("0123456789"));
        assert!(matches!(moved.rule(), Ruling::Wait { create: Some(_), .. }));
    }

    #[test]
    fn a_pod_that_was_moved_long_ago_moves_again() {
        let moved = scene().migration("Succeeded", Some("2026-01-01T00:05:00Z"), Some("0123456789"));
        let healthy = moved.with(|scene| scene.node.spec.get_or_insert_default().unschedulable = None);
        assert!(matches!(healthy.rule(), Ruling::Wait { create: Some(_), .. }));
    }

    #[test]
    fn after_a_failure_the_eviction_is_refused_with_the_reason() {
        let Ruling::Refuse(message) = scene().migration("Failed", Some("2026-01-01T00:09:30Z"), None).rule() else {
            panic!("it is refused")
        };
        assert!(message.contains("it is so") && message.contains("onFailure"), "{message}");
    }

    #[test]
    fn after_a_failure_the_policy_may_let_the_pod_go() {
        let lenient = policy(json!({ "migration": { "onFailure": "Evict" } }));
        let scene = scene().migration("Failed", Some("2026-01-01T00:09:30Z"), None);
        assert_eq!(scene.with(|scene| scene.policies = vec![lenient]).rule(), Ruling::Allow);
    }

    #[test]
    fn an_old_failure_does_not_keep_the_pod_from_being_tried_again() {
        let scene = scene().migration("Failed", Some("2026-01-01T00:08:00Z"), None);
        assert!(matches!(scene.rule(), Ruling::Wait { create: Some(_), .. }));
    }

    #[test]
    fn a_failure_from_before_the_node_was_cordoned_again_does_not_count() {
        let taint = json!({ "key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule",
                            "timeAdded": "2026-01-01T00:09:45Z" });
        let scene = scene().migration("Failed", Some("2026-01-01T00:09:30Z"), None).with(|scene| {
            let taints = vec![serde_json::from_value(taint).expect("a taint")];
            scene.node.spec.get_or_insert_default().taints = Some(taints);
        });
        assert!(matches!(scene.rule(), Ruling::Wait { create: Some(_), .. }));
    }

    #[test]
    fn a_pod_that_cant_be_moved_is_evicted_and_somebody_is_told() {
        let scene = scene().with(|scene| {
            scene.obstacles = vec![Obstacle { reason: ObstacleReason::Terminal, message: "tty is true".into() }];
        });
        let message = "the pod p is protected but can't be moved: tty is true".to_owned();
        assert_eq!(scene.rule(), Ruling::AllowUnmovable(message));
    }
}
