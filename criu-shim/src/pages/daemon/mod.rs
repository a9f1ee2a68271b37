//! The page daemon: serves CRIU's lazy restore from the page store of its own node.
//!
//! Owns the userfaultfds of the restored processes, from the moment CRIU hands them over until every page is where it
//! belongs; the order in which pages are put; and the [giving back](freeing) of the store's memory behind them. It decides nothing
//! about the move. It never lets go of a userfaultfd while pages are missing and all is well: the kernel would show
//! zeros in their place, to a process that has no way of noticing.
//!
//! A [`guard`] holds them too, for the case that the daemon is killed.
//!
//! [`book`] and [`missing`] know what is to be done and make no system call; [`userfault`] makes them; [`serve`] brings
//! the two together. What became of it stands in [`Status`], beside the exit code.

mod ahead;
mod alive;
mod book;
mod error;
mod freeing;
mod guard;
mod link;
mod live;
mod missing;
mod pace;
mod run;
mod serve;
mod status;
mod tie;
mod userfault;
mod window;

pub use alive::is_alive;
pub use error::DaemonError;
pub use link::SOCKET;
pub use run::main;
pub use serve::Settings;
pub use status::Status;
