//! Node affinity by node name, added to whatever a pod asks for already.
//!
//! The terms of `requiredDuringSchedulingIgnoredDuringExecution` are alternatives, so a demand has to be added to each
//! of them. kube-scheduler takes one value a requirement for `metadata.name`.

use k8s_openapi::api::core::v1::{
    Affinity, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, PreferredSchedulingTerm,
};

/// A pod may run on `node` only.
pub fn only_on(spec: &mut PodSpec, node: &str) {
    demand(spec, &requirement("In", node));
}

/// A pod may not run on `node`.
pub fn never_on(spec: &mut PodSpec, node: &str) {
    demand(spec, &requirement("NotIn", node));
}

/// A pod runs on `node` only if no other takes it.
pub fn rather_not_on(spec: &mut PodSpec, node: &str) {
    let preference = NodeSelectorTerm { match_fields: Some(vec![requirement("NotIn", node)]), ..Default::default() };
    let term = PreferredSchedulingTerm { preference, weight: 100 };
    node_affinity(spec).preferred_during_scheduling_ignored_during_execution.get_or_insert_default().push(term);
}

/// Takes off a pin that [`only_on`] put on: a pod that was moved once must be free to move again.
pub fn unpin(spec: &mut PodSpec, node: &str) {
    let pinned = requirement("In", node);
    let required = &mut node_affinity(spec).required_during_scheduling_ignored_during_execution;
    if let Some(selector) = required {
        for term in &mut selector.node_selector_terms {
            let fields = term.match_fields.get_or_insert_default();
            fields.retain(|field| *field != pinned);
            if fields.is_empty() {
                term.match_fields = None;
            }
        }
        // A term without any demand would match no node at all.
        selector.node_selector_terms.retain(|term| *term != NodeSelectorTerm::default());
        if selector.node_selector_terms.is_empty() {
            *required = None;
        }
    }
    spec.affinity.take_if(|affinity| {
        affinity.node_affinity.take_if(|node| *node == NodeAffinity::default());
        *affinity == Affinity::default()
    });
}

fn requirement(operator: &str, node: &str) -> NodeSelectorRequirement {
    NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: operator.to_owned(),
        values: Some(vec![node.to_owned()]),
    }
}

fn node_affinity(spec: &mut PodSpec) -> &mut NodeAffinity {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    affinity.node_affinity.get_or_insert_default()
}

fn demand(spec: &mut PodSpec, requirement: &NodeSelectorRequirement) {
    let selector = node_affinity(spec)
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: Vec::new() });
    if selector.node_selector_terms.is_empty() {
        selector.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut selector.node_selector_terms {
        let fields = term.match_fields.get_or_insert_default();
        if !fields.contains(requirement) {
            fields.push(requirement.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_demand_goes_into_every_alternative() {
        let terms = json!([
            { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] },
            { "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }] },
        ]);
        let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": terms } } });
        let mut spec: PodSpec =
            serde_json::from_value(json!({ "containers": [], "affinity": affinity })).expect("a spec");
        only_on(&mut spec, "n1");
        never_on(&mut spec, "n2");
        let required = node_affinity(&mut spec).required_during_scheduling_ignored_during_execution.clone();
        for term in required.expect("terms").node_selector_terms {
            assert_eq!(term.match_expressions.map(|all| all.len()), Some(1));
            assert_eq!(term.match_fields, Some(vec![requirement("In", "n1"), requirement("NotIn", "n2")]));
        }
    }

    #[test]
    fn a_pin_comes_off_without_a_trace() {
        let mut spec = PodSpec::default();
        only_on(&mut spec, "n1");
        unpin(&mut spec, "n1");
        assert_eq!(spec, PodSpec::default());

        let expression = json!({ "matchExpressions": [{ "key": "zone", "operator": "Exists" }] });
        let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [expression] } } });
        let mut spec: PodSpec =
            serde_json::from_value(json!({ "containers": [], "affinity": affinity })).expect("a spec");
        let before = spec.clone();
        only_on(&mut spec, "n1");
        unpin(&mut spec, "n1");
        assert_eq!(spec, before);
    }

    #[test]
    fn a_pod_without_affinity_gets_one_term() {
        let mut spec = PodSpec::default();
        only_on(&mut spec, "n1");
        only_on(&mut spec, "n1");
        let required = node_affinity(&mut spec).required_during_scheduling_ignored_during_execution.clone();
        assert_eq!(required.expect("terms").node_selector_terms[0].match_fields.as_ref().map(Vec::len), Some(1));
    }
}
