//! The record: one line of JSON for each end of a run, in two files of bounded size.
//!
//! Owns the lines' shape, how they are appended ([`Writer`]) and how they are read ([`read`]). The directory belongs to one
//! container, and the container may write anything into it: [`read`] trusts nothing, and what it returns says something
//! about that container only.
//!
//! A line is one write(2) at the end of the newer file, which takes the older one's place when it is full. A line that a
//! crash has torn is not read, and the next one begins on a line of its own.

mod line;
mod read;
mod write;

pub use line::{Line, Outcome};
pub use read::{ReadError, Reading, read};
pub use write::{WriteError, Writer};

/// The newer file.
pub const NEW: &str = "stops.log";
/// The older file.
pub const OLD: &str = "stops.log.1";
/// Most bytes of one file.
pub const MAX_FILE: u64 = 32 * 1024;
/// Most bytes of one line, its end included.
pub const MAX_LINE: usize = 1200;
