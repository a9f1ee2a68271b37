//! Why a round can't be taken.

use crate::agent::room::NoRoom;
use crate::agent::transfer::link::LinkError;
use crate::agent::transfer::memory::{FinishError, MemoryError};
use crate::agent::transfer::message::{MAX_PARTS, NameError, Part};
use crate::agent::transfer::packed::PackedError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a round could not be taken.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The connection is gone.
    #[error("receive the state")]
    Link(#[from] LinkError),
    /// The source gave up.
    #[error("the source gave up: {0}")]
    Aborted(String),
    /// A message that has no place here.
    #[error("the source sent {got} where {expected} was expected")]
    Unexpected {
        /// What came.
        got: String,
        /// What should have.
        expected: &'static str,
    },
    /// A part's name is not acceptable.
    #[error("refuse a part")]
    Name(#[from] NameError),
    /// Two parts of one name.
    #[error("{0} was sent twice")]
    Twice(Part),
    /// Too many parts.
    #[error("more than {MAX_PARTS} parts were sent")]
    TooMany,
    /// More bytes than there is room for.
    #[error("the state is larger than there is room for")]
    TooMuch(#[from] NoRoom),
    /// A directory or file can't be written.
    #[error("write {path:?}")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Memory can't be kept.
    #[error("keep memory that was sent")]
    Memory(#[from] MemoryError),
    /// Pages that were compressed are no such thing.
    #[error("read {part}")]
    Packed {
        /// What they belong to.
        part: Part,
        /// Why.
        #[source]
        source: PackedError,
    },
    /// Memory is not what the images ask for.
    #[error("complete the memory that was sent")]
    Finish(#[from] FinishError),
    /// The bytes are not as many as were sent, or not the same, or their digest is none.
    #[error("{part} arrived with another length or digest than it was sent with")]
    Corrupted {
        /// Which part.
        part: Part,
    },
    /// The round as a whole is not what was sent.
    #[error("round {round} arrived with another digest than it was sent with")]
    RoundCorrupted {
        /// Which round.
        round: u32,
    },
}

impl ReceiveError {
    /// Whether what arrived is not what was sent, as opposed to nothing arriving.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupted { .. } | Self::RoundCorrupted { .. } | Self::Twice(_) | Self::Packed { .. })
    }
}
