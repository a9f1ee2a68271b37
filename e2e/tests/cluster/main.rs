//! Everything that must hold, shown on a real cluster: real API server, kubelet, containerd, runc, CRIU and chart.
//!
//! The tests share one lab, each has a namespace of its own; they cordon nodes and stop agents, so they run one at a
//! time (`--test-threads=1`).

mod admission;
mod after_commit;
mod api_server;
mod cancel;
mod checkpoints;
mod convergence;
mod drain;
mod every_page;
mod failed_restore;
mod killed;
mod link;
mod node_clean;
mod page_daemon;
mod refused;
mod restart;
mod restart_causes;
mod restart_moves;
mod rolled_back;
mod triggers;
mod unprotected;
