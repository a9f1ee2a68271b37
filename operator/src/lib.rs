//! The operator: which pod moves, where and when; the webhooks; the certificates.
//!
//! Decisions are pure functions over what was observed ([`transition`], [`pod::obstacles`], ...); everything that
//! talks to the API server observes, asks for a decision, and carries it out.

pub mod admission;
pub mod begin;
pub mod causes;
pub mod certificates;
pub mod condition;
pub mod health;
pub mod leadership;
pub mod maintenance;
pub mod migration;
pub mod moves;
pub mod node;
pub mod pod;
pub mod policy;
pub mod protection;
pub mod retention;
pub mod run;
pub mod settings;
pub mod transition;
