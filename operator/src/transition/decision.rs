//! What a decision says: a status to write, then actions to take, in order, ending at the first that fails.

use std::time::Duration;
use tideover_crds::{MigrationStatus, ObjectRef, Owner};

/// What is next for a Migration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// The status to write first, if it is another than the one observed.
    pub status: Option<MigrationStatus>,
    /// What to do then, in order.
    pub actions: Vec<Action>,
    /// When to look again if nothing happens before.
    pub requeue: Option<Duration>,
}

impl Decision {
    /// True where nothing is to be done but to wait.
    pub fn is_idle(&self) -> bool {
        self.status.is_none() && self.actions.is_empty()
    }
}

/// One thing to do. Each names the objects by UID and can be repeated without harm.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Put the finalizer on the Migration.
    AddFinalizer,
    /// Take it off: nothing is left to undo.
    RemoveFinalizer,
    /// Write this Migration's UID into the source's claim, if the claim is still what was seen.
    ClaimPod {
        /// Name of the pod.
        name: String,
        /// Its UID.
        uid: String,
        /// The claim that was seen; none where there was none.
        instead_of: Option<String>,
    },
    /// Take this Migration's claim off the source.
    ReleasePod {
        /// Name of the pod.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Create the reservation pod.
    CreateReservation(ReservationWish),
    /// Create the rehearsal pod.
    CreateRehearsal(RehearsalWish),
    /// Delete a pod, by UID.
    DeletePod {
        /// What the pod is to the move.
        role: PodRole,
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
        /// Seconds that it is given; with 0 the object is gone at once.
        grace_seconds: u32,
    },
    /// Take the source out of its ReplicaSet: the label gets the suffix, the annotation keeps the original.
    TakeOutOfReplicaSet {
        /// Name of the source.
        name: String,
        /// Its UID.
        uid: String,
        /// Value of the label now.
        hash: String,
    },
    /// Put the source back into its ReplicaSet.
    PutBackIntoReplicaSet {
        /// Name of the source.
        name: String,
        /// Its UID.
        uid: String,
        /// Value of the label before.
        hash: String,
    },
    /// Have the source's Job let go of it: a pod of its own that is deleted counts as one that has failed.
    TakeOutOfJob {
        /// Name of the source.
        name: String,
        /// Its UID.
        uid: String,
    },
    /// Create the replacement of a pod that has no controller, pinned to the target and stamped.
    CreateReplacement {
        /// The object as it was kept.
        manifest: serde_json::Value,
        /// The target.
        node: String,
    },
    /// Create a pod that has no controller once more, as its author wrote it: free to go anywhere, and restored by nobody.
    CreateCold {
        /// The object as it was kept.
        manifest: serde_json::Value,
    },
    /// Compare-and-swap of `status.owner` to the source for this attempt.
    Abort {
        /// The owner that was seen.
        seen: Owner,
        /// The source node.
        node: String,
        /// The attempt to abort.
        attempt: u32,
    },
    /// Compare-and-swap of `status.owner` to the target that has taken the attempt, for good.
    Keep {
        /// The tentative owner that was seen.
        seen: Owner,
    },
    /// Tell people, by an Event.
    Announce(Announcement),
}

/// What a pod is to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// The pod that is moved.
    Source,
    /// The pod that holds the room.
    Reservation,
    /// The pod in which an early cut is restored and never runs.
    Rehearsal,
    /// The pod that is restored.
    Replacement,
}

/// The reservation pod of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationWish {
    /// Its name.
    pub name: String,
    /// The only node allowed, where a person named one.
    pub only_on: Option<String>,
    /// Nodes that are out of the question.
    pub never_on: Vec<String>,
    /// Nodes to take only if there is no other.
    pub rather_not_on: Vec<String>,
}

/// The rehearsal pod of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RehearsalWish {
    /// Its name.
    pub name: String,
    /// UID of the pod that it is made after.
    pub source_uid: String,
    /// The target.
    pub node: String,
}

/// An Event on the Migration, with its pod as the related object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// A Warning, not only news.
    pub warning: bool,
    /// CamelCase.
    pub reason: String,
    /// One sentence.
    pub note: String,
    /// A pod whose own Events are to say so too.
    pub pod: Option<ObjectRef>,
}
