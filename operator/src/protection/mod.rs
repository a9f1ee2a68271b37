//! Tells of each ProtectedWorkload what it protects, and begins moves when a node is cordoned and the policy says so.

mod assess;
mod controller;

pub use controller::run;
