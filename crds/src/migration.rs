//! Migration: one move of one pod.

use crate::pre_copy::ResolvedPreCopy;
use crate::protected_workload::{FailurePolicy, MigrationPolicy};
use crate::report::{Failure, SourceReport, TargetReport};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One move of one pod. Immutable; deleting the object before the commit aborts the move, deleting it after the commit
/// gives the state up where the application does not come to run.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "tideover.dev",
    version = "v1alpha1",
    kind = "Migration",
    namespaced,
    status = "MigrationStatus",
    shortname = "mig",
    category = "tideover",
    derive = "PartialEq",
    doc = "One move of one pod to another node. Deleting it before the commit aborts the move; deleting it after the commit gives the state up, if the application does not come to run on the target.",
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.pod.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.sourcePod.node"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.targetNode"),
    printcolumn(name = "Freeze (ms)", type_ = "number", json_path = ".status.source.timings.freezeMillis"),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt", priority = "1"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason", priority = "1"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("a Migration's spec can't be changed: delete it and create another"))]
#[serde(rename_all = "camelCase")]
pub struct MigrationSpec {
    /// The pod to move, in the Migration's namespace.
    pub pod: PodRef,
    /// Where to. Left out, kube-scheduler chooses; given, it must agree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("size(self) > 0").message("targetNode is empty: leave it out to let the scheduler choose"))]
    pub target_node: Option<String>,
    /// Who asked.
    #[serde(default)]
    pub reason: MigrationReason,
}

/// The pod that a Migration moves.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Name of the pod.
    #[x_kube(validation = Rule::new("size(self) > 0 && size(self) <= 253").message("pod.name must have 1 to 253 characters"))]
    pub name: String,
    /// UID of the pod; given, another pod of the same name is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// Who asked for a move.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MigrationReason {
    /// A person created the Migration.
    #[default]
    Manual,
    /// The pod's node was cordoned; uncordon cancels it.
    Cordon,
    /// Somebody tried to evict the pod; uncordon cancels it.
    Drain,
    /// A NodeMaintenance wants the node empty; deleting that cancels it.
    Maintenance,
    /// The pod's application was restarted too often on its node, and its policy's `startLimit.action` is Migrate. That it waits no
    /// longer cancels it.
    StartLimit,
}

/// Where a Migration stands. The conditions and reports are the contract; this is the summary.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Seen, not looked at yet.
    #[default]
    Pending,
    /// A reservation is looking for a node; both agents check what they can before anything is touched.
    Preparing,
    /// State is copied while the application runs.
    PreCopying,
    /// With [`Strategy::DeleteFirst`]: an early cut of the application is restored on the target, held before it runs, and
    /// destroyed. The application runs on but for the moment of the cut.
    Rehearsing,
    /// The replacement pod comes up; its container's `create` waits. Nothing is frozen.
    Handover,
    /// The operator has given the go: from here on the two agents act on their own until the commit or the roll-back.
    Freezing,
    /// The last of the state crosses.
    Transferring,
    /// The processes are rebuilt on the target, held before they run.
    Restoring,
    /// `status.owner` names the target: the source will never run again.
    Committing,
    /// `status.owner` names the source for this attempt: it thaws, the target's copy is destroyed.
    RollingBack,
    /// Waiting for the next attempt.
    BackingOff,
    /// The pod runs on the target. Terminal.
    Succeeded,
    /// The move was given up. The pod runs on the source; where the move was committed already (condition `GivenUp`), its
    /// state is lost and it starts cold. Terminal.
    Failed,
    /// The move was called off before the commit; the pod runs on the source. Terminal.
    Cancelled,
}

impl Phase {
    /// True of a phase that no event leads out of.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// Who may run the application: the outcome of attempt `attempt`, decided once.
///
/// `status.owner` starts as `{source node, 0}`. Attempt N is open while `owner.attempt < N`. It is decided by one
/// compare-and-swap (a JSON patch whose `test` names the value last seen and the object's UID) to `{target node, N}`,
/// the commit, or to `{source node, N}`, the abort, which the source's agent or the operator writes. After a commit no
/// further attempt exists. Where the replacement is made first, the target takes the attempt with a tentative
/// `{target node, N}` at the go, before anything is frozen. From then on the two agents alone decide: the source may end the
/// attempt until it has sent the last of the state, and after that nobody but the target lets the processes run or ends it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Owner {
    /// Node whose copy may run.
    pub node: String,
    /// Attempt that decided it; 0 before any.
    pub attempt: u32,
    /// The target has taken the attempt, which may still be ended: where not all of the state comes, or the restore fails.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tentative: bool,
}

impl Owner {
    /// The owner whom `attempt` has decided on.
    pub fn new(node: &str, attempt: u32) -> Self {
        Self { node: node.to_owned(), attempt, tentative: false }
    }

    /// A target that has taken `attempt`, which may still be ended.
    pub fn tentative(node: &str, attempt: u32) -> Self {
        Self { tentative: true, ..Self::new(node, attempt) }
    }
}

/// How the replacement pod comes to be.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strategy {
    /// The source is taken out of its ReplicaSet by relabelling; the replacement's sandbox is up before the freeze.
    ReplaceFirst,
    /// The name must be free first: the state is complete and verified on the target, then committed, then the source
    /// object is deleted and the replacement of the same name is restored.
    DeleteFirst,
}

/// An object pinned by UID.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Name.
    pub name: String,
    /// UID; whoever acts on the object checks it.
    pub uid: String,
    /// Node, of a pod that is bound to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// When a phase began.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// Attempt it belongs to.
    pub attempt: u32,
    /// When the operator saw it begin.
    pub at: MicroTime,
}

/// The policy as it was when the Migration started: a later edit of the ProtectedWorkload changes nothing half way.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedPolicy {
    /// ProtectedWorkload it came from; none when a person moves an unprotected pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected_workload: Option<String>,
    /// Freeze that pre-copy aims for, milliseconds.
    pub max_downtime_millis: u64,
    /// How long one attempt may take before the freeze, milliseconds.
    pub timeout_millis: u64,
    /// Attempts before the move has failed.
    pub max_attempts: u32,
    /// Pause before the second attempt, milliseconds; doubled for each further one.
    pub retry_delay_millis: u64,
    /// What an eviction is answered after a failure.
    pub on_failure: FailurePolicy,
    /// Largest deleted but open file that is carried along, bytes.
    pub deleted_file_limit_bytes: u64,
    /// How memory is copied before the freeze.
    #[serde(default)]
    pub pre_copy: ResolvedPreCopy,
}

impl ResolvedPolicy {
    /// The policy of one ProtectedWorkload, or the defaults where there is none.
    pub fn from_policy(protected_workload: Option<String>, policy: &MigrationPolicy) -> Self {
        let millis =
            |duration: kube::core::Duration| u64::try_from(Duration::from(duration).as_millis()).unwrap_or(u64::MAX);
        Self {
            protected_workload,
            max_downtime_millis: millis(policy.max_downtime),
            timeout_millis: millis(policy.timeout),
            max_attempts: policy.max_attempts,
            retry_delay_millis: millis(policy.retry_delay),
            on_failure: policy.on_failure,
            deleted_file_limit_bytes: u64::from(policy.deleted_file_limit_mib) << 20,
            pre_copy: ResolvedPreCopy::from(&policy.pre_copy),
        }
    }
}

/// What is known of a move.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationStatus {
    /// `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the move stands.
    #[serde(default)]
    pub phase: Phase,
    /// One sentence: what is waited for, or why it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `Completed` (terminal), `Committed` (the point of no return is passed), `RestoreFailing` (committed, and the target
    /// can't run it yet), `GivenUp` (committed, and the state will never run: the application starts cold).
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_string()]))]
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// Number of the current attempt, from 1. Agents act only on reports and duties of this attempt.
    #[serde(default)]
    pub attempt: u32,
    /// Who may run the application. Absent until the Migration is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// The resolved policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ResolvedPolicy>,
    /// How the replacement comes to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<Strategy>,
    /// The pod that is moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_pod: Option<ObjectRef>,
    /// UID of the controller (ReplicaSet, StatefulSet, Job) that owns the source; admission knows the replacement by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller_uid: Option<String>,
    /// Containers of the pod whose processes move, in the order in which kubelet starts them: sidecars first. Init containers that
    /// end run on the target as at every start of a pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// The pod that holds the room on the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<ObjectRef>,
    /// Node that the scheduler chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_node: Option<String>,
    /// The pod in which an early cut is restored on the target and never runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<ObjectRef>,
    /// The pod that is restored to run; nothing else ever is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<ObjectRef>,
    /// With [`Strategy::DeleteFirst`] and no controller: the object to create again, kept before the source is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub pod_manifest: Option<serde_json::Value>,
    /// Nodes that can't run this image: no later attempt goes there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incompatible_nodes: Vec<String>,
    /// Nodes on which an attempt failed: a later attempt goes there only if no other node has room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoided_nodes: Vec<String>,
    /// Why attempts were rolled back, oldest first: one entry an attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<Failure>,
    /// When each phase of each attempt began.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<PhaseTime>,
    /// Written by the source's agent alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceReport>,
    /// Written by the target's agent alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetReport>,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "nullable": true, "x-kubernetes-preserve-unknown-fields": true })
}

/// How an attempt was decided, if it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Neither side has won: whoever is frozen stays frozen.
    Open,
    /// The target alone decides, by running the application or by giving the attempt back. The source stays frozen.
    Taken,
    /// The target owns the application: the source never thaws.
    Committed,
    /// The source owns the application: the target's copy is destroyed.
    Aborted,
}

/// Condition of a Migration: `True` once the state of a committed move was given up.
pub const GIVEN_UP: &str = "GivenUp";

impl MigrationStatus {
    /// Whether the state of a committed move was given up: the application starts cold, and no restored copy may run.
    pub fn is_given_up(&self) -> bool {
        self.conditions.iter().any(|condition| condition.type_ == GIVEN_UP && condition.status == "True")
    }

    /// How the current attempt was decided. A commit of any attempt is final.
    pub fn verdict(&self) -> Verdict {
        self.verdict_of(self.attempt)
    }

    /// How attempt `attempt` was decided. A commit of any attempt decides all of them.
    pub fn verdict_of(&self, attempt: u32) -> Verdict {
        let (Some(owner), Some(source)) = (&self.owner, self.source_pod.as_ref().and_then(|pod| pod.node.as_ref()))
        else {
            return Verdict::Open;
        };
        if owner.node != *source {
            if owner.tentative { Verdict::Taken } else { Verdict::Committed }
        } else if attempt > 0 && owner.attempt >= attempt {
            Verdict::Aborted
        } else {
            Verdict::Open
        }
    }

    /// The source agent's report, if it speaks of the current attempt.
    pub fn source_now(&self) -> Option<&SourceReport> {
        self.source.as_ref().filter(|report| report.attempt == self.attempt)
    }

    /// The target agent's report, if it speaks of the current attempt.
    pub fn target_now(&self) -> Option<&TargetReport> {
        self.target.as_ref().filter(|report| report.attempt == self.attempt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(owner: Option<(&str, u32)>, attempt: u32) -> MigrationStatus {
        MigrationStatus {
            attempt,
            owner: owner.map(|(node, attempt)| Owner::new(node, attempt)),
            source_pod: Some(ObjectRef {
                name: "store".to_owned(),
                uid: "1".to_owned(),
                node: Some("source".to_owned()),
            }),
            ..MigrationStatus::default()
        }
    }

    #[test]
    fn an_attempt_is_open_until_the_owner_names_it() {
        for (owner, attempt, verdict) in [
            (None, 0, Verdict::Open),
            (Some(("source", 0)), 0, Verdict::Open),
            (Some(("source", 0)), 1, Verdict::Open),
            (Some(("source", 1)), 1, Verdict::Aborted),
            (Some(("source", 1)), 2, Verdict::Open),
            (Some(("source", 2)), 2, Verdict::Aborted),
            (Some(("target", 2)), 2, Verdict::Committed),
        ] {
            assert_eq!(status(owner, attempt).verdict(), verdict, "{owner:?} {attempt}");
        }
    }

    #[test]
    fn a_commit_of_an_earlier_attempt_is_final() {
        assert_eq!(status(Some(("target", 1)), 2).verdict(), Verdict::Committed);
    }

    #[test]
    fn what_a_target_has_taken_is_neither_committed_nor_open_to_others() {
        let taken = MigrationStatus { owner: Some(Owner::tentative("target", 1)), ..status(None, 1) };
        assert_eq!(taken.verdict(), Verdict::Taken);
        let written = serde_json::to_value(&taken.owner).expect("JSON");
        assert_eq!(written, serde_json::json!({ "node": "target", "attempt": 1, "tentative": true }));
        // What agents of before wrote, and the API server compares with, has no such field.
        let settled = serde_json::to_value(Owner::new("target", 1)).expect("JSON");
        assert_eq!(settled, serde_json::json!({ "node": "target", "attempt": 1 }));
    }

    #[test]
    fn a_report_of_an_older_attempt_is_void() {
        let mut status = status(Some(("source", 1)), 2);
        status.source = Some(SourceReport::new(1));
        assert!(status.source_now().is_none());
        status.attempt = 1;
        assert!(status.source_now().is_some());
    }

    #[test]
    fn defaults_of_the_policy_are_what_the_schema_says() {
        let policy = ResolvedPolicy::from_policy(None, &MigrationPolicy::default());
        assert_eq!((policy.max_downtime_millis, policy.timeout_millis, policy.max_attempts), (300, 150_000, 3));
        assert_eq!(policy.deleted_file_limit_bytes, 64 << 20);
    }
}
