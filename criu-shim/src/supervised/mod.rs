//! Containers under `tideover-init`: what such a container is given, and what of it is on the node.
//!
//! [`program`] is which `tideover-init` it runs, [`rules`] what that is told, [`spec`] what the two make of the container's
//! specification, and [`place`] the directory on the node where it writes its record. The shim makes a place and takes it
//! away, the agent reads it. Nothing here decides whether a container is supervised: the shim does for one that starts, and
//! the source of a move for one that is restored.

pub mod place;
pub mod program;
pub mod rules;
pub mod spec;

pub use place::{Checkpoints, Identity, Place, PlaceError};
pub use program::{Program, ProgramError};
pub use rules::RuleError;

/// Directory of the places, on the node. Like the containers, they don't outlive a reboot.
pub const PLACES: &str = "/run/tideover-init";

/// Where the container sees the program. Below a directory of our own, so that it hides nothing of an image's.
pub const PROGRAM: &str = "/.tideover/init";

/// Where the container sees the directory in which the notify socket and the record are.
pub const DIRECTORY: &str = "/.tideover/run";

/// Name of the configuration in that directory.
pub const CONFIG: &str = "config.json";
