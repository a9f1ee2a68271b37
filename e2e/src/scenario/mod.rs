//! What the demo, the end-to-end tests and the benchmarks have in common: a cluster with Tideover installed, programs
//! that show gaps and second copies, and waits for conditions.
//!
//! Everything goes through the doors that people use: kubectl, helm, the API. Only [`victim`], [`moment`], [`flip`],
//! [`parted`], [`remains`], [`insides`] and [`cpu_limits`] look into the product or the node: to end its processes, to tell how far
//! a move has come, to spoil what lies on a disk, to part two nodes, to find what was left behind, and to see what the kernel
//! knows.

pub mod bare_runc;
pub mod cluster;
pub mod collector;
pub mod cpu_limits;
pub mod drain;
pub mod figures;
pub mod flip;
pub mod insides;
pub mod kube;
pub mod manifests;
pub mod migration;
pub mod moment;
pub mod parted;
pub mod remains;
pub mod sandbox;
pub mod store;
pub mod turn;
pub mod under_way;
pub mod victim;
pub mod wait;
pub mod watch;

pub use cluster::Cluster;
pub use collector::Collector;
pub use kube::Kube;
pub use sandbox::Sandbox;
pub use wait::{LIMIT, until};
