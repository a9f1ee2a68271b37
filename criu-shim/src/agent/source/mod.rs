//! The source's side of a move: look, connect, freeze, dump, send, and then do what the verdict says.
//!
//! The pod runs until the go. From the freeze on it stays frozen until `status.owner` says who owns it; see [`frozen`].

mod calm;
mod closed;
pub mod connect;
pub mod container;
pub mod cpu;
pub mod cut;
mod dial;
pub mod driver;
mod first_failure;
pub mod freeze;
pub mod frozen;
mod images;
pub mod last_word;
mod mapped;
pub mod precopy;
pub mod preflight;
mod round;
pub mod settle;
pub mod snapshot;
mod watching;
#[cfg(test)]
mod whole_move_tests;
