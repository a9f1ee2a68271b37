//! Why a pod can't be moved, known before any maintenance.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One named reason why a pod can't be moved. Shown before any maintenance; such a pod is never frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Obstacle {
    /// Machine readable reason.
    pub reason: ObstacleReason,
    /// One sentence that names the field, volume or file.
    pub message: String,
}

/// What about a pod stands in the way of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum ObstacleReason {
    /// A container has a terminal (`tty: true`): the other end of it is in containerd and does not move.
    Terminal,
    /// The pod shares the node's network: its address and listeners belong to the node.
    HostNetwork,
    /// The pod shares the node's process ids.
    HostPid,
    /// The pod shares the node's IPC objects.
    HostIpc,
    /// The pod has a user namespace of its own, which CRIU can't rebuild under kubelet's mapping.
    UserNamespace,
    /// A volume whose content can't follow the pod to another node.
    UnsupportedVolume,
    /// Several containers that can't be moved at one cut: one of them must work before kubelet creates the next.
    SeveralContainers,
    /// An init container that goes on running beside the pod, and that must work before kubelet creates the next.
    Sidecar,
    /// An init container mounts a claim: on the target it would change what the application uses.
    InitContainer,
    /// An ephemeral debug container is attached.
    EphemeralContainer,
    /// The pod holds a device: its state is outside of the process.
    Device,
    /// The pod's processes share one PID namespace across containers.
    SharedProcessNamespace,
    /// A container is privileged, or may use the node's devices.
    Privileged,
    /// The pod asks for a container runtime of its own, which Tideover does not stand in front of.
    RuntimeClass,
    /// The pod is not running (yet, or any more).
    NotRunning,
    /// The pod's owner is of a kind that replaces pods by rules that a move would break (DaemonSet, static pod).
    UnsupportedOwner,
}
