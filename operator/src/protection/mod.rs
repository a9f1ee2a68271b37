//! Tells of each ProtectedWorkload what it protects, and begins moves where the policy says so: when a node is cordoned, and when an
//! application was restarted too often on its node.

mod assess;
mod controller;
mod limit;

pub use controller::run;
