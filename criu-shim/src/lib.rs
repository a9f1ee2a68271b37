//! What Tideover runs on a node.
//!
//! Three programs share this crate: `criu-shim`, the OCI runtime in front of runc; `criu-relay`, installed under the
//! name `criu`, between `runc restore` and the real CRIU; and `tideover-agent`, which moves state between nodes. The
//! first two are small, static and synchronous, because they stand in the way of every container start. The crate never
//! decides where a pod goes: that is the operator's, and the two share API objects only.

pub mod agent;
mod cache;
pub mod causes;
pub mod criu;
pub mod freezer;
pub mod local;
pub mod memory;
pub mod pages;
mod processors;
pub mod relay;
pub mod shim;
pub mod supervised;
pub mod system_v;
pub mod throttle;
