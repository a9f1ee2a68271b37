//! Nodes as data: cordoned or not, and since when.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The taint that the node controller puts on a cordoned node.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// True of a node that takes no new pods.
pub fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

/// True where the node says that it is ready.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// When the node was cordoned, as far as its taint tells.
pub fn cordoned_at(node: &Node) -> Option<Timestamp> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let taint = taints.into_iter().find(|taint| taint.key == UNSCHEDULABLE)?;
    taint.time_added.as_ref().map(|time| time.0)
}

/// Tells cordoning and uncordoning from the many other changes of a node.
#[derive(Debug, Default)]
pub struct CordonChanges {
    seen: Mutex<HashMap<String, bool>>,
}

impl CordonChanges {
    /// True for a node that is seen for the first time, or that was cordoned or uncordoned since.
    pub fn is_new(&self, node: &Node) -> bool {
        let cordoned = is_cordoned(node);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.insert(node.name_any(), cordoned) != Some(cordoned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(unschedulable: bool) -> Node {
        let taints = json!([{ "key": UNSCHEDULABLE, "effect": "NoSchedule", "timeAdded": "2026-01-01T00:00:00Z" }]);
        serde_json::from_value(json!({
            "metadata": { "name": "n" },
            "spec": { "unschedulable": unschedulable, "taints": taints },
        }))
        .expect("a node")
    }

    #[test]
    fn the_taint_says_since_when() {
        assert_eq!(cordoned_at(&node(true)), "2026-01-01T00:00:00Z".parse().ok());
    }

    #[test]
    fn only_cordoning_is_news() {
        let changes = CordonChanges::default();
        let told: Vec<bool> = [false, false, true, true, false].map(|state| changes.is_new(&node(state))).to_vec();
        assert_eq!(told, [true, false, true, false, true]);
    }
}
