//! What is known when a decision about a Migration is taken. Facts only: nothing here decides.

use tideover_crds::{Migration, MigrationPolicy, Obstacle};

/// All that a decision depends on, read from the API server for that decision.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Migration.
    pub migration: Migration,
    /// The pod that has the name in `spec.pod.name` now, whatever its UID.
    pub source: Option<SourceSeen>,
    /// The node of `status.sourcePod`, or of `source` before the Migration is accepted.
    pub source_node: NodeSeen,
    /// The node of `status.targetNode`, once there is one.
    pub target_node: Option<NodeSeen>,
    /// The reservation pod of the current attempt.
    pub reservation: Option<PodSeen>,
    /// The rehearsal pod of the current attempt.
    pub rehearsal: Option<PodSeen>,
    /// Every pod that admission has stamped as a replacement for this Migration.
    pub replacements: Vec<PodSeen>,
    /// The ProtectedWorkload that selects the pod, by name.
    pub policy: Option<(String, MigrationPolicy)>,
    /// False once what asked for the move is gone: the node was uncordoned, the NodeMaintenance deleted.
    pub reason_stands: bool,
    /// How much may be under way.
    pub room: Room,
    /// The namespace is one that admission never sees: a replacement there would be an ordinary pod.
    pub excluded: bool,
    /// What the API server answered when it refused the reservation, the rehearsal, or the replacement on trial.
    pub refused: Option<String>,
}

/// A pod as far as a move depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSeen {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Node that it is bound to.
    pub node: Option<String>,
    /// Deletion was asked for.
    pub terminating: bool,
    /// Deletion without grace was asked for: nothing is left to ask.
    pub force_deleted: bool,
    /// How far it is.
    pub state: RunState,
    /// Why kube-scheduler finds no node, in its words.
    pub unschedulable: Option<String>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Not started yet.
    Pending,
    /// Its containers run, or have run and are started again.
    Running,
    /// Its containers have run and ended.
    Ended,
    /// kubelet has turned it away: no container of it was ever started.
    TurnedAway,
}

impl RunState {
    /// True of a pod whose containers run or have run.
    pub fn has_run(self) -> bool {
        matches!(self, Self::Running | Self::Ended)
    }

    /// True of a pod that runs nothing any more and never will.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::TurnedAway)
    }
}

/// The pod that is to be moved.
#[derive(Clone, Debug)]
pub struct SourceSeen {
    /// As any pod.
    pub pod: PodSeen,
    /// Names of its containers that move, in the order in which kubelet starts them.
    pub containers: Vec<String>,
    /// What stands in the way of moving it.
    pub obstacles: Vec<Obstacle>,
    /// Why its restore can't be rehearsed, if it can't.
    pub rehearsal_obstacle: Option<String>,
    /// Which Migration may move it.
    pub claim: Claim,
    /// Its controller.
    pub controller: Option<Controller>,
    /// Value of the label `pod-template-hash`.
    pub template_hash: Option<String>,
    /// Value that the label had before the pod was taken out of its ReplicaSet.
    pub original_template_hash: Option<String>,
    /// It has the labels by which its Job knows it.
    pub in_job: bool,
    /// The object without what the API server adds, fit to be created again.
    pub manifest: serde_json::Value,
}

/// Which Migration may move a pod, from the annotation `tideover.dev/claimed-by`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// None yet.
    Free,
    /// This one.
    Ours,
    /// One that is over or gone: its UID.
    Stale(String),
    /// Another one that is under way: its name.
    Taken(String),
}

/// The controller that owns a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controller {
    /// `ReplicaSet`, `StatefulSet`, ...
    pub kind: String,
    /// UID.
    pub uid: String,
}

/// A node as far as a move depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeSeen {
    /// The object does not exist: the node is gone for good.
    Gone,
    /// It exists.
    Present {
        /// It is not cordoned.
        schedulable: bool,
    },
}

impl NodeSeen {
    /// True of a node that is gone for good.
    pub fn is_gone(self) -> bool {
        self == Self::Gone
    }
}

/// How many moves are under way, and how many may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Moves under way in the cluster.
    pub active: usize,
    /// The most that may be.
    pub max_active: usize,
    /// Moves under way away from this pod's node.
    pub outbound: usize,
    /// The most that may be.
    pub max_outbound: usize,
    /// Moves under way of pods of the same controller, where the pods that it makes have names of its own choice.
    pub of_controller: usize,
}
