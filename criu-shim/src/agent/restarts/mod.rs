//! Restarts in place, told: each end of a run in a supervised container becomes an Event on its pod and a line in the log.
//!
//! [`news`] decides, purely, which lines of a record are still to be told; [`event`] puts one into words; [`watch`] looks, tells
//! and writes down how far it has come. What a container has written is a word about that container only: it can't make more of
//! it heard than [`allowance`] lets through.

pub mod allowance;
pub mod event;
pub mod news;
pub mod watch;
