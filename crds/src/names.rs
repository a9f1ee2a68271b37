//! Names that appear on other people's objects: labels, annotations, finalizers, the runtime class.
//!
//! Everything below `tideover.dev/` is Tideover's: admission refuses users who try to set or change one.

/// API group, and prefix of every label and annotation.
pub const GROUP: &str = "tideover.dev";

/// RuntimeClass, and containerd runtime handler, that puts `criu-shim` in front of runc.
pub const RUNTIME_CLASS: &str = "tideover";

/// Pod annotation: `<name of the Migration>` that this pod is the replacement of. Set at admission. It says where to
/// ask; what is restored is decided by the Migration's `status.replacement.uid` alone.
pub const REPLACEMENT_OF: &str = "tideover.dev/replacement-of";

/// Pod annotation: `<name of the Migration>` that this pod rehearses the restore of. Set by the operator on the pod that it
/// creates for that. No container of such a pod ever starts cold: it would be a second copy.
pub const REHEARSAL_OF: &str = "tideover.dev/rehearsal-of";

/// Pod annotation: UID of the one Migration that may move this pod. Set by the operator with a compare-and-swap, so
/// that a pod has at most one active Migration whatever the operator's caches say.
pub const CLAIMED_BY: &str = "tideover.dev/claimed-by";

/// Pod annotation on a source taken out of its ReplicaSet: the value that [`POD_TEMPLATE_HASH`] had.
pub const ORIGINAL_TEMPLATE_HASH: &str = "tideover.dev/original-pod-template-hash";

/// Pod annotation: a protected container starts in a time namespace of its own, so that CLOCK_MONOTONIC can go on
/// from where it was on another node.
pub const TIME_NAMESPACE: &str = "tideover.dev/time-namespace";

/// Pod annotation: the rules by which the pod's containers are restarted in place ([`Supervision`](crate::Supervision), JSON).
/// Set at admission from the policy. A pod keeps the rules that it was created with.
pub const SUPERVISION: &str = "tideover.dev/supervision";

/// Pod annotation: what is known of restarts in place of the pod's containers ([`RestartReport`](crate::RestartReport), JSON).
/// Written by the agent of the pod's node, which may write nothing else on a pod.
pub const RESTARTS: &str = "tideover.dev/restarts";

/// Pod label on reservation pods: name of the Migration they hold the room for.
pub const RESERVATION_FOR: &str = "tideover.dev/reservation-for";

/// Finalizer on Migrations: deleting one aborts the move, and the object stays until that is done.
pub const FINALIZER: &str = "tideover.dev/abort-before-delete";

/// Finalizer on NodeMaintenances: deleting one uncordons what it cordoned.
pub const MAINTENANCE_FINALIZER: &str = "tideover.dev/uncordon-before-delete";

/// Node annotation: name of the NodeMaintenance that cordoned the node. Only what it names is ever uncordoned.
pub const CORDONED_BY: &str = "tideover.dev/cordoned-by";

/// NodeMaintenance label: the operator created it, because somebody cordoned the node.
pub const CREATED_FOR_CORDON: &str = "tideover.dev/created-for-cordon";

/// Label of the ReplicaSet controller by which it tells its pods apart.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// Labels of the Job controller by which it tells its pods apart: that of now, and that of Jobs from before Kubernetes 1.27.
pub const JOB_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];

/// Signer name on the CertificateSigningRequests of agents.
pub const AGENT_SIGNER: &str = "tideover.dev/agent";

/// DNS name in an agent's certificate: the identity `node` has towards other agents.
pub fn agent_identity(node: &str) -> String {
    format!("{node}.agent.tideover.dev")
}
