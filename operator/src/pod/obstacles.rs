//! Why a pod can't be moved, from its object alone: shown before any maintenance, and asked again before a move.

use super::containers::{is_sidecar, moving};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use std::collections::BTreeMap;
use tideover_crds::{Obstacle, ObstacleReason, names};

/// Access modes of the PersistentVolumeClaims of a pod, by claim name. A claim that is not in it is not known.
pub type ClaimModes = BTreeMap<String, Vec<String>>;

/// Volume kinds whose content kubelet makes anew on the target, or that the agents carry along.
const SUPPORTED_VOLUMES: [&str; 5] = ["emptyDir", "configMap", "secret", "downwardAPI", "projected"];

/// The annotation that an Indexed Job gives its pods.
const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// Every obstacle of `pod`, the most fundamental first.
pub fn obstacles(pod: &Pod, claims: &ClaimModes) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let Some(spec) = &pod.spec else { return found };
    owner(pod, &mut found);
    host(spec, &mut found);
    several(spec, &mut found);
    containers(spec, &mut found);
    devices(spec, &mut found);
    for volume in spec.volumes.iter().flatten() {
        found.extend(unsupported_volume(volume, claims));
    }
    running(pod, spec, &mut found);
    found
}

fn push(found: &mut Vec<Obstacle>, reason: ObstacleReason, message: impl Into<String>) {
    found.push(Obstacle { reason, message: message.into() });
}

fn owner(pod: &Pod, found: &mut Vec<Obstacle>) {
    let controller = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let mirror = pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key("kubernetes.io/config.mirror"));
    match controller {
        _ if mirror => push(found, ObstacleReason::UnsupportedOwner, "the pod is a static pod of its node"),
        Some(owner) if matches!(owner.kind.as_str(), "DaemonSet" | "Node") => {
            let message = format!("the pod belongs to its node: its owner is the {} {}", owner.kind, owner.name);
            push(found, ObstacleReason::UnsupportedOwner, message);
        }
        Some(owner) if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(COMPLETION_INDEX)) => {
            let message =
                format!("the Job {} is Indexed: it may give the index of this pod to another one", owner.name);
            push(found, ObstacleReason::UnsupportedOwner, message);
        }
        _ => {}
    }
}

fn host(spec: &PodSpec, found: &mut Vec<Obstacle>) {
    if spec.host_network == Some(true) {
        push(found, ObstacleReason::HostNetwork, "hostNetwork is true: the pod's address belongs to the node");
    }
    if spec.host_pid == Some(true) {
        push(found, ObstacleReason::HostPid, "hostPID is true: the pod shares the node's process ids");
    }
    if spec.host_ipc == Some(true) {
        push(found, ObstacleReason::HostIpc, "hostIPC is true: the pod shares the node's IPC objects");
    }
    if spec.host_users == Some(false) {
        push(found, ObstacleReason::UserNamespace, "hostUsers is false: the pod has a user namespace of its own");
    }
    if let Some(class) = spec.runtime_class_name.as_ref().filter(|class| *class != names::RUNTIME_CLASS) {
        let message = format!("runtimeClassName is {class}: only pods of the runtime class tideover are restored");
        push(found, ObstacleReason::RuntimeClass, message);
    }
    if spec.share_process_namespace == Some(true) {
        let message = "shareProcessNamespace is true: the pod's processes share one PID namespace";
        push(found, ObstacleReason::SharedProcessNamespace, message);
    }
}

/// What is in the way of moving several containers at one cut. On the target, kubelet creates each once it takes the one before it
/// for started, and none of them works before the last was created.
fn several(spec: &PodSpec, found: &mut Vec<Obstacle>) {
    let moving: Vec<&Container> = moving(spec).collect();
    let [early @ .., _] = moving.as_slice() else { return };
    let has_hook =
        |container: &&&Container| container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some());
    for container in early.iter().filter(has_hook) {
        let message = format!(
            "the container {} has a postStart hook, which would run on the target before its processes are there",
            container.name
        );
        push(found, ObstacleReason::SeveralContainers, message);
    }
    let mut sidecar: Option<&Container> = None;
    for init in spec.init_containers.iter().flatten() {
        if !is_sidecar(init) {
            if let Some(sidecar) = sidecar {
                let message = format!(
                    "the init container {} follows the sidecar {}, and would run on the target before that is there",
                    init.name, sidecar.name
                );
                push(found, ObstacleReason::Sidecar, message);
            }
            continue;
        }
        sidecar = Some(init);
        if init.startup_probe.is_some() {
            let message = format!(
                "the sidecar {} has a startupProbe, which kubelet would wait for on the target before it is there",
                init.name
            );
            push(found, ObstacleReason::Sidecar, message);
        }
    }
}

fn containers(spec: &PodSpec, found: &mut Vec<Obstacle>) {
    for (init, claim) in init_containers_with_claims(spec) {
        let message =
            format!("the init container {init} would run again on the claim {claim} while the application uses it");
        push(found, ObstacleReason::InitContainer, message);
    }
    for one in spec.ephemeral_containers.iter().flatten() {
        let message = format!("the debug container {} is attached", one.name);
        push(found, ObstacleReason::EphemeralContainer, message);
    }
    for container in moving(spec) {
        if container.tty == Some(true) {
            let message = format!("tty is true for the container {}: its terminal does not move", container.name);
            push(found, ObstacleReason::Terminal, message);
        }
        let privileged = container.security_context.as_ref().and_then(|context| context.privileged);
        if privileged == Some(true) {
            let message = format!("the container {} is privileged: it may hold devices of the node", container.name);
            push(found, ObstacleReason::Privileged, message);
        }
    }
}

/// Init containers that end and that mount a PersistentVolumeClaim, each with the claim.
fn init_containers_with_claims(spec: &PodSpec) -> impl Iterator<Item = (&str, &str)> {
    let claim_of = |name: &str| {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name)?;
        Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str())
    };
    spec.init_containers.iter().flatten().filter(|init| !is_sidecar(init)).filter_map(move |init| {
        let claim = init.volume_mounts.iter().flatten().find_map(|mount| claim_of(&mount.name))?;
        Some((init.name.as_str(), claim))
    })
}

fn devices(spec: &PodSpec, found: &mut Vec<Obstacle>) {
    if spec.resource_claims.iter().flatten().next().is_some() {
        push(found, ObstacleReason::Device, "the pod has resourceClaims: it holds a device");
    }
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        for device in extended_resources(container) {
            let message = format!("the container {} asks for {device}: it holds a device", container.name);
            push(found, ObstacleReason::Device, message);
        }
    }
}

/// Resources with a domain in their name are handed out by a device plugin.
fn extended_resources(container: &Container) -> impl Iterator<Item = &String> {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    limits.into_iter().flat_map(BTreeMap::keys).filter(|name| name.contains('/'))
}

fn unsupported_volume(volume: &Volume, claims: &ClaimModes) -> Option<Obstacle> {
    let kind = volume_kind(volume);
    let reason = ObstacleReason::UnsupportedVolume;
    let medium = volume.empty_dir.as_ref().and_then(|volume| volume.medium.as_deref());
    if let Some(medium) = medium.filter(|medium| medium.starts_with("HugePages")) {
        let message =
            format!("the volume {} is an emptyDir of the medium {medium}, whose files can only be mapped", volume.name);
        return Some(Obstacle { reason, message });
    }
    if SUPPORTED_VOLUMES.contains(&kind.as_str()) {
        return None;
    }
    let Some(claim) = &volume.persistent_volume_claim else {
        let message = format!("the volume {} is of the kind {kind}, which can't follow the pod", volume.name);
        return Some(Obstacle { reason, message });
    };
    let modes = claims.get(&claim.claim_name);
    if modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteMany")) {
        return None;
    }
    let modes = modes.map_or_else(|| "not known".to_owned(), |modes| modes.join(", "));
    let message = format!(
        "the volume {} uses the PersistentVolumeClaim {}, which is not ReadWriteMany ({modes}): two nodes can't mount it at a time",
        volume.name, claim.claim_name
    );
    Some(Obstacle { reason, message })
}

/// The field of the volume that is set, as the API names it. One without any is an emptyDir.
fn volume_kind(volume: &Volume) -> String {
    let fields = match serde_json::to_value(volume) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => return "unknown".to_owned(),
    };
    fields.into_iter().map(|(key, _)| key).find(|key| key != "name").unwrap_or_else(|| "emptyDir".to_owned())
}

fn running(pod: &Pod, spec: &PodSpec, found: &mut Vec<Obstacle>) {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
    if phase != "Running" {
        return push(found, ObstacleReason::NotRunning, format!("the pod is not running: it is {phase}"));
    }
    let statuses = status.into_iter().flat_map(|status| [&status.init_container_statuses, &status.container_statuses]);
    let stopped = statuses
        .flat_map(|statuses| statuses.iter().flatten())
        .filter(|container| moving(spec).any(|moves| moves.name == container.name))
        .find(|container| container.state.as_ref().is_none_or(|state| state.running.is_none()));
    if let Some(container) = stopped {
        push(found, ObstacleReason::NotRunning, format!("the container {} does not run", container.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        let mut value = json!({
            "metadata": { "name": "p" },
            "spec": { "containers": [{ "name": "c" }] },
            "status": { "phase": "Running" },
        });
        json_patch::merge(&mut value["spec"], &spec);
        serde_json::from_value(value).expect("a pod")
    }

    #[track_caller]
    fn check(spec: Value, reason: ObstacleReason, message: &str) {
        let found = obstacles(&pod(spec), &ClaimModes::new());
        assert_eq!(found, [Obstacle { reason, message: message.to_owned() }]);
    }

    #[test]
    fn an_ordinary_pod_has_none() {
        let spec = json!({ "volumes": [
            { "name": "a", "emptyDir": {} }, { "name": "b", "configMap": { "name": "x" } },
            { "name": "c", "secret": {} }, { "name": "d", "downwardAPI": {} }, { "name": "e", "projected": {} },
        ]});
        assert_eq!(obstacles(&pod(spec), &ClaimModes::new()), []);
    }

    #[test]
    fn a_volume_that_stays_is_named_with_its_kind() {
        let spec = json!({ "volumes": [{ "name": "data", "hostPath": { "path": "/srv" } }] });
        let message = "the volume data is of the kind hostPath, which can't follow the pod";
        check(spec, ObstacleReason::UnsupportedVolume, message);
    }

    #[test]
    fn an_empty_dir_of_huge_pages_is_named_with_its_medium() {
        let volume = |medium: &str| json!({ "volumes": [{ "name": "pool", "emptyDir": { "medium": medium } }] });
        for medium in ["HugePages", "HugePages-2Mi"] {
            let message =
                format!("the volume pool is an emptyDir of the medium {medium}, whose files can only be mapped");
            check(volume(medium), ObstacleReason::UnsupportedVolume, &message);
        }
        assert_eq!(obstacles(&pod(volume("Memory")), &ClaimModes::new()), []);
    }

    #[test]
    fn a_claim_that_several_nodes_may_mount_is_no_obstacle() {
        let spec = json!({ "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "c" } }] });
        let modes = |mode: &str| ClaimModes::from([("c".to_owned(), vec![mode.to_owned()])]);
        assert_eq!(obstacles(&pod(spec.clone()), &modes("ReadWriteMany")), []);
        assert_eq!(obstacles(&pod(spec.clone()), &modes("ReadWriteOnce")).len(), 1);
        assert_eq!(obstacles(&pod(spec), &ClaimModes::new()).len(), 1);
    }

    #[test]
    fn an_init_container_is_in_the_way_where_it_mounts_a_claim() {
        let spec = |mounts: serde_json::Value| {
            json!({ "initContainers": [{ "name": "prepare", "volumeMounts": mounts }],
                "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "shared" } }] })
        };
        let shared = ClaimModes::from([("shared".to_owned(), vec!["ReadWriteMany".to_owned()])]);
        assert_eq!(obstacles(&pod(spec(json!([]))), &shared), []);
        let found = obstacles(&pod(spec(json!([{ "name": "data", "mountPath": "/data" }]))), &shared);
        let reasons: Vec<_> = found.iter().map(|obstacle| obstacle.reason).collect();
        assert_eq!(reasons, [ObstacleReason::InitContainer]);
        let message = "the init container prepare would run again on the claim shared while the application uses it";
        assert_eq!(found[0].message, message);
    }

    #[test]
    fn a_terminal_is_named_with_its_container() {
        let spec = json!({ "containers": [{ "name": "c", "tty": true }] });
        check(spec, ObstacleReason::Terminal, "tty is true for the container c: its terminal does not move");
    }

    #[test]
    fn the_nodes_network_is_named() {
        let message = "hostNetwork is true: the pod's address belongs to the node";
        check(json!({ "hostNetwork": true }), ObstacleReason::HostNetwork, message);
    }

    #[test]
    fn a_device_is_named() {
        let limits = json!({ "limits": { "cpu": "1", "hugepages-2Mi": "4Mi", "example.com/gpu": "1" } });
        let spec = json!({ "containers": [{ "name": "c", "resources": limits }] });
        check(spec, ObstacleReason::Device, "the container c asks for example.com/gpu: it holds a device");
    }

    #[test]
    fn each_way_of_sharing_with_the_node_is_one_obstacle() {
        for (spec, reason) in [
            (json!({ "hostPID": true }), ObstacleReason::HostPid),
            (json!({ "hostIPC": true }), ObstacleReason::HostIpc),
            (json!({ "hostUsers": false }), ObstacleReason::UserNamespace),
            (json!({ "shareProcessNamespace": true }), ObstacleReason::SharedProcessNamespace),
            (json!({ "runtimeClassName": "gvisor" }), ObstacleReason::RuntimeClass),
            (json!({ "resourceClaims": [{ "name": "gpu" }] }), ObstacleReason::Device),
            (json!({ "ephemeralContainers": [{ "name": "debug" }] }), ObstacleReason::EphemeralContainer),
            (
                json!({ "containers": [{ "name": "c", "securityContext": { "privileged": true } }] }),
                ObstacleReason::Privileged,
            ),
        ] {
            let reasons: Vec<_> =
                obstacles(&pod(spec.clone()), &ClaimModes::new()).into_iter().map(|o| o.reason).collect();
            assert_eq!(reasons, [reason], "{spec}");
        }
    }

    #[test]
    fn which_index_a_jobs_next_pod_gets_is_not_known() {
        let mut pod = pod(json!({ "containers": [{ "name": "c" }] }));
        let owner = json!({ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "u", "controller": true });
        pod.metadata.owner_references = Some(vec![serde_json::from_value(owner).expect("an owner")]);
        assert!(obstacles(&pod, &ClaimModes::new()).is_empty());
        pod.metadata.annotations = Some([(COMPLETION_INDEX.to_owned(), "3".to_owned())].into());
        let found = obstacles(&pod, &ClaimModes::new());
        assert_eq!(found[0].reason, ObstacleReason::UnsupportedOwner);
        assert!(found[0].message.contains("Job j is Indexed"), "{}", found[0].message);
    }

    #[test]
    fn several_containers_and_sidecars_are_no_obstacle() {
        let hook = json!({ "postStart": { "exec": { "command": ["true"] } } });
        let spec = json!({
            "initContainers": [{ "name": "setup" }, { "name": "proxy", "restartPolicy": "Always" }],
            "containers": [{ "name": "log" }, { "name": "app", "lifecycle": hook }],
        });
        assert_eq!(obstacles(&pod(spec), &ClaimModes::new()), []);
    }

    #[test]
    fn a_container_that_must_work_before_the_next_is_created_is_named() {
        let hook = json!({ "postStart": { "exec": { "command": ["true"] } } });
        let sidecar = |more: Value| {
            let mut sidecar = json!({ "name": "proxy", "restartPolicy": "Always" });
            json_patch::merge(&mut sidecar, &more);
            sidecar
        };
        for (spec, reason, message) in [
            (
                json!({ "containers": [{ "name": "log", "lifecycle": hook }, { "name": "app" }] }),
                ObstacleReason::SeveralContainers,
                "the container log has a postStart hook, which would run on the target before its processes are there",
            ),
            (
                json!({ "initContainers": [sidecar(json!({ "startupProbe": { "exec": { "command": ["true"] } } }))] }),
                ObstacleReason::Sidecar,
                "the sidecar proxy has a startupProbe, which kubelet would wait for on the target before it is there",
            ),
            (
                json!({ "initContainers": [sidecar(json!({})), { "name": "setup" }] }),
                ObstacleReason::Sidecar,
                "the init container setup follows the sidecar proxy, and would run on the target before that is there",
            ),
            (
                json!({ "initContainers": [sidecar(json!({ "tty": true }))] }),
                ObstacleReason::Terminal,
                "tty is true for the container proxy: its terminal does not move",
            ),
        ] {
            let found = obstacles(&pod(spec), &ClaimModes::new());
            assert_eq!(found, [Obstacle { reason, message: message.to_owned() }]);
        }
    }

    #[test]
    fn a_sidecar_that_has_ended_does_not_run_and_an_init_container_that_has_is_as_it_should_be() {
        let mut one = pod(json!({ "initContainers": [
            { "name": "setup" }, { "name": "proxy", "restartPolicy": "Always" },
        ] }));
        let ended = |name: &str| {
            json!({ "name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                    "state": { "terminated": { "exitCode": 0 } } })
        };
        let statuses = serde_json::from_value(json!([ended("setup"), ended("proxy")])).expect("statuses");
        one.status.as_mut().expect("a status").init_container_statuses = Some(statuses);
        let found = obstacles(&one, &ClaimModes::new());
        assert_eq!(found[0].message, "the container proxy does not run");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_pod_of_a_daemon_set_belongs_to_its_node() {
        let mut one = pod(json!({}));
        let owner =
            json!({ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "uid": "u", "controller": true });
        one.metadata.owner_references = Some(vec![serde_json::from_value(owner).expect("an owner")]);
        assert_eq!(obstacles(&one, &ClaimModes::new())[0].reason, ObstacleReason::UnsupportedOwner);
    }

    #[test]
    fn a_pod_that_waits_is_not_running() {
        let mut one = pod(json!({}));
        one.status.as_mut().expect("a status").phase = Some("Pending".into());
        assert_eq!(obstacles(&one, &ClaimModes::new())[0].message, "the pod is not running: it is Pending");
    }
}
