//! The target's side of a move: receive, stage, let CRIU rebuild the processes, hold them, commit, resume.
//!
//! What arrives counts only when its digest is right; what is rebuilt runs only when `status.owner` names this node.

pub mod create;
pub mod driver;
pub mod event;
pub mod listen;
pub mod local;
pub mod lost;
pub mod registry;
pub mod stage;
mod warm;
