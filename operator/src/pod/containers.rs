//! Which containers of a pod move, and in which order kubelet starts them. Pure.

use k8s_openapi::api::core::v1::{Container, PodSpec};

/// The containers of a pod that run as long as it does, in the order in which kubelet starts them: sidecars, then the others, each
/// as they stand in the spec. Source: `computePodActions` of kubelet's `kuberuntime_manager.go`.
pub fn moving(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().filter(|one| is_sidecar(one)).chain(&spec.containers)
}

/// Whether an init container goes on running beside the pod.
pub fn is_sidecar(init: &Container) -> bool {
    init.restart_policy.as_deref() == Some("Always")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sidecars_start_first_and_init_containers_that_end_do_not_move() {
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [{ "name": "setup" }, { "name": "proxy", "restartPolicy": "Always" }],
            "containers": [{ "name": "log" }, { "name": "app" }],
        }))
        .expect("a spec");
        let names: Vec<_> = moving(&spec).map(|container| container.name.as_str()).collect();
        assert_eq!(names, ["proxy", "log", "app"]);
    }
}
