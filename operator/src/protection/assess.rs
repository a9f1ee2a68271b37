//! The status of a ProtectedWorkload. Pure.

use crate::condition::{self, Says};
use crate::pod::obstacles::{ClaimModes, obstacles};
use crate::pod::restarts::restarts;
use crate::pod::seen;
use crate::policy;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tideover_crds::{PodProtection, ProtectedWorkload, ProtectedWorkloadStatus, StartLimitMove, names};

/// The most pods that are listed.
const LISTED: usize = 100;

/// `True` where every selected pod can be moved.
const PROTECTED: &str = "Protected";

/// `True` where a pod that waits at its start limit is not moved because it was moved for that too often.
const MOVED_TOO_OFTEN: &str = "MovedTooOften";

/// What was seen of the pods of a policy.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What is known of each.
    pub(super) pods: Vec<PodProtection>,
    /// Moves for their start limits that count.
    pub(super) moves: Vec<StartLimitMove>,
    /// Why one of them is not moved for that again, a sentence.
    pub(super) bound: Option<String>,
}

/// Why a policy can protect nothing.
#[derive(Debug)]
pub(super) struct Unusable {
    /// CamelCase.
    pub(super) reason: &'static str,
    /// One sentence.
    pub(super) message: String,
}

/// What is known about one pod.
pub(super) fn pod_protection(pod: &Pod, claims: &ClaimModes) -> PodProtection {
    let obstacles = obstacles(pod, claims);
    let class = pod.spec.as_ref().and_then(|spec| spec.runtime_class_name.as_deref());
    PodProtection {
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        node: seen::node(pod).map(str::to_owned),
        movable: obstacles.is_empty(),
        obstacles,
        under_shim: class == Some(names::RUNTIME_CLASS),
        restarts: restarts(pod),
    }
}

/// Whether the status of `workload` says already how the pod's application has ended last.
pub(super) fn says(workload: &ProtectedWorkload, known: &PodProtection) -> bool {
    let mut listed = workload.status.iter().flat_map(|status| &status.pods);
    listed.any(|pod| pod.uid == known.uid && pod.restarts == known.restarts)
}

/// The status of `workload` with what was seen; where there is a reason why nothing can be protected, with that.
pub(super) fn status(
    workload: &ProtectedWorkload,
    seen: Result<Seen, Unusable>,
    now: Timestamp,
) -> ProtectedWorkloadStatus {
    let mut conditions = workload.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default();
    let generation = workload.metadata.generation;
    let (Seen { pods, moves, bound }, (holds, reason, message)) = match seen {
        Ok(seen) => {
            let verdict = verdict(workload, &seen.pods);
            (seen, verdict)
        }
        Err(why) => {
            let moves = workload.status.as_ref().map(|status| status.start_limit_moves.clone()).unwrap_or_default();
            (Seen { moves, ..Seen::default() }, (false, why.reason.to_owned(), why.message))
        }
    };
    let says = Says { holds, reason: &reason, message: &message };
    condition::set(&mut conditions, PROTECTED, &says, generation, now);
    // Most policies never need to say anything of that.
    if bound.is_some() || conditions.iter().any(|condition| condition.type_ == MOVED_TOO_OFTEN) {
        let says = match &bound {
            Some(message) => Says { holds: true, reason: "StartLimit", message },
            None => Says { holds: false, reason: "NoneWaits", message: "no pod waits for a move that it does not get" },
        };
        condition::set(&mut conditions, MOVED_TOO_OFTEN, &says, generation, now);
    }
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    ProtectedWorkloadStatus {
        observed_generation: generation,
        conditions,
        selected: count(pods.len()),
        movable: count(pods.iter().filter(|pod| pod.movable).count()),
        restarts: pods.iter().filter_map(|pod| pod.restarts.as_ref()).fold(0, |sum, pod| sum.saturating_add(pod.count)),
        pods: pods.into_iter().take(LISTED).collect(),
        start_limit_moves: moves,
    }
}

fn verdict(workload: &ProtectedWorkload, pods: &[PodProtection]) -> (bool, String, String) {
    if !policy::moves(workload) {
        return (true, "Ignored".into(), "the policy leaves its pods to Kubernetes".into());
    }
    let told = |reason: &str, message: String| (false, reason.to_owned(), message);
    match pods.iter().find(|pod| !pod.movable) {
        Some(pod) => {
            let first = pod.obstacles.first();
            let reason = first.map_or_else(|| "NotMovable".to_owned(), |obstacle| format!("{:?}", obstacle.reason));
            let why = first.map(|obstacle| obstacle.message.as_str()).unwrap_or("the reason is not known");
            told(&reason, format!("the pod {} can't be moved: {why}", pod.name))
        }
        None if pods.is_empty() => told("NoPods", "the selector selects no pod".to_owned()),
        None => (true, "AllMovable".into(), format!("{} of {} pods can be moved", pods.len(), pods.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tideover_crds::{Obstacle, ObstacleReason};

    fn workload(action: &str) -> ProtectedWorkload {
        let spec: Value =
            json!({ "selector": { "matchLabels": { "app": "x" } }, "onMaintenance": { "action": action } });
        serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "ProtectedWorkload", "metadata": { "name": "w" }, "spec": spec,
        }))
        .expect("a policy")
    }

    fn pod(name: &str, obstacle: Option<&str>) -> PodProtection {
        let obstacles = obstacle.map(|message| Obstacle { reason: ObstacleReason::Terminal, message: message.into() });
        PodProtection {
            name: name.into(),
            uid: "u".into(),
            node: None,
            movable: obstacles.is_none(),
            obstacles: obstacles.into_iter().collect(),
            under_shim: true,
            restarts: None,
        }
    }

    #[test]
    fn the_restarts_of_all_pods_are_one_sum() {
        let last = json!({ "at": "2026-01-01T00:00:00Z", "cause": "Watchdog", "outcome": "Restart", "rule": "Policy" });
        let restarted = |count: i64| {
            let known = json!({ "count": count, "container": "app", "last": last });
            PodProtection { restarts: Some(serde_json::from_value(known).expect("restarts")), ..pod("p", None) }
        };
        let now = Timestamp::from_second(1).expect("a time");
        let pods = vec![restarted(3), pod("q", None), restarted(4)];
        let mut workload = workload("Migrate");
        let status = status(&workload, Ok(Seen { pods, ..Seen::default() }), now);
        assert_eq!(status.restarts, 7);
        assert!(!says(&workload, &restarted(3)));
        workload.status = Some(status);
        assert!(says(&workload, &restarted(3)) && !says(&workload, &restarted(5)));
    }

    #[track_caller]
    fn check(action: &str, pods: Vec<PodProtection>, status_: &str, reason: &str, message: &str) {
        let now = Timestamp::from_second(1).expect("a time");
        let seen = Seen { pods, ..Seen::default() };
        let told = status(&workload(action), Ok(seen), now).conditions.remove(0);
        assert_eq!((&*told.status, &*told.reason, &*told.message), (status_, reason, message));
    }

    #[test]
    fn that_a_pod_was_moved_too_often_is_told_for_as_long_as_it_waits() {
        let now = Timestamp::from_second(1).expect("a time");
        let said = |workload: &ProtectedWorkload, bound: Option<&str>| {
            let status = status(workload, Ok(Seen { bound: bound.map(str::to_owned), ..Seen::default() }), now);
            let told = status.conditions.iter().find(|condition| condition.type_ == "MovedTooOften");
            (told.map(|told| (told.status.clone(), told.message.clone())), status)
        };
        let mut workload = workload("Migrate");
        assert_eq!(said(&workload, None).0, None);
        let (told, status) = said(&workload, Some("three times"));
        assert_eq!(told, Some(("True".into(), "three times".into())));
        workload.status = Some(status);
        assert_eq!(said(&workload, None).0.map(|told| told.0), Some("False".into()));
    }

    #[test]
    fn moves_are_remembered_while_a_policy_can_not_be_used() {
        let now = Timestamp::from_second(1).expect("a time");
        let at = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now);
        let moves = vec![StartLimitMove { migration: "m".into(), pod_uid: "u".into(), at }];
        let mut workload = workload("Migrate");
        workload.status = Some(status(&workload, Ok(Seen { moves: moves.clone(), ..Seen::default() }), now));
        let unusable = Unusable { reason: "InvalidSelector", message: "m".into() };
        assert_eq!(status(&workload, Err(unusable), now).start_limit_moves, moves);
    }

    #[test]
    fn a_workload_whose_pods_can_all_be_moved_is_protected() {
        check("Migrate", vec![pod("p", None)], "True", "AllMovable", "1 of 1 pods can be moved");
    }

    #[test]
    fn the_first_obstacle_is_the_reason() {
        let pods = vec![pod("p", None), pod("q", Some("tty is true"))];
        check("Migrate", pods, "False", "Terminal", "the pod q can't be moved: tty is true");
    }

    #[test]
    fn nothing_to_protect_is_no_protection() {
        check("Migrate", Vec::new(), "False", "NoPods", "the selector selects no pod");
    }

    #[test]
    fn what_is_left_to_kubernetes_is_as_was_asked_for() {
        let message = "the policy leaves its pods to Kubernetes";
        check("Ignore", vec![pod("q", Some("tty is true"))], "True", "Ignored", message);
    }
}
