//! `tideover-agent`: moves state between nodes.
//!
//! What a node must do now is decided by [`duty`], from the Migration object and from what was done here already. The
//! rest does it: [`source`] freezes, dumps and sends; [`target`] receives, has the processes rebuilt and holds them;
//! [`owner`] is the one field by which exactly one of them goes on. [`journal`] is what a restarted agent reads first.

pub mod alone;
pub mod beside;
pub mod checkpoint;
pub mod context;
pub mod duty;
pub mod failure;
pub mod files;
#[cfg(test)]
mod fixture;
pub mod host;
pub mod identity;
pub mod images;
pub mod injector;
pub mod install;
pub mod journal;
pub mod keeper;
pub mod metrics;
pub mod owner;
pub mod programs;
pub mod report;
pub mod restarts;
pub mod room;
pub mod run;
pub mod settings;
pub mod source;
pub mod supervise;
pub mod target;
pub mod transfer;
pub mod unpassed;
