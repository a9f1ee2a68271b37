//! Why the state of a pod's container is not stored. Pure.
//!
//! A checkpoint is memory and files of one moment. What is not in it, a claim's content above all, would be of another one when the
//! memory comes back.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

/// The first obstacle that the pod's object shows; what its processes show, the preflight finds.
pub fn obstacle(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let foreign = spec.volumes.iter().flatten().find(|volume| !is_stored(volume));
    if let Some(volume) = foreign {
        return Some(format!("the content of the volume {} is not part of a checkpoint", volume.name));
    }
    shared(spec).or_else(|| several(spec)).map(str::to_owned)
}

/// Whether the volume's content is stored, or made by kubelet.
fn is_stored(volume: &Volume) -> bool {
    volume.empty_dir.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn shared(spec: &PodSpec) -> Option<&'static str> {
    let is = |field: Option<bool>| field == Some(true);
    if is(spec.host_network) || is(spec.host_pid) || is(spec.host_ipc) {
        return Some("the pod has a namespace of its node");
    }
    if is(spec.share_process_namespace) {
        return Some("the pod's processes share one PID namespace");
    }
    if spec.host_users == Some(false) {
        return Some("the pod has a user namespace of its own");
    }
    let holds = |container: &Container| {
        is(container.tty) || is(container.security_context.as_ref().and_then(|context| context.privileged))
    };
    if spec.containers.iter().any(holds) {
        return Some("the container has a terminal, or is privileged");
    }
    spec.resource_claims.iter().flatten().next().map(|_| "the pod holds a device")
}

fn several(spec: &PodSpec) -> Option<&'static str> {
    let sidecar = |one: &&Container| one.restart_policy.as_deref() == Some("Always");
    if spec.containers.len() > 1 || spec.init_containers.iter().flatten().any(|one| sidecar(&one)) {
        return Some("the pod has several containers; one is supported");
    }
    spec.ephemeral_containers.iter().flatten().next().map(|_| "a debug container is attached")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(spec: Value, expected: Option<&str>) {
        let pod = serde_json::from_value(json!({ "spec": spec })).expect("a pod");
        let found = obstacle(&pod);
        assert_eq!(found.is_some(), expected.is_some(), "{found:?}");
        assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()));
    }

    #[test]
    fn what_is_not_in_a_checkpoint_stands_in_its_way() {
        let one = json!([{ "name": "app" }]);
        let volumes = |volume: Value| json!({ "containers": one, "volumes": [volume] });
        check(json!({ "containers": one }), None);
        check(volumes(json!({ "name": "v", "emptyDir": {} })), None);
        check(volumes(json!({ "name": "v", "projected": { "sources": [] } })), None);
        check(volumes(json!({ "name": "v", "persistentVolumeClaim": { "claimName": "c" } })), Some("volume v"));
        check(volumes(json!({ "name": "v", "hostPath": { "path": "/x" } })), Some("volume v"));
        check(json!({ "containers": [{ "name": "a" }, { "name": "b" }] }), Some("several"));
        let sidecar = json!([{ "name": "s", "restartPolicy": "Always" }]);
        check(json!({ "containers": one, "initContainers": sidecar }), Some("several"));
        check(json!({ "containers": one, "initContainers": [{ "name": "i" }] }), None);
        check(json!({ "containers": one, "hostNetwork": true }), Some("namespace of its node"));
        check(json!({ "containers": one, "shareProcessNamespace": true }), Some("share"));
        check(json!({ "containers": [{ "name": "a", "tty": true }] }), Some("terminal"));
        check(json!({ "containers": one, "ephemeralContainers": [{ "name": "d" }] }), Some("debug"));
    }
}
