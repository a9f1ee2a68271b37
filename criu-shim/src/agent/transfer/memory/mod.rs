//! Receiving memory: pages go into the store of their process, round after round, until the last round says which count.
//!
//! A page that is like another one is copied from that one's store as soon as it is named: the other may be something else
//! with the next record. So parts are taken one at a time.

mod complete;
mod error;
mod sink;
#[cfg(test)]
pub(crate) mod tests;

pub use error::{FinishError, MemoryError};

use crate::agent::room::Share;
use crate::agent::transfer::hashing::{Digest, Hashing};
use crate::agent::transfer::pages::{DecodeError, Decoder};
use crate::criu::MOST_WITHHELD;
use crate::pages::store::{SharedWriter, StoreError, StoreWriter};
use sink::Own;
use std::collections::BTreeMap;
use std::path::Path;

/// Most processes of one move. Beyond that something else is wrong.
const MAX_PROCESSES: usize = 10_000;

/// The memory of the processes, as far as it has landed.
#[derive(Debug, Default)]
pub struct Memory {
    stores: BTreeMap<i32, StoreWriter>,
    shared: BTreeMap<u32, SharedWriter>,
    /// It is about to be the only copy of a state.
    lasts: bool,
}

/// A stream of pages while it arrives.
pub(super) struct Arriving {
    whose: Whose,
    decoder: Decoder,
    hashing: Hashing,
    length: u64,
}

/// Whose pages they are, and where they go. Those of a process are kept apart from the others' stores meanwhile.
enum Whose {
    Process { pid: i32, store: StoreWriter },
    Shared { inode: u32, writer: SharedWriter },
}

impl Arriving {
    fn of(whose: Whose) -> Self {
        Self { whose, decoder: Decoder::default(), hashing: Hashing::pages(), length: 0 }
    }
}

impl Memory {
    /// None yet, of a state of which this is about to be the only copy.
    pub fn lasting() -> Self {
        Self { lasts: true, ..Self::default() }
    }

    /// A stream of pages of process `pid` begins, whose store is in `directory`. Blocking.
    ///
    /// # Errors
    /// Where its store can't be made.
    pub(super) fn begin(&mut self, pid: i32, directory: &Path) -> Result<Arriving, MemoryError> {
        let store = match self.stores.remove(&pid) {
            Some(store) => store,
            None if self.stores.len() >= MAX_PROCESSES => return Err(MemoryError::TooMany),
            None => self.store(directory, pid).map_err(|source| MemoryError::Store { pid, source })?,
        };
        Ok(Arriving::of(Whose::Process { pid, store }))
    }

    /// The same of the object `inode`. Blocking.
    ///
    /// # Errors
    /// Where its file can't be made.
    pub(super) fn begin_shared(&mut self, inode: u32, directory: &Path) -> Result<Arriving, MemoryError> {
        let writer = match self.shared.remove(&inode) {
            Some(writer) => writer,
            None if self.shared.len() >= MOST_WITHHELD => return Err(MemoryError::TooManyShared),
            None => {
                let create = if self.lasts { SharedWriter::lasting } else { SharedWriter::create };
                create(directory, inode).map_err(|source| MemoryError::SharedStore { inode, source })?
            }
        };
        Ok(Arriving::of(Whose::Shared { inode, writer }))
    }

    /// Takes the next piece of a stream. What is copied from another store comes out of `room`. Blocking.
    ///
    /// # Errors
    /// Where it is none, or can't be kept. Nothing of the attempt may be used then.
    pub(super) fn take(&self, arriving: &mut Arriving, piece: &[u8], room: &mut Share) -> Result<(), MemoryError> {
        let Arriving { whose, decoder, hashing, length } = arriving;
        hashing.update(piece);
        *length += piece.len() as u64;
        match whose {
            Whose::Process { pid, store } => {
                let mut own = Own { pid: *pid, store, others: &self.stores, room };
                decoder.take(piece, &mut own).map_err(|error| match error {
                    DecodeError::Stream(source) => MemoryError::Stream { pid: *pid, source },
                    DecodeError::Sink(error) => error,
                })
            }
            Whose::Shared { inode, writer } => decoder.take(piece, writer).map_err(|error| match error {
                DecodeError::Stream(source) => MemoryError::SharedStream { inode: *inode, source },
                DecodeError::Sink(source) => MemoryError::SharedStore { inode: *inode, source },
            }),
        }
    }

    /// A stream is at its end. Returns its length, bytes, and its digest.
    ///
    /// # Errors
    /// Where it ended inside a record.
    pub(super) fn end(&mut self, arriving: Arriving) -> Result<(u64, Digest), MemoryError> {
        let Arriving { whose, decoder, hashing, length } = arriving;
        match whose {
            Whose::Process { pid, store } => {
                decoder.end().map_err(|source| MemoryError::Stream { pid, source })?;
                self.stores.insert(pid, store);
            }
            Whose::Shared { inode, writer } => {
                decoder.end().map_err(|source| MemoryError::SharedStream { inode, source })?;
                self.shared.insert(inode, writer);
            }
        }
        Ok((length, hashing.finish()))
    }

    fn store(&self, directory: &Path, pid: i32) -> Result<StoreWriter, StoreError> {
        if self.lasts { StoreWriter::lasting(directory, pid) } else { StoreWriter::create(directory, pid) }
    }

    /// A round has landed. Where it lasts, what has come is read back. Blocking.
    ///
    /// # Errors
    /// Where something lies there that is not what came. Nothing of the attempt may be used then.
    pub(super) fn settle(&mut self) -> Result<(), MemoryError> {
        for (&pid, store) in &mut self.stores {
            store.settle().map_err(|source| MemoryError::Store { pid, source })?;
        }
        for (&inode, writer) in &mut self.shared {
            writer.settle().map_err(|source| MemoryError::SharedStore { inode, source })?;
        }
        Ok(())
    }
}
