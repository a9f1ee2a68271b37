//! Which pages of a running process are written, found out from outside: what pre-copy sends.
//!
//! Owns the tracking of one process ([`Tracker`]; where that can't be, [`SoftDirty`], and then [`Comparer`]; [`Engine`] chooses),
//! reading its memory ([`MemoryReader`]), and the same for memory that belongs to no process ([`shared`]). The kernel write-protects
//! pages and takes the protection off at the first write, so that the difference between two looks is what was written
//! between them. That takes a userfaultfd, which can only be made inside the process: one thread is stopped for a moment
//! and made to call it; the same way a process is made to give back what CRIU has left in it ([`Injector`]). It never writes to the process' memory, never freezes or thaws, and never decides how many
//! rounds are enough.

mod compare;
mod engine;
mod entries;
mod error;
mod flags;
mod inject;
mod mapped;
mod marks;
mod obstacle;
mod pagemap;
#[cfg(target_arch = "x86_64")]
mod ptrace;
mod range;
mod read;
mod sent;
pub mod shared;
mod sharing;
mod soft_dirty;
mod tracker;
mod uffd;
pub(crate) mod vma;

// Elsewhere attaching is refused.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
pub(crate) mod tests;

pub use compare::Comparer;
pub use engine::{Attached, Engine};
pub use error::{AttachError, ReadError, TrackError};
pub use flags::Flags;
pub use inject::{Injector, serve as serve_injections};
pub use mapped::{MappedPart, joined, mapped_parts};
pub use obstacle::Obstacle;
pub use range::Range;
pub use read::{MemoryReader, Piece};
pub use sent::Sent;
pub use sharing::Sharing;
pub use soft_dirty::SoftDirty;
pub use tracker::{LastLook, Tracker};
pub use vma::Reason;
pub(crate) use vma::parse as parse_mappings;
use vma::{Vma, is_private_file, protecting, tracking};
