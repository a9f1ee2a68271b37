//! Empties a node while a NodeMaintenance asks for it, and undoes only what it did itself.

mod controller;
mod progress;

pub use controller::run;
