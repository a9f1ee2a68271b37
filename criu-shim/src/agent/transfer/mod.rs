//! Agent to agent: how the state of a pod crosses from its source to its target.
//!
//! One TLS connection per attempt, and another in its place when it is lost before the freeze ([`session`]). It begins with
//! what it is for, or with what it goes on from ([`hello`]); then come rounds of parts, each with its digest ([`hashing`]), each
//! round closed by a digest over all of it. The target answers with notices, keeps the digests of files beside them, and
//! compares them before the files are used; memory goes into the page store of its process ([`memory`]). Everything is
//! bounded before it is decoded. Where the connection is what takes the time, pages cross compressed ([`worth`]). Of CRIU this module knows only which memory its images wait for, of pods and of the API
//! server nothing: `source` and `target` decide what is sent and what becomes of it.

mod buffers;
mod counts;
pub mod digest;
mod flow;
pub mod frame;
pub mod growing;
pub mod hashing;
pub mod hello;
mod incoming;
pub mod link;
pub mod manifest;
pub mod memory;
pub mod message;
mod outgoing;
mod packed;
mod packing;
pub mod pages;
mod rate;
pub mod receive;
pub mod send;
pub mod session;
pub mod stored;
pub mod tally;
pub mod wire;
pub mod worth;
