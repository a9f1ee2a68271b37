//! ProtectedWorkload: the policy that people apply with kubectl.

use crate::checkpoint::CheckpointPolicy;
use crate::obstacle::Obstacle;
use crate::pre_copy::PreCopyPolicy;
use crate::restart::RestartPolicy;
use crate::restart_report::LastEnd;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration as StdDuration;

/// Which pods must not go down, and what Tideover may do to keep them up.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tideover.dev",
    version = "v1alpha1",
    kind = "ProtectedWorkload",
    namespaced,
    status = "ProtectedWorkloadStatus",
    shortname = "pw",
    category = "tideover",
    derive = "PartialEq",
    doc = "A policy: which pods must not go down, and what Tideover may do to keep them up.",
    printcolumn(name = "Selected", type_ = "integer", json_path = ".status.selected"),
    printcolumn(name = "Movable", type_ = "integer", json_path = ".status.movable"),
    printcolumn(name = "Protected", type_ = "string", json_path = ".status.conditions[?(@.type=='Protected')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Protected')].reason"),
    printcolumn(name = "Restarts", type_ = "integer", json_path = ".status.restarts"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.restart) || self.restart.startLimit.action != 'RestoreCheckpoint' || has(self.checkpoint)").message("startLimit.action RestoreCheckpoint needs spec.checkpoint, which says how often one is taken"))]
#[x_kube(validation = Rule::new("!has(self.checkpoint) || (has(self.restart) && self.restart.startLimit.action == 'RestoreCheckpoint')").message("checkpoint is of use only with restart.startLimit.action RestoreCheckpoint"))]
pub struct ProtectedWorkloadSpec {
    /// The pods of this namespace that are protected. It must select something: an empty selector is refused.
    #[x_kube(validation = Rule::new("(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)").message("selector is empty: name at least one label of the pods to protect"))]
    pub selector: LabelSelector,

    /// What happens when the node of a protected pod is to be emptied.
    #[serde(default)]
    pub on_maintenance: OnMaintenance,

    /// How a pod is moved.
    #[serde(default)]
    pub migration: MigrationPolicy,

    /// When an application that has ended is started again, in its container and without kubelet. Left out, kubelet restarts
    /// the container. It holds for pods that are created from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,

    /// How often the state of each container is stored on its node, for `restart.startLimit.action: RestoreCheckpoint`. It holds
    /// for pods that are created from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointPolicy>,
}

/// What happens when the node of a protected pod is to be emptied.
#[derive(JsonSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OnMaintenance {
    /// What is done with the pod.
    pub action: MaintenanceAction,
    /// Move as soon as the node is cordoned, without waiting for an eviction. Uncordon cancels what is not frozen yet.
    pub on_cordon: bool,
}

impl Default for OnMaintenance {
    fn default() -> Self {
        Self { action: MaintenanceAction::Migrate, on_cordon: false }
    }
}

/// What is done with a protected pod whose node is to be emptied.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MaintenanceAction {
    /// Move the running processes to another node; evictions wait until that is done.
    #[default]
    Migrate,
    /// Leave the pod to Kubernetes: evictions go through as always.
    Ignore,
}

/// How a pod is moved.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPolicy {
    /// The freeze that pre-copy aims for. Default 300ms, which is QEMU's.
    #[x_kube(validation = Rule::new("duration(self) > duration('0s') && duration(self) <= duration('1h')").message("maxDowntime must be more than 0s and at most 1h"))]
    #[serde(default = "default_max_downtime")]
    pub max_downtime: Duration,
    /// How long one attempt may take before anything is frozen. Default 150s.
    #[x_kube(validation = Rule::new("duration(self) >= duration('5s') && duration(self) <= duration('24h')").message("timeout must be at least 5s and at most 24h"))]
    #[serde(default = "default_timeout")]
    pub timeout: Duration,
    /// How often a move is tried before it has failed. Default 3.
    #[x_kube(validation = Rule::new("self >= 1 && self <= 10").message("maxAttempts must be between 1 and 10"))]
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// Pause before the second attempt; doubled for each further one. Default 5s.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('1h')").message("retryDelay must be between 0s and 1h"))]
    #[serde(default = "default_retry_delay")]
    pub retry_delay: Duration,
    /// What an eviction is answered after the move has failed. Default Keep.
    #[serde(default)]
    pub on_failure: FailurePolicy,
    /// The largest deleted but still open file that may be carried along, in MiB. Default 64.
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65536").message("deletedFileLimitMiB must be between 1 and 65536"))]
    #[serde(rename = "deletedFileLimitMiB", default = "default_deleted_file_limit_mib")]
    pub deleted_file_limit_mib: u32,
    /// How memory is copied before the freeze.
    #[serde(default)]
    pub pre_copy: PreCopyPolicy,
}

impl Default for MigrationPolicy {
    fn default() -> Self {
        Self {
            max_downtime: default_max_downtime(),
            timeout: default_timeout(),
            max_attempts: default_max_attempts(),
            retry_delay: default_retry_delay(),
            on_failure: FailurePolicy::default(),
            deleted_file_limit_mib: default_deleted_file_limit_mib(),
            pre_copy: PreCopyPolicy::default(),
        }
    }
}

fn default_max_downtime() -> Duration {
    StdDuration::from_millis(300).into()
}

fn default_timeout() -> Duration {
    StdDuration::from_secs(150).into()
}

fn default_max_attempts() -> u32 {
    3
}

fn default_retry_delay() -> Duration {
    StdDuration::from_secs(5).into()
}

fn default_deleted_file_limit_mib() -> u32 {
    64
}

/// What an eviction is answered after a move has failed for good.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// Refuse the eviction with the reason, so that `kubectl drain` ends with that sentence and the application runs on.
    #[default]
    Keep,
    /// Let the eviction through: the application stops here and starts cold elsewhere.
    Evict,
}

/// What the operator knows about the pods that a policy selects.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProtectedWorkloadStatus {
    /// `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Protected`: every selected pod can be moved (or, with `action: Ignore`, nothing was asked for). `MovedTooOften`: a pod
    /// waits at its start limit and is not moved, because it was moved for that as often as may be within an hour.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Number of pods that the selector selects.
    #[serde(default)]
    pub selected: i32,
    /// Number of those that can be moved.
    #[serde(default)]
    pub movable: i32,
    /// Restarts in place of those that are selected now, as far as they are told.
    #[serde(default)]
    pub restarts: i64,
    /// Per pod, what is known; at most 100.
    #[serde(default)]
    pub pods: Vec<PodProtection>,
    /// Moves of the last hour that were begun because a start limit was hit, oldest first; at most 100.
    #[serde(default)]
    pub start_limit_moves: Vec<StartLimitMove>,
}

/// One move that was begun because a start limit was hit.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartLimitMove {
    /// Name of the Migration.
    pub migration: String,
    /// UID of the pod that has the application now: that of the replacement once it was moved, for whatever reason.
    pub pod_uid: String,
    /// When the Migration was created.
    pub at: Time,
}

/// What is known of one protected pod.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodProtection {
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
    /// Node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether it can be moved.
    pub movable: bool,
    /// Why it can't, if it can't.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub obstacles: Vec<Obstacle>,
    /// Whether it runs under `criu-shim`. A pod from before the policy does not; it can be moved all the same.
    pub under_shim: bool,
    /// What is known of restarts in place; nothing before the first end of an application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<PodRestarts>,
}

/// What is known of the restarts in place of one pod's containers. kubelet's `restartCount` has none of them.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRestarts {
    /// How many there were.
    pub count: i64,
    /// The container whose application has ended last.
    pub container: String,
    /// That end.
    pub last: LastEnd,
}
