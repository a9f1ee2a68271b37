//! A pod's object reduced to what a move depends on.

use super::obstacles::{ClaimModes, obstacles};
use super::{containers, manifest, rehearsal};
use crate::transition::{Claim, Controller, PodSeen, RunState, SourceSeen};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tideover_crds::names;

/// What any pod is to a move.
pub fn pod_seen(pod: &Pod) -> PodSeen {
    let meta = &pod.metadata;
    let terminating = meta.deletion_timestamp.is_some();
    PodSeen {
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        node: node(pod).map(str::to_owned),
        terminating,
        force_deleted: terminating && meta.deletion_grace_period_seconds == Some(0),
        state: pod.status.as_ref().map_or(RunState::Pending, |status| run_state(pod, status)),
        unschedulable: pod.status.as_ref().and_then(unschedulable),
    }
}

/// What the pod to be moved is to the move.
pub fn source_seen(pod: &Pod, claims: &ClaimModes, claim: Claim) -> SourceSeen {
    let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name)).cloned();
    SourceSeen {
        pod: pod_seen(pod),
        containers: moving_names(pod),
        obstacles: obstacles(pod, claims),
        rehearsal_obstacle: rehearsal::obstacle(pod),
        claim,
        controller: controller(pod).map(|owner| Controller { kind: owner.kind.clone(), uid: owner.uid.clone() }),
        template_hash: label(names::POD_TEMPLATE_HASH),
        original_template_hash: annotation(pod, names::ORIGINAL_TEMPLATE_HASH).map(str::to_owned),
        in_job: in_job(pod),
        manifest: manifest::again(pod),
    }
}

fn in_job(pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let has_label = names::JOB_LABELS.iter().any(|name| labels.is_some_and(|labels| labels.contains_key(*name)));
    controller(pod).is_some_and(|owner| owner.kind == "Job") && has_label
}

fn moving_names(pod: &Pod) -> Vec<String> {
    pod.spec.iter().flat_map(containers::moving).map(|container| container.name.clone()).collect()
}

/// True of a pod that the operator made for a move and that runs nothing of an application: a reservation or a rehearsal.
pub fn stands_beside(pod: &Pod) -> bool {
    let reserves = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(names::RESERVATION_FOR));
    reserves || annotation(pod, names::REHEARSAL_OF).is_some()
}

/// The node that a pod is bound to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}

/// The controller that owns a pod.
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The value of an annotation.
pub fn annotation<'a>(pod: &'a Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn run_state(pod: &Pod, status: &PodStatus) -> RunState {
    match status.phase.as_deref() {
        // kubelet also calls a pod so whose container could not be started and will be tried again.
        Some("Running") if has_run(pod, status) => RunState::Running,
        Some("Failed") if !has_run(pod, status) => RunState::TurnedAway,
        Some("Succeeded" | "Failed") => RunState::Ended,
        _ => RunState::Pending,
    }
}

/// Whether the pod has run at some time: its last container has, which is created when those before it are. Of those kubelet also
/// says so where only their stand-ins have been there. One that could not be started has no time of its start, or the epoch.
fn has_run(pod: &Pod, status: &PodStatus) -> bool {
    let last = pod.spec.as_ref().and_then(|spec| spec.containers.last());
    let of_last =
        status.container_statuses.iter().flatten().filter(|one| last.is_some_and(|last| last.name == one.name));
    let states = of_last.flat_map(|one| [&one.state, &one.last_state]).flatten();
    let starts = states.flat_map(|state| {
        let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
        let ended = state.terminated.as_ref().and_then(|ended| ended.started_at.as_ref());
        [running, ended]
    });
    starts.flatten().any(|started| started.0 > Timestamp::UNIX_EPOCH)
}

fn unschedulable(status: &PodStatus) -> Option<String> {
    let scheduled = status.conditions.iter().flatten().find(|condition| condition.type_ == "PodScheduled")?;
    if scheduled.status == "True" { None } else { scheduled.message.clone().or_else(|| scheduled.reason.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: serde_json::Value) -> Pod {
        let spec = json!({ "containers": [{ "name": "first" }, { "name": "c" }] });
        serde_json::from_value(json!({ "metadata": { "name": "p", "uid": "u" }, "spec": spec, "status": status }))
            .expect("a pod")
    }

    #[test]
    fn a_pod_that_kubelet_refused_was_turned_away() {
        let seen = pod_seen(&pod(json!({ "phase": "Failed", "reason": "OutOfcpu" })));
        assert_eq!(seen.state, RunState::TurnedAway);
    }

    #[test]
    fn a_pod_whose_container_failed_has_ended() {
        let containers = json!([{ "name": "c", "containerID": "containerd://1", "image": "", "imageID": "",
            "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": 1, "startedAt": "2026-01-01T00:00:00Z" } } }]);
        let seen = pod_seen(&pod(json!({ "phase": "Failed", "containerStatuses": containers })));
        assert_eq!(seen.state, RunState::Ended);
    }

    #[test]
    fn a_pod_whose_container_could_not_be_started_has_not_run() {
        let state = |last: serde_json::Value| {
            let containers = json!([{ "name": "c", "containerID": "containerd://1", "image": "", "imageID": "",
                "ready": false, "restartCount": 1, "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                "lastState": { "terminated": last } }]);
            pod_seen(&pod(json!({ "phase": "Running", "containerStatuses": containers }))).state
        };
        let failed = json!({ "exitCode": 128, "reason": "StartError", "startedAt": "1970-01-01T00:00:00Z" });
        assert_eq!(state(failed), RunState::Pending);
        assert_eq!(state(json!({ "exitCode": 1, "startedAt": "2026-01-01T00:00:00Z" })), RunState::Running);
    }

    #[test]
    fn a_pod_of_which_only_stand_ins_have_been_there_has_not_run() {
        let state = |name: &str| {
            let containers = json!([{ "name": name, "containerID": "containerd://1", "image": "", "imageID": "",
                "ready": false, "restartCount": 0,
                "state": { "terminated": { "exitCode": 137, "startedAt": "2026-01-01T00:00:00Z" } } }]);
            pod_seen(&pod(json!({ "phase": "Failed", "containerStatuses": containers }))).state
        };
        assert_eq!(state("first"), RunState::TurnedAway);
        assert_eq!(state("c"), RunState::Ended);
    }

    #[test]
    fn a_pod_is_in_its_job_until_that_has_no_label_to_know_it_by() {
        let seen = |kind: &str, labels: serde_json::Value| {
            let owner = json!({ "apiVersion": "batch/v1", "kind": kind, "name": "o", "uid": "ou", "controller": true });
            let meta = json!({ "name": "p", "labels": labels, "ownerReferences": [owner] });
            let pod = serde_json::from_value(json!({ "metadata": meta })).expect("a pod");
            source_seen(&pod, &ClaimModes::new(), Claim::Free).in_job
        };
        for label in names::JOB_LABELS {
            assert!(seen("Job", json!({ label: "ou", "app": "x" })), "{label}");
            assert!(!seen("StatefulSet", json!({ label: "ou" })), "{label}");
        }
        assert!(!seen("Job", json!({ "app": "x" })));
    }

    #[test]
    fn the_schedulers_words_are_kept() {
        let conditions = json!([{ "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" }]);
        let seen = pod_seen(&pod(json!({ "phase": "Pending", "conditions": conditions })));
        assert_eq!(seen.unschedulable.as_deref(), Some("0/3 nodes are available"));
    }
}
