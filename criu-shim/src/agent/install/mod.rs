//! Puts Tideover on a node and takes it off again.
//!
//! [`payload`] copies the programs under `/opt/tideover`; [`config`] decides, purely, what containerd's configuration must
//! say; [`containerd`] finds, asks and restarts the daemon; [`node`] does all of it in order. Running pods are never
//! touched: `criu-shim` stays on the node for as long as a container runs under it.

pub mod config;
pub mod containerd;
pub mod node;
pub mod payload;

pub use node::{InstallError, install, remove_if_last, uninstall};
