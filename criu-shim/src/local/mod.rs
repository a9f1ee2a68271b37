//! What the shim and the relay say to the agent of their node, and how.
//!
//! One JSON object a line over a unix stream socket. The client (shim or relay) speaks first: a [`Hello`], then its
//! question. This module owns the messages, their bounds and the blocking client, and the one
//! mark by which a shim tells an agent that is away. It decides nothing, and never
//! touches a container: what is restored is the agent's to know and the API object's to say.

mod client;
mod line;
mod message;
mod ran;

pub use client::{Client, ClientError};
pub use line::{LineError, MAX_LINE, decode, encode};
pub use message::{
    Ahead, ContainerType, Create, FromRelay, FromShim, Hello, Pages, PagesAt, RelayStage, ReleaseOptions, Role,
    SystemV, ToRelay, ToShim, VERSION, VersionMismatch,
};
pub use ran::{has_ran_mark, mark_ran};

/// Socket on which the agent listens. Mode 0600, owned by root: whoever may connect is root on this node already.
pub const SOCKET: &str = "/run/tideover/agent.sock";

/// Directory of the markers that say "this container came from a restore", one file for each container id.
pub const RESTORED: &str = "/run/tideover/restored";

/// Environment variable by which the shim tells the relay, through runc, which restore it belongs to.
pub const TOKEN_ENV: &str = "TIDEOVER_TOKEN";

/// Environment variable by which the shim tells the relay which bundle is restored.
pub const BUNDLE_ENV: &str = "TIDEOVER_BUNDLE";

/// Environment variable by which the shim tells the relay what to do before the images are there: [`Ahead`] in JSON.
pub const AHEAD_ENV: &str = "TIDEOVER_AHEAD";

/// Environment variable by which the shim tells the relay, through runc, which process stands in the container's place. The
/// relay sends it SIGUSR1 once runc has done its part and the images are waited for.
pub const STAND_IN_ENV: &str = "TIDEOVER_STAND_IN";

/// Directory of the agent's journal: while a pod's UID is in it, the pod may be frozen or moved.
pub const JOURNAL: &str = "/var/lib/tideover/journal";

/// Where Tideover lives on a node.
pub const INSTALL_ROOT: &str = "/opt/tideover";

/// How long shim and relay bear the agent's silence before they give up. kubelet gives a CRI call two minutes.
pub const SILENCE: std::time::Duration = std::time::Duration::from_secs(100);
