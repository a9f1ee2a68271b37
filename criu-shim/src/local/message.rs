//! The messages, as data.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use thiserror::Error;

/// Version of this protocol. Shim, relay and agent of one node are installed together; a shim that was started
/// before an upgrade may still meet the agent that came with it. [`Hello`], [`FromRelay::Relay`] as a line of its own, and
/// [`ToRelay::Abandon`] are the same in every version: they are how one that is too old is made to end.
pub const VERSION: u32 = 6;

/// The first line of every connection, from the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Hello {
    /// Version that the client speaks.
    pub version: u32,
    /// Which set of messages follows.
    pub role: Role,
}

/// Who is speaking to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// [`FromShim`] and [`ToShim`] follow.
    Shim,
    /// [`FromRelay`] and [`ToRelay`] follow.
    Relay,
}

/// The client speaks another version: the agent closes the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the client speaks version {theirs} of the local protocol, this agent version {VERSION}")]
pub struct VersionMismatch {
    /// Version in the client's hello.
    pub theirs: u32,
}

impl Hello {
    /// The hello of this build for `role`.
    pub fn new(role: Role) -> Self {
        Self { version: VERSION, role }
    }

    /// # Errors
    /// [`VersionMismatch`] unless the client speaks exactly our version.
    pub fn check(&self) -> Result<Role, VersionMismatch> {
        if self.version == VERSION { Ok(self.role) } else { Err(VersionMismatch { theirs: self.version }) }
    }
}

/// Shim to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromShim {
    /// A container is being created; how shall it start? Asked again, unchanged, after a lost connection.
    Create(Create),
    /// `runc restore` has ended.
    Restored {
        /// Token of the [`ToShim::Restore`] that this answers.
        token: String,
        /// runc's exit code; 128 + N where signal N ended it.
        exit_code: i32,
    },
}

/// Identity of a container that is being created. All of it comes from the bundle that containerd wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Create {
    /// Container id, as containerd names it.
    pub container_id: String,
    /// Directory of the OCI bundle, in the node's mount namespace.
    pub bundle: PathBuf,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// UID of the pod.
    pub pod_uid: String,
    /// Name of the container in the pod; empty for a sandbox.
    pub container_name: String,
    /// Sandbox or application container.
    pub container_type: ContainerType,
    /// Name of the Migration in the pod's annotation `tideover.dev/replacement-of`: where to ask, not what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement_of: Option<String>,
    /// Name of the Migration in the pod's annotation `tideover.dev/rehearsal-of`. Such a container never starts cold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal_of: Option<String>,
}

/// What a container is to the CRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ContainerType {
    /// The pause container that holds the pod's namespaces.
    Sandbox,
    /// An application, init or ephemeral container.
    Container,
}

/// Agent to shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToShim {
    /// Not decided yet, still alive. Sent at least every 10 s, because the shim gives up after 100 s of silence.
    Wait,
    /// Start the container as runc would.
    ColdStart,
    /// Restore the container.
    Restore {
        /// Names this restore towards the relay. Opaque, unguessable, used once.
        token: String,
        /// Directory of the images, in the node's mount namespace. `descriptors.json` is in it now; the rest may
        /// come any time before the relay is released.
        images_dir: PathBuf,
        /// Directory for logs and for CRIU's sockets.
        work_dir: PathBuf,
        /// Other containers of the pod are created only once this one's `create` and `start` have returned: a stand-in takes
        /// its place until its processes are there.
        stand_in: bool,
        /// What the relay does before the images are there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ahead: Option<Box<Ahead>>,
    },
    /// Do not start the container at all.
    Refuse {
        /// One sentence, which ends up in the pod's events.
        reason: String,
    },
}

/// Relay to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromRelay {
    /// First message, and first again on every new connection after a lost one.
    Relay {
        /// Token of the restore.
        token: String,
        /// Where the relay stands.
        stage: RelayStage,
        /// The process that is CRIU, as the node's `/proc` names it: runc has put it into the container's cgroups.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        criu: Option<i32>,
    },
    /// The processes are rebuilt; CRIU waits at post-restore.
    Held,
    /// CRIU has ended. The last message, said again on a new connection until it is [`ToRelay::Heard`].
    Ended {
        /// Whether the processes run.
        success: bool,
        /// CRIU's own first error, its errno and the last error lines of its log; empty after a success.
        message: String,
    },
}

/// Where a relay stands when it (re)connects, and what it then waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RelayStage {
    /// It has runc's request, and CRIU has seen no image, whether it has the request or not. Waits for [`ToRelay::Release`] or [`ToRelay::Abandon`].
    Requested,
    /// CRIU is working. Waits for CRIU; [`FromRelay::Held`] or [`FromRelay::Ended`] follows.
    Restoring,
    /// CRIU waits at post-restore. Waits for [`ToRelay::Resume`] or [`ToRelay::Abandon`].
    Held,
    /// The word has been given, CRIU is about to end. [`FromRelay::Ended`] follows.
    Finishing,
}

/// Agent to relay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ToRelay {
    /// Still alive, nothing new.
    Wait,
    /// Every image is there and verified: let CRIU use them.
    Release {
        /// How to edit the request.
        options: ReleaseOptions,
    },
    /// The commit is won: let the processes run.
    Resume,
    /// The attempt is over: make CRIU fail through its own protocol. In answer to [`FromRelay::Ended`]: nobody waits for
    /// it.
    Abandon,
    /// [`FromRelay::Ended`] was taken, and what follows from it is written down: the relay may end.
    Heard,
}

/// Where memory is that comes after the restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PagesAt {
    /// Directory of the page stores.
    pub store: PathBuf,
    /// Directory in which CRIU works, and looks for the daemon's socket.
    pub work: PathBuf,
}

/// What a relay does before the images are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ahead {
    /// It starts what brings the memory that is there.
    pub pages: PagesAt,
    /// What CRIU is going to be asked for, where that is known and no image can have come yet: it has its request then, and waits
    /// for the images itself. Where the release says anything else in the end, the restore fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<ReleaseOptions>,
}

/// Memory that comes after the restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pages {
    /// Where it is.
    pub at: PagesAt,
    /// Processes that have a store, as the images name them.
    pub pids: Vec<i32>,
}

/// System V objects that the images hold with their IPC namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SystemV {
    /// Ids of the segments that were removed while processes had them mapped: they go with the last mapping.
    pub removed: Vec<i32>,
}

/// What the agent wants in the restore request beyond what runc put there.
///
/// The relay always sets what a move needs whatever the agent says: `tcp-close`, `skip-in-flight`, network lock `skip`,
/// no cgroup restoring (runc has put CRIU into the container's own cgroups), and the namespaces of the new pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReleaseOptions {
    /// CRIU's log level, 0 to 4.
    pub log_level: i32,
    /// Largest deleted file that may be restored, bytes. Must not be below the limit of the dump.
    pub ghost_limit: u32,
    /// Restore file locks.
    pub file_locks: bool,
    /// Restore names of deleted files that still had another name.
    pub link_remap: bool,
    /// Where memory is that comes after the restore, if any does: the relay starts the daemon that brings it.
    pub pages: Option<Pages>,
    /// The System V objects that the restore makes, if the images hold any: the pod has no others then.
    pub system_v: Option<SystemV>,
    /// Have CRIU make mounts in its older way, which is faster and can't give them peers.
    pub older_mounts: bool,
    /// Mounts that were dumped as external beyond the OCI spec's own: key in the image, path on this node. Replaces
    /// runc's entry of the same key.
    pub external_mounts: BTreeMap<String, PathBuf>,
}
