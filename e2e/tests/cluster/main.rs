//! Everything that must hold, shown on a real cluster: real API server, kubelet, containerd, runc, CRIU and chart.
//!
//! The tests share one lab, and each has a namespace of its own. Those that cordon nodes or end agents have the lab alone
//! (`Sandbox::new`), the others may run side by side (`Sandbox::beside`).
//!
//! A test gives the same verdict on a slow machine and on a fast one: it waits for conditions, derives what it asks for from what it
//! has measured, and where a moment was missed in which it wanted to do something it tries again with another move.

mod admission;
mod after_commit;
mod api_server;
mod cancel;
mod checkpoints;
mod convergence;
mod drain;
mod every_page;
mod failed_restore;
mod hung_restore;
mod killed;
mod link;
mod node_clean;
mod page_daemon;
mod postgres;
mod refused;
mod restart;
mod restart_causes;
mod restart_moves;
mod rolled_back;
mod same_name;
mod several;
mod several_by_name;
mod triggers;
mod unprotected;
mod warm_target;
