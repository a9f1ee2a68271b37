//! Where the records of a stream of pages go.

use super::MemoryError;
use crate::agent::room::Share;
use crate::agent::transfer::pages::{PAGE, Place, Sink};
use crate::pages::store::{SharedWriter, StoreError, StoreWriter};
use std::collections::BTreeMap;

/// The memory of one process while a part of it arrives, beside what has landed of the others.
pub(super) struct Own<'a> {
    pub(super) pid: i32,
    pub(super) store: &'a mut StoreWriter,
    pub(super) others: &'a BTreeMap<i32, StoreWriter>,
    pub(super) room: &'a mut Share,
}

impl Own<'_> {
    fn failed(&self, source: StoreError) -> MemoryError {
        MemoryError::Store { pid: self.pid, source }
    }
}

impl Sink for Own<'_> {
    type Error = MemoryError;

    fn pages(&mut self, address: u64, pages: &[u8]) -> Result<(), MemoryError> {
        self.store.write(address, pages).map_err(|source| self.failed(source))
    }

    fn zeros(&mut self, address: u64, pages: usize) -> Result<(), MemoryError> {
        self.store.zero(address, (pages * PAGE) as u64).map_err(|source| self.failed(source))
    }

    fn copies(&mut self, address: u64, pages: usize, place: Place) -> Result<(), MemoryError> {
        let length = pages * PAGE;
        let covered = self.room.take(length as u64);
        let covered = covered.map_err(|source| MemoryError::TooMuch { pid: self.pid, source })?;
        let store = if place.pid == self.pid { Some(&*self.store) } else { self.others.get(&place.pid) };
        let never_came = StoreError::NeverCame { pid: place.pid, address: place.address };
        let bytes = store.ok_or(never_came).and_then(|store| store.read(place.address, length));
        let written = bytes.and_then(|bytes| self.store.write(address, &bytes));
        drop(covered);
        written.map_err(|source| self.failed(source))
    }
}

impl Sink for SharedWriter {
    type Error = StoreError;

    fn pages(&mut self, offset: u64, pages: &[u8]) -> Result<(), StoreError> {
        self.write(offset, pages)
    }

    fn zeros(&mut self, offset: u64, pages: usize) -> Result<(), StoreError> {
        self.zero(offset, (pages * PAGE) as u64)
    }

    fn copies(&mut self, _: u64, _: usize, _: Place) -> Result<(), StoreError> {
        self.refuse_copies()
    }
}
