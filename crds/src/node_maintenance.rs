//! NodeMaintenance: the wish to empty a node.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

/// The wish to empty one node of its protected pods. The node is cordoned while the object exists, if it was not
/// already; deleting it cancels what is not frozen yet and uncordons only what it cordoned.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tideover.dev",
    version = "v1alpha1",
    kind = "NodeMaintenance",
    status = "NodeMaintenanceStatus",
    shortname = "nm",
    category = "tideover",
    derive = "PartialEq",
    doc = "The wish to empty one node of its protected pods.",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Empty", type_ = "string", json_path = ".status.conditions[?(@.type=='Empty')].status"),
    printcolumn(name = "Remaining", type_ = "integer", json_path = ".status.remaining"),
    printcolumn(name = "Moved", type_ = "integer", json_path = ".status.moved"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeMaintenanceSpec {
    /// The node.
    #[x_kube(validation = Rule::new("self == oldSelf").message("node can't be changed: delete this NodeMaintenance and create another"))]
    #[x_kube(validation = Rule::new("size(self) > 0").message("node is empty"))]
    pub node: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When to begin; at once where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// By when the node should be empty; shown, and used to order moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

/// How far the node is emptied.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeMaintenanceStatus {
    /// `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Empty`: no protected pod is left on the node.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// One sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Whether this object cordoned the node (and will uncordon it).
    #[serde(default)]
    pub cordoned: bool,
    /// Protected pods still on the node.
    #[serde(default)]
    pub remaining: i32,
    /// Pods moved away.
    #[serde(default)]
    pub moved: i32,
    /// Per pod, how far it is; at most 100.
    #[serde(default)]
    pub pods: Vec<PodProgress>,
}

/// How far one pod's move is.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodProgress {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Its Migration, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<String>,
    /// Where that stands, or why there is none.
    pub state: String,
}
