//! The operator: which pod moves, where and when; the webhooks; the certificates.
//!
//! Decisions are pure functions over what was observed ([`transition`], [`pod::obstacles`], ...); everything that
//! talks to the API server observes, asks for a decision, and carries it out.

pub mod condition;
pub mod migration;
pub mod moves;
pub mod node;
pub mod pod;
pub mod policy;
pub mod settings;
pub mod transition;
