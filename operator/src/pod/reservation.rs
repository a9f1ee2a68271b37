//! The reservation pod: it asks kube-scheduler for a node exactly as the source would, and holds the room there.
//!
//! It runs nothing of the application and carries none of its labels, so that no Service, ReplicaSet or
//! PodDisruptionBudget ever takes it for one of theirs.

use super::containers::{is_sidecar, moving};
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
type Quantities = BTreeMap<String, Quantity>;

/// The id that is nobody on most systems.
const NOBODY: i64 = 65_534;

/// The most characters of a label's value.
const LABEL_VALUE_MAX: usize = 63;

/// Builds the reservation for `source`. `owner` is the Migration: with it, the reservation goes.
pub fn reservation(source: &Pod, wish: &ReservationWish, owner: OwnerReference, pause_image: &str) -> Pod {
    let from = manifest::free_spec(source);
    let mut spec = PodSpec {
        containers: pauses(&from, pause_image),
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

/// One for each container that runs as long as the pod does, each asking for what that asks for: a LimitRange bounds what a container
/// may ask for, and would refuse one that asks for what all of them do.
fn pauses(from: &PodSpec, image: &str) -> Vec<Container> {
    let mut asked: Vec<Asked> = moving(from).map(Asked::by).collect();
    let for_setup = for_setup(from, asked.iter().cloned().fold(Asked::default(), |all, one| all.and(one)));
    // Not a sidecar, beside which the init containers that it came before have asked for what they ask for.
    if let Some(last) = asked.last_mut() {
        last.take_on(for_setup);
    }
    asked.into_iter().enumerate().map(|(number, asked)| pause(number, asked, image)).collect()
}

fn pause(number: usize, asked: Asked, image: &str) -> Container {
    Container {
        name: format!("pause-{number}"),
        image: Some(image.to_owned()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        resources: Some(asked.into()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What kube-scheduler counts beyond `all` that the containers ask for together: of each resource, what an init container asks for
/// beside the sidecars that are there before it, where that is more. Source: KEP-753, `podRequests` of `component-helpers/resource`.
fn for_setup(from: &PodSpec, all: Asked) -> Asked {
    let (mut beside, mut most) = (Asked::default(), Asked::default());
    for init in from.init_containers.iter().flatten() {
        if is_sidecar(init) {
            beside = beside.and(Asked::by(init));
        } else {
            most = most.or(beside.clone().and(Asked::by(init)));
        }
    }
    most.beyond(&all)
}

/// What a container, or several of them, ask for.
#[derive(Clone, Debug, Default)]
struct Asked {
    requests: Quantities,
    limits: Quantities,
}

impl Asked {
    fn by(container: &Container) -> Self {
        let asked = container.resources.clone().unwrap_or_default();
        Self { requests: asked.requests.unwrap_or_default(), limits: asked.limits.unwrap_or_default() }
    }

    /// Both together.
    fn and(self, other: Self) -> Self {
        self.joined(other, quantity::sum)
    }

    /// The larger of each.
    fn or(self, other: Self) -> Self {
        self.joined(other, quantity::larger)
    }

    fn joined(self, other: Self, both: impl Fn(Quantity, Quantity) -> Quantity) -> Self {
        Self {
            requests: joined(self.requests, other.requests, &both),
            limits: joined(self.limits, other.limits, &both),
        }
    }

    /// What of each is more than `other` has.
    fn beyond(self, other: &Self) -> Self {
        Self { requests: beyond(self.requests, &other.requests), limits: beyond(self.limits, &other.limits) }
    }

    /// Asks for `more` as well, which is what an init container asks for and all containers together do not. So one of these asks for
    /// no more than that init container then, which has passed the same LimitRange.
    fn take_on(&mut self, more: Self) {
        let asks_first = |name: &String| !self.requests.contains_key(name) && more.requests.contains_key(name);
        let bounds = |name: &String| self.limits.contains_key(name) || asks_first(name);
        let limits = more.limits.into_iter().filter(|(name, _)| bounds(name)).collect();
        self.limits = joined(std::mem::take(&mut self.limits), limits, quantity::sum);
        self.requests = joined(std::mem::take(&mut self.requests), more.requests, quantity::sum);
        for (name, limit) in &mut self.limits {
            if let Some(request) = self.requests.get(name) {
                *limit = quantity::larger(limit.clone(), request.clone());
            }
        }
    }
}

impl From<Asked> for ResourceRequirements {
    fn from(Asked { requests, limits }: Asked) -> Self {
        let given = |quantities: Quantities| (!quantities.is_empty()).then_some(quantities);
        Self { requests: given(requests), limits: given(limits), claims: None }
    }
}

/// Every quantity of either; `both` makes one of two.
fn joined(mut a: Quantities, b: Quantities, both: impl Fn(Quantity, Quantity) -> Quantity) -> Quantities {
    for (name, quantity) in b {
        let quantity = match a.remove(&name) {
            Some(known) => both(known, quantity),
            None => quantity,
        };
        a.insert(name, quantity);
    }
    a
}

fn beyond(most: Quantities, all: &Quantities) -> Quantities {
    let more = |(name, most): (String, Quantity)| {
        let more = match all.get(&name) {
            Some(all) => quantity::beyond(&most, all)?,
            None => most,
        };
        Some((name, more))
    };
    most.into_iter().filter_map(more).collect()
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

    /// What each of its containers asks for of a resource.
    fn asked(
        pod: &Pod,
        of: impl Fn(ResourceRequirements) -> Option<Quantities>,
        resource: &str,
    ) -> Vec<Option<String>> {
        let containers = &pod.spec.as_ref().expect("a spec").containers;
        let each = containers.iter().map(|container| of(container.resources.clone().unwrap_or_default()));
        each.map(|quantities| Some(quantities?.get(resource)?.0.clone())).collect()
    }

    fn requests(pod: &Pod, resource: &str) -> Vec<String> {
        asked(pod, |resources| resources.requests, resource).into_iter().map(Option::unwrap_or_default).collect()
    }

    fn limits(pod: &Pod, resource: &str) -> Vec<Option<String>> {
        asked(pod, |resources| resources.limits, resource)
    }

    #[test]
    fn it_asks_for_the_most_that_one_container_asks_for() {
        let resources = |cpu: &str| json!({ "requests": { "cpu": cpu, "memory": "64Mi" } });
        let pod = made(json!({
            "containers": [{ "name": "c", "resources": resources("250m") }],
            "initContainers": [{ "name": "i", "resources": resources("1") }],
        }));
        assert_eq!(requests(&pod, "cpu"), ["1"]);
        assert_eq!(requests(&pod, "memory"), ["64Mi"]);
    }

    #[test]
    fn it_asks_for_what_containers_and_sidecars_ask_for_and_in_no_container_for_more_than_one_of_them() {
        let resources = |cpu: &str| json!({ "requests": { "cpu": cpu }, "limits": { "cpu": cpu } });
        let of = |setup: &str| {
            made(json!({
                "containers": [{ "name": "a", "resources": resources("250m") }, { "name": "b", "resources": resources("1") }],
                "initContainers": [
                    { "name": "s", "restartPolicy": "Always", "resources": resources("100m") },
                    { "name": "i", "resources": resources(setup) },
                ],
            }))
        };
        assert_eq!(requests(&of("500m"), "cpu"), ["100m", "250m", "1"], "they run beside each other");
        // The init container runs beside the sidecar: 2.1 in all.
        let pod = of("2");
        assert_eq!(requests(&pod, "cpu"), ["100m", "250m", "1750m"]);
        assert_eq!(limits(&pod, "cpu").into_iter().flatten().collect::<Vec<_>>(), ["100m", "250m", "1750m"]);
    }

    #[test]
    fn a_limit_of_an_init_container_alone_is_no_request_of_a_container_that_has_none() {
        let resources =
            |request: &str, limit: &str| json!({ "requests": { "cpu": request }, "limits": { "cpu": limit } });
        let pod = made(json!({
            "containers": [{ "name": "b", "resources": resources("3", "3") }, { "name": "a" }],
            "initContainers": [{ "name": "i", "resources": resources("1", "4") }],
        }));
        // The API server takes a limit for a request where there is none.
        assert_eq!(limits(&pod, "cpu"), [Some("3".to_owned()), None]);
    }

    #[test]
    fn a_container_that_takes_on_more_keeps_a_limit_that_is_none_too_small_and_gets_none() {
        let pod = |limits: serde_json::Value| {
            made(json!({
                "containers": [{ "name": "a", "resources": { "requests": { "cpu": "1" }, "limits": limits } }],
                "initContainers": [{ "name": "i", "resources": { "requests": { "cpu": "3", "hugepages-2Mi": "4Mi" },
                                                                 "limits": { "hugepages-2Mi": "4Mi" } } }],
            }))
        };
        let bounded = pod(json!({ "cpu": "2" }));
        assert_eq!((requests(&bounded, "cpu"), limits(&bounded, "cpu")), (vec!["3".into()], vec![Some("3".into())]));
        let free = pod(json!({}));
        assert_eq!((requests(&free, "cpu"), limits(&free, "cpu")), (vec!["3".into()], vec![None]));
        // Of these the API server takes no request without a limit.
        assert_eq!(limits(&free, "hugepages-2Mi"), [Some("4Mi".into())]);
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
