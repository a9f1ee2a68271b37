//! The relay: a program named `criu` between `runc restore` and the real CRIU.
//!
//! runc starts `criu swrk FD` from its PATH. For a restore the relay starts the real CRIU in its own place, so that runc
//! stays its parent, and passes the conversation on from a process beside it, holding two things back: runc's request, or
//! the first image ([`ahead`]), until all images are there, and CRIU's `post-restore`, until somebody has won the right to run the processes.
//! Everything that is no restore it hands to the real CRIU by exec, and is gone.
//!
//! It decides nothing: [`state`] says what each event means, the agent says when. It never ends CRIU; it makes it fail
//! through CRIU's own protocol.

mod agent;
mod ahead;
mod handover;
mod mounts;
mod pages;
mod pass;
mod request;
mod run;
mod state;
mod system_v;
mod take;

pub use request::{RequestError, RestoreRequest};
pub use run::main;
