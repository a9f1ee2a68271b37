//! Memory of processes on its way into a restore: the target's page store, and the daemon that serves CRIU from it.
//!
//! [`store`] owns the pages that arrive while the source still runs, by virtual address, and the promise that none is
//! missing. [`daemon`] owns the userfaultfds of a lazy restore until every page has been put where it belongs. Neither
//! ever decides whether a process may run, and neither reads or writes an image of CRIU: which pages are lazy is told to
//! them.

pub mod daemon;
mod range;
pub mod store;

pub use daemon::main;
pub use range::{PAGE, PageRange, RangeError};
