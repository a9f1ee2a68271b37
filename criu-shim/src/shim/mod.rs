//! The OCI runtime in front of runc, chosen by the runtime handler `tideover`.
//!
//! Owns the decision, in `create`, between a cold start and a restore (the agent makes it), and what follows from a
//! restore: `start` of a restored container does nothing, and where another process stands in its place, `kill` and `delete` mean
//! that one too. Every other command, and every option, is runc's own affair:
//! it is handed over by exec, untouched.
//!
//! The container's standard input and output are passed on as they came. Nothing is ever written to them.

mod ask;
mod bundle;
mod cli;
mod create;
mod delete;
mod log;
mod marker;
mod run;
mod runtime;
mod stand_in;
mod supervise;

pub use run::main;
