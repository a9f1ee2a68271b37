//! The rehearsal pod: the source once more on the target, for a restore that never runs.
//!
//! It looks to the processes like the pod that they come from, and to everybody else like none of the application's: no label
//! that a Service, a PodDisruptionBudget or a controller could select, no port, no probe, and no claim on resources, because
//! the reservation holds the room. Its annotation keeps its containers from ever starting cold.

use super::containers::moving;
use super::manifest;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;
use tideover_crds::names;

/// The longest name of a host, bytes.
const HOSTNAME_MAX: usize = 63;

/// Why a move of `pod` is not rehearsed, if it can't be.
///
/// CRIU puts deleted files back and takes file locks while it restores: in a volume that the source is using, an early copy
/// would get in its way.
pub fn obstacle(pod: &Pod) -> Option<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    if let Some(claim) = volumes.filter_map(|volume| volume.persistent_volume_claim.as_ref()).next() {
        return Some(format!("an early copy must not touch the PersistentVolumeClaim {}", claim.claim_name));
    }
    let mut mounts = pod.spec.iter().flat_map(moving).flat_map(|container| container.volume_mounts.iter().flatten());
    let named = mounts.find(|mount| mount.sub_path_expr.is_some())?;
    Some(format!("the mount {} is named after the pod, and a rehearsal has another name", named.mount_path))
}

/// Builds the rehearsal `name` of `source` on the node `target`. `owner` is the Migration: with it, the rehearsal goes.
pub fn rehearsal(source: &Pod, name: &str, target: &str, owner: OwnerReference) -> Pod {
    let stamp = BTreeMap::from([(names::REHEARSAL_OF.to_owned(), owner.name.clone())]);
    let mut pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: source.metadata.namespace.clone(),
            annotations: Some(stamp),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: Some(PodSpec {
            // kube-scheduler has chosen the node for the reservation; asked again, it would want room for both.
            node_name: Some(target.to_owned()),
            hostname: hostname(source),
            ..held(source.spec.clone().unwrap_or_default())
        }),
        status: None,
    };
    manifest::protect(&mut pod);
    pod
}

/// The spec without what places the pod, watches over it, or runs before its containers. A sidecar is one of them: what it has to work
/// for does not run either.
fn held(spec: PodSpec) -> PodSpec {
    PodSpec {
        containers: moving(&spec).cloned().map(held_container).collect(),
        init_containers: None,
        ephemeral_containers: None,
        affinity: None,
        node_selector: None,
        topology_spread_constraints: None,
        scheduling_gates: None,
        readiness_gates: None,
        priority_class_name: None,
        priority: None,
        preemption_policy: None,
        overhead: None,
        resources: None,
        active_deadline_seconds: None,
        restart_policy: Some("Never".to_owned()),
        termination_grace_period_seconds: Some(0),
        ..spec
    }
}

fn held_container(container: Container) -> Container {
    Container {
        ports: None,
        resources: None,
        resize_policy: None,
        lifecycle: None,
        startup_probe: None,
        liveness_probe: None,
        readiness_probe: None,
        restart_policy: None,
        restart_policy_rules: None,
        ..container
    }
}

/// The name that the source's host has, where a spec can say it: the name of a pod may have dots, a hostname may not.
fn hostname(source: &Pod) -> Option<String> {
    let given = source.spec.as_ref().and_then(|spec| spec.hostname.clone()).filter(|name| !name.is_empty());
    let name = given.or_else(|| source.metadata.name.clone())?;
    let name = name[..name.len().min(HOSTNAME_MAX)].trim_end_matches(['-', '.']);
    (!name.contains('.')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn made(spec: Value) -> Value {
        let mut source = json!({
            "metadata": { "name": "p", "namespace": "ns", "uid": "u", "labels": { "app": "x" },
                          "annotations": { "note": "n", names::CLAIMED_BY: "m" } },
            "spec": { "containers": [{ "name": "c" }], "nodeName": "a" },
        });
        json_patch::merge(&mut source["spec"], &spec);
        let owner = OwnerReference { name: "m".into(), uid: "mu".into(), ..Default::default() };
        let source = serde_json::from_value(source).expect("a pod");
        serde_json::to_value(rehearsal(&source, "m-rehearsal-1", "b", owner)).expect("JSON")
    }

    #[test]
    fn nobody_takes_it_for_the_applications() {
        let pod = made(json!({}));
        assert_eq!(pod["metadata"]["name"], "m-rehearsal-1");
        assert_eq!(pod["metadata"].get("labels"), None);
        assert_eq!(
            pod["metadata"]["annotations"],
            json!({ names::REHEARSAL_OF: "m", names::TIME_NAMESPACE: "true" }),
            "the stamp, and nothing of the source's"
        );
        assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], "mu");
    }

    #[test]
    fn it_is_on_the_target_whatever_room_there_is() {
        let pod = made(json!({
            "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" }, "limits": { "cpu": "1" } } }],
            "resources": { "requests": { "cpu": "1" } }, "nodeSelector": { "disk": "ssd" },
            "priorityClassName": "high", "priority": 7,
        }));
        assert_eq!(pod["spec"]["nodeName"], "b");
        for gone in ["resources", "nodeSelector", "affinity", "priorityClassName", "priority"] {
            assert_eq!(pod["spec"].get(gone), None, "{gone}");
        }
        assert_eq!(pod["spec"]["containers"], json!([{ "name": "c" }]));
    }

    #[test]
    fn nothing_runs_in_it_and_nothing_is_asked_of_it() {
        let probe = json!({ "tcpSocket": { "port": 1 } });
        let pod = made(json!({
            "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 1, "hostPort": 1 }],
                "livenessProbe": probe, "readinessProbe": probe, "startupProbe": probe,
                "lifecycle": { "postStart": { "exec": { "command": ["x"] } } } }],
            "initContainers": [{ "name": "i" }], "readinessGates": [{ "conditionType": "x" }],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "activeDeadlineSeconds": 5,
        }));
        assert_eq!(pod["spec"]["containers"], json!([{ "name": "c", "image": "i" }]));
        for gone in ["initContainers", "readinessGates", "activeDeadlineSeconds"] {
            assert_eq!(pod["spec"].get(gone), None, "{gone}");
        }
        assert_eq!(pod["spec"]["restartPolicy"], "Never");
        assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 0);
        assert_eq!(pod["spec"]["runtimeClassName"], names::RUNTIME_CLASS);
    }

    #[test]
    fn sidecars_are_restored_like_the_others_and_before_them() {
        let pod = made(json!({
            "containers": [{ "name": "c" }],
            "initContainers": [{ "name": "i" }, { "name": "s", "restartPolicy": "Always" }],
        }));
        assert_eq!(pod["spec"]["containers"], json!([{ "name": "s" }, { "name": "c" }]));
        assert_eq!(pod["spec"].get("initContainers"), None);
    }

    #[test]
    fn the_processes_find_the_host_and_the_volumes_that_they_know() {
        let volumes = json!([{ "name": "data", "emptyDir": {} }]);
        let pod = made(json!({ "volumes": volumes, "serviceAccountName": "sa" }));
        assert_eq!(pod["spec"]["hostname"], "p");
        assert_eq!(pod["spec"]["volumes"], volumes);
        assert_eq!(pod["spec"]["serviceAccountName"], "sa");
        assert_eq!(made(json!({ "hostname": "given" }))["spec"]["hostname"], "given");
    }

    #[test]
    fn a_name_that_is_no_hostname_is_left_out() {
        let mut source = Pod::default();
        source.metadata.name = Some("a.b".into());
        assert_eq!(hostname(&source), None);
        source.metadata.name = Some(format!("{}-{}", "x".repeat(62), "y"));
        assert_eq!(hostname(&source), Some("x".repeat(62)));
    }

    #[test]
    fn a_pod_with_a_claim_is_not_rehearsed() {
        let pod = |volume: Value| -> Pod {
            let mut volume = volume;
            volume["name"] = json!("v");
            serde_json::from_value(json!({ "spec": { "containers": [], "volumes": [volume] } })).expect("a pod")
        };
        let claim = pod(json!({ "persistentVolumeClaim": { "claimName": "shared" } }));
        assert_eq!(obstacle(&claim).as_deref(), Some("an early copy must not touch the PersistentVolumeClaim shared"));
        for fine in ["emptyDir", "configMap", "secret", "projected", "downwardAPI"] {
            assert_eq!(obstacle(&pod(json!({ fine: {} }))), None, "{fine}");
        }
    }
}
