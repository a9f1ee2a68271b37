//! A pod's object made fit to be created once more under the same name: for pods that no controller makes again.

use super::pin;
use super::seen::{annotation, node};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use std::collections::BTreeMap;
use thiserror::Error;
use tideover_crds::{CheckpointPolicy, RestartPolicy, Supervision, names};

/// Why a replacement can't be built from what was kept.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// What was kept is no pod any more.
    #[error("read the kept manifest of the pod")]
    Read(#[source] serde_json::Error),
}

/// The object without what belongs to the one that exists: identity, history, binding, and what admission works out.
pub fn again(pod: &Pod) -> Value {
    let meta = &pod.metadata;
    let mut spec = free_spec(pod);
    spec.node_name = None;
    spec.ephemeral_containers = None;
    // Both follow from priorityClassName, and admission refuses a value that it has not worked out itself.
    spec.priority = None;
    spec.preemption_policy = None;
    // As does this from runtimeClassName.
    spec.overhead = None;
    let fresh = Pod {
        metadata: ObjectMeta {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            labels: meta.labels.clone().map(without_ours),
            annotations: meta.annotations.clone().map(without_ours),
            owner_references: meta.owner_references.clone(),
            ..Default::default()
        },
        spec: Some(spec),
        status: None,
    };
    serde_json::to_value(fresh).unwrap_or(Value::Null)
}

/// The pod that the controller of `pod` would make in its place, as far as admission can tell.
///
/// # Errors
/// Where the object can't be read back.
pub fn trial(pod: &Pod) -> Result<Pod, serde_json::Error> {
    let mut trial: Pod = serde_json::from_value(again(pod))?;
    let name = trial.metadata.name.take().unwrap_or_default();
    trial.metadata.generate_name = Some(format!("{}-", name.chars().take(GENERATE_NAME_MAX).collect::<String>()));
    trial.metadata.owner_references = pod.metadata.owner_references.clone();
    Ok(trial)
}

/// The most of a name that goes before what the API server generates.
const GENERATE_NAME_MAX: usize = 56;

/// The spec without the pin of an earlier move.
pub fn free_spec(pod: &Pod) -> PodSpec {
    let mut spec = pod.spec.clone().unwrap_or_default();
    if let (Some(_), Some(node)) = (annotation(pod, names::REPLACEMENT_OF), node(pod)) {
        pin::unpin(&mut spec, node);
    }
    spec
}

fn without_ours(mut map: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let prefix = format!("{}/", names::GROUP);
    map.retain(|key, _| !key.starts_with(&prefix));
    map
}

/// The replacement to create from what [`again`] kept: stamped for `migration`, pinned to `node`.
///
/// # Errors
/// [`ManifestError::Read`] where the manifest is no pod.
pub fn replacement(manifest: &Value, migration: &str, node: &str) -> Result<Pod, ManifestError> {
    let mut pod = kept(manifest)?;
    stamp(&mut pod, migration, node);
    Ok(pod)
}

/// The pod that [`again`] kept, as it is.
///
/// # Errors
/// [`ManifestError::Read`] where the manifest is no pod.
pub fn kept(manifest: &Value) -> Result<Pod, ManifestError> {
    serde_json::from_value(manifest.clone()).map_err(ManifestError::Read)
}

/// Makes `pod` the replacement for `migration` on `node`: under the shim, pinned, and told where to ask.
pub fn stamp(pod: &mut Pod, migration: &str, node: &str) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(names::REPLACEMENT_OF.to_owned(), migration.to_owned());
    protect(pod);
    pin::only_on(pod.spec.get_or_insert_default(), node);
}

/// Puts `pod` under the shim, unless its author has chosen another runtime.
pub fn protect(pod: &mut Pod) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(names::TIME_NAMESPACE.to_owned(), "true".to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.runtime_class_name.get_or_insert_with(|| names::RUNTIME_CLASS.to_owned());
}

/// Has the containers of `pod` restarted by `rules`, where it is under the shim. Not its init containers: kubelet waits for
/// their end. With `checkpoint`, their state is stored as it says.
pub fn supervise(pod: &mut Pod, rules: &RestartPolicy, checkpoint: Option<&CheckpointPolicy>) {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.runtime_class_name.as_deref() == Some(names::RUNTIME_CLASS))
    else {
        return;
    };
    let containers = spec.containers.iter().map(|container| container.name.clone()).collect();
    // What can't be written can't be read either: rules are made of numbers and words.
    let supervision = Supervision::new(containers, rules.clone(), checkpoint.cloned());
    let value = serde_json::to_string(&supervision).unwrap_or_default();
    pod.metadata.annotations.get_or_insert_default().insert(names::SUPERVISION.to_owned(), value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_of_the_old_object_is_kept_but_what_its_author_wrote() {
        let pod = json!({
            "metadata": {
                "name": "p", "namespace": "ns", "uid": "u", "resourceVersion": "7", "creationTimestamp": null,
                "labels": { "app": "x" }, "annotations": { "note": "n", names::CLAIMED_BY: "m" },
                "managedFields": [],
            },
            "spec": { "containers": [{ "name": "c" }], "nodeName": "a", "priority": 0, "priorityClassName": "high" },
            "status": { "phase": "Running" },
        });
        let kept = again(&serde_json::from_value(pod).expect("a pod"));
        let expected = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "p", "namespace": "ns", "labels": { "app": "x" }, "annotations": { "note": "n" } },
            "spec": { "containers": [{ "name": "c" }], "priorityClassName": "high" },
        });
        assert_eq!(kept, expected);
    }

    #[test]
    fn the_rules_name_the_containers_and_no_init_container() {
        let rules: RestartPolicy = serde_json::from_value(json!({ "policy": "Always" })).expect("rules");
        let mut pod: Pod = serde_json::from_value(json!({ "spec": {
            "containers": [{ "name": "app" }, { "name": "proxy" }], "initContainers": [{ "name": "setup" }] } }))
        .expect("a pod");
        protect(&mut pod);
        let checkpoint: CheckpointPolicy = serde_json::from_value(json!({ "interval": "5m" })).expect("a policy");
        supervise(&mut pod, &rules, Some(&checkpoint));
        let value = &pod.metadata.annotations.expect("annotations")[names::SUPERVISION];
        let said = Supervision::parse(value).expect("supervision");
        assert_eq!(said, Supervision::new(vec!["app".into(), "proxy".into()], rules, Some(checkpoint)));
    }

    #[test]
    fn nothing_is_promised_to_a_pod_of_another_runtime() {
        let rules: RestartPolicy = serde_json::from_value(json!({})).expect("rules");
        let mut pod: Pod = serde_json::from_value(json!({
            "spec": { "containers": [{ "name": "app" }], "runtimeClassName": "gvisor" } }))
        .expect("a pod");
        supervise(&mut pod, &rules, None);
        assert_eq!(annotation(&pod, names::SUPERVISION), None);
    }

    #[test]
    fn a_replacement_is_stamped_pinned_and_under_the_shim() {
        let manifest = json!({ "metadata": { "name": "p" }, "spec": { "containers": [] } });
        let pod = replacement(&manifest, "m", "b").expect("a pod");
        assert_eq!(pod.metadata.annotations.expect("annotations")[names::REPLACEMENT_OF], "m");
        let spec = pod.spec.expect("a spec");
        assert_eq!(spec.runtime_class_name.as_deref(), Some(names::RUNTIME_CLASS));
        assert!(spec.affinity.is_some());
    }
}
