//! `tideover-init`: PID 1 of a container whose policy has a `restart` section.
//!
//! Owns what happens in that container between two runs of the application: why a run ended ([`exit`]), whether there is
//! another and when ([`decide`](mod@decide)), what may be done to a run meanwhile ([`machine`]), and what is written down about it
//! ([`record`]). All of that is pure; the system calls are in the private modules beside them.
//!
//! It knows nothing of Kubernetes, never talks to the node's agent and never writes to the application's standard output:
//! it is told everything by [`config`], and what it has to say goes into the record.

pub mod clock;
pub mod config;
pub mod decide;
pub mod exit;
pub mod history;
pub mod machine;
pub mod notice;
pub mod record;
pub mod signal;

mod footprint;
mod kernel;
mod mounts;
mod oom;
mod signals;
mod socket;
mod spawn;
mod supervise;
mod tree;
mod whereabouts;

pub use supervise::main;
