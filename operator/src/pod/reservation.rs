//! The reservation pod: it asks kube-scheduler for a node exactly as the source would, and holds the room there.
//!
//! It runs nothing of the application and carries none of its labels, so that no Service, ReplicaSet or
//! PodDisruptionBudget ever takes it for one of theirs.

use super::containers::is_sidecar;
use super::{manifest, pin, quantity};
use crate::transition::ReservationWish;
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, Pod, PodAffinityTerm, PodSecurityContext, PodSpec, ResourceRequirements,
    SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;
use tideover_crds::names;

/// Requests or limits, by resource.
type Quantities = Option<BTreeMap<String, Quantity>>;

/// The id that is nobody on most systems.
const NOBODY: i64 = 65_534;

/// The most characters of a label's value.
const LABEL_VALUE_MAX: usize = 63;

/// Builds the reservation for `source`. `owner` is the Migration: with it, the reservation goes.
pub fn reservation(source: &Pod, wish: &ReservationWish, owner: OwnerReference, pause_image: &str) -> Pod {
    let from = manifest::free_spec(source);
    let mut spec = PodSpec {
        containers: vec![pause(&from, pause_image)],
        resources: from.resources.clone(),
        node_selector: from.node_selector,
        affinity: from.affinity.map(without_label_keys),
        tolerations: from.tolerations,
        topology_spread_constraints: from.topology_spread_constraints,
        priority_class_name: from.priority_class_name,
        scheduler_name: from.scheduler_name,
        // The class that the replacement will have: it may bring a node selector and an overhead of its own.
        runtime_class_name: from.runtime_class_name.or_else(|| Some(names::RUNTIME_CLASS.to_owned())),
        image_pull_secrets: from.image_pull_secrets,
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        termination_grace_period_seconds: Some(0),
        restart_policy: Some("Always".to_owned()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(NOBODY),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    wish.never_on.iter().for_each(|node| pin::never_on(&mut spec, node));
    wish.rather_not_on.iter().for_each(|node| pin::rather_not_on(&mut spec, node));
    wish.only_on.iter().for_each(|node| pin::only_on(&mut spec, node));
    let labels = BTreeMap::from([(names::RESERVATION_FOR.to_owned(), label_value(&owner.name))]);
    Pod {
        metadata: ObjectMeta {
            name: Some(wish.name.clone()),
            namespace: source.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: Some(spec),
        status: None,
    }
}

fn pause(from: &PodSpec, image: &str) -> Container {
    Container {
        name: "pause".to_owned(),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        resources: Some(effective(from)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What kube-scheduler counts: of each resource what all containers ask for together, or what an init container asks for beside the
/// sidecars that are there before it, where that is more. Source: KEP-753, `podRequests` of `component-helpers/resource`.
fn effective(from: &PodSpec) -> ResourceRequirements {
    let (mut beside, mut most) = (ResourceRequirements::default(), ResourceRequirements::default());
    for init in from.init_containers.iter().flatten() {
        let asked = init.resources.clone().unwrap_or_default();
        if is_sidecar(init) {
            beside = each(beside, asked, quantity::sum);
        } else {
            most = each(most, each(beside.clone(), asked, quantity::sum), quantity::larger);
        }
    }
    let all = from.containers.iter().filter_map(|container| container.resources.clone());
    let all = all.fold(beside, |all, one| each(all, one, quantity::sum));
    let mut asked = each(most, all, quantity::larger);
    // Where one container has a limit and another only a request, the sum of limits may be below that of requests, which the API server
    // refuses. A pause container needs no limit.
    if let (Some(requests), Some(limits)) = (&asked.requests, &mut asked.limits) {
        let fits = |name: &String, limit: &Quantity| {
            requests.get(name).is_none_or(|request| quantity::larger(request.clone(), limit.clone()) == *limit)
        };
        limits.retain(|name, limit| fits(name, limit));
    }
    asked
}

/// Every request and limit of either; `both` makes one of two.
fn each(
    a: ResourceRequirements,
    b: ResourceRequirements,
    both: impl Fn(Quantity, Quantity) -> Quantity,
) -> ResourceRequirements {
    let join = |a: Quantities, b: Quantities| -> Quantities {
        let mut joined = a.unwrap_or_default();
        for (name, quantity) in b.into_iter().flatten() {
            let quantity = match joined.remove(&name) {
                Some(known) => both(known, quantity),
                None => quantity,
            };
            joined.insert(name, quantity);
        }
        (!joined.is_empty()).then_some(joined)
    };
    ResourceRequirements { requests: join(a.requests, b.requests), limits: join(a.limits, b.limits), claims: None }
}

/// The API server has turned `matchLabelKeys` into selectors by the source's own labels already; the reservation does
/// not have these labels.
fn without_label_keys(mut affinity: Affinity) -> Affinity {
    let strip = |term: &mut PodAffinityTerm| {
        term.match_label_keys = None;
        term.mismatch_label_keys = None;
    };
    if let Some(pods) = &mut affinity.pod_affinity {
        pods.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(strip);
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        preferred.for_each(|term| strip(&mut term.pod_affinity_term));
    }
    if let Some(pods) = &mut affinity.pod_anti_affinity {
        pods.required_during_scheduling_ignored_during_execution.iter_mut().flatten().for_each(strip);
        let preferred = pods.preferred_during_scheduling_ignored_during_execution.iter_mut().flatten();
        preferred.for_each(|term| strip(&mut term.pod_affinity_term));
    }
    affinity
}

/// As much of a name as fits into a label's value, which ends in a letter or digit.
fn label_value(name: &str) -> String {
    let keep = name.len().min(LABEL_VALUE_MAX);
    name[..keep].trim_end_matches(['-', '.', '_']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wish() -> ReservationWish {
        ReservationWish {
            name: "m-reservation-2".into(),
            only_on: None,
            never_on: vec!["a".into()],
            rather_not_on: vec!["b".into()],
        }
    }

    fn made(spec: serde_json::Value) -> Pod {
        let source = json!({ "metadata": { "name": "p", "namespace": "ns", "labels": { "app": "x" } }, "spec": spec });
        let owner = OwnerReference { name: "m".into(), uid: "u".into(), ..Default::default() };
        reservation(&serde_json::from_value(source).expect("a pod"), &wish(), owner, "pause")
    }

    #[test]
    fn it_asks_for_the_most_that_one_container_asks_for() {
        let requests = |cpu: &str| json!({ "requests": { "cpu": cpu, "memory": "64Mi" } });
        let pod = made(json!({
            "containers": [{ "name": "c", "resources": requests("250m") }],
            "initContainers": [{ "name": "i", "resources": requests("1") }],
        }));
        let requests = pod.spec.expect("a spec").containers[0].resources.clone().expect("resources").requests;
        let requests: Vec<_> =
            requests.expect("requests").into_iter().map(|(name, quantity)| (name, quantity.0)).collect();
        assert_eq!(requests, [("cpu".to_owned(), "1".to_owned()), ("memory".to_owned(), "64Mi".to_owned())]);
    }

    #[test]
    fn it_asks_for_what_containers_and_sidecars_ask_for_together() {
        let resources = |cpu: &str| json!({ "requests": { "cpu": cpu } });
        let asked = |setup: &str| {
            let pod = made(json!({
                "containers": [{ "name": "a", "resources": resources("250m") }, { "name": "b", "resources": resources("1") }],
                "initContainers": [
                    { "name": "s", "restartPolicy": "Always", "resources": resources("100m") },
                    { "name": "i", "resources": resources(setup) },
                ],
            }));
            let requests = pod.spec.expect("a spec").containers[0].resources.clone().expect("resources").requests;
            requests.expect("requests")["cpu"].0.clone()
        };
        assert_eq!(asked("500m"), "1350m", "they run beside each other");
        assert_eq!(asked("2"), "2100m", "the init container runs beside the sidecar");
    }

    #[test]
    fn a_limit_that_not_every_container_has_does_not_make_the_sum_invalid() {
        let sidecar =
            json!({ "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "cpu": "200m", "memory": "64Mi" } });
        let app = json!({ "requests": { "cpu": "1", "memory": "1Gi" }, "limits": { "memory": "1Gi" } });
        let pod =
            made(json!({ "containers": [{ "name": "a", "resources": app }, { "name": "b", "resources": sidecar }] }));
        let resources = pod.spec.expect("a spec").containers[0].resources.clone().expect("resources");
        assert_eq!(resources.requests.expect("requests")["cpu"].0, "1100m");
        let limits: Vec<_> = resources.limits.expect("limits").into_keys().collect();
        assert_eq!(limits, ["memory"]);
    }

    #[test]
    fn the_pin_of_an_earlier_move_does_not_hold_it() {
        let mut source = Pod::default();
        manifest::stamp(&mut source, "earlier", "a");
        source.spec.get_or_insert_default().node_name = Some("a".into());
        let pod = reservation(&source, &wish(), OwnerReference::default(), "pause");
        let spec = serde_json::to_string(&pod.spec).expect("JSON");
        assert!(!spec.contains(r#""operator":"In""#), "{spec}");
    }

    #[test]
    fn it_never_goes_to_the_source_and_takes_no_label_of_the_application() {
        let pod = made(json!({ "containers": [{ "name": "c" }], "nodeSelector": { "disk": "ssd" } }));
        let labels: Vec<_> = pod.metadata.labels.clone().expect("labels").into_keys().collect();
        assert_eq!(labels, [names::RESERVATION_FOR]);
        let spec = serde_json::to_value(pod.spec).expect("JSON");
        assert_eq!(spec["nodeSelector"], json!({ "disk": "ssd" }));
        let affinity = &spec["affinity"]["nodeAffinity"];
        let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"];
        let not_in = |node: &str| json!([{ "key": "metadata.name", "operator": "NotIn", "values": [node] }]);
        assert_eq!(required, &json!([{ "matchFields": not_in("a") }]));
        let preferred = &affinity["preferredDuringSchedulingIgnoredDuringExecution"];
        assert_eq!(preferred, &json!([{ "preference": { "matchFields": not_in("b") }, "weight": 100 }]));
        assert_eq!(spec["automountServiceAccountToken"], json!(false));
    }
}
