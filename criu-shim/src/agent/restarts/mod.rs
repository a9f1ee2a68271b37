//! Restarts in place, told: each end of a run in a supervised container becomes an Event on its pod, a line in the log, a count in
//! the metrics, and what the pod's object says of its restarts.
//!
//! [`news`] decides, purely, which lines of a record are still to be told; [`event`] puts one into words, [`count`] counts them, and
//! [`summary`] is what the pod says; [`watch`] looks, tells and writes down how far it has come, and [`annotate`] writes to pods.
//! What a container has written is a word about that container only: it can't make more of it heard than [`allowance`] lets
//! through, and none of its own words gets further than an Event.

pub mod allowance;
pub mod annotate;
pub mod count;
pub mod event;
#[cfg(test)]
pub(in crate::agent) mod fixture;
pub mod news;
pub mod summary;
pub mod watch;
pub mod words;
