//! Pods as data: what is read from them, and the pods that the operator makes. No I/O.

pub mod containers;
pub mod manifest;
pub mod obstacles;
pub mod pin;
pub mod quantity;
pub mod rehearsal;
pub mod reservation;
pub mod restarts;
pub mod seen;
