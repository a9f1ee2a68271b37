//! Tracking of real child processes.

mod attaching;
mod child;
mod rounds;
mod same;
