//! Receiving memory: pages go into the store of their process, round after round, until the last round says which count.

use crate::agent::room::Share;
use crate::agent::transfer::pages::{DecodeError, Decoder, PAGE, PagesError, Sink};
use crate::criu::PagemapError;
use crate::criu::pagemap;
use crate::pages::store::{StoreError, StoreWriter};
use crate::pages::{PageRange, RangeError};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Most processes of one move. Beyond that something else is wrong.
const MAX_PROCESSES: usize = 10_000;

/// Why memory could not be taken.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// What came is no stream of pages.
    #[error("read the pages of process {pid}")]
    Stream {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: PagesError,
    },
    /// The store.
    #[error("keep the pages of process {pid}")]
    Store {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// More processes than any container has.
    #[error("memory of more than {MAX_PROCESSES} processes was sent")]
    TooMany,
}

/// Why the memory that has landed is not what the images ask for.
#[derive(Debug, Error)]
pub enum FinishError {
    /// The images are not known.
    #[error("list the images")]
    List(#[source] std::io::Error),
    /// CRIU's image does not say.
    #[error("read which memory of process {pid} is to come from the store")]
    Image {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: PagemapError,
    },
    /// It says what can't be.
    #[error("understand which memory of process {pid} is to come from the store")]
    Range {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: RangeError,
    },
    /// The store has not got it, or can't be closed.
    #[error("complete the memory of process {pid}")]
    Store {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// The memory of the processes, as far as it has landed.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    stores: Arc<Mutex<BTreeMap<i32, StoreWriter>>>,
}

impl Memory {
    /// Takes what comes out of `queue` for process `pid` into its store in `directory`. Returns the length of the stream.
    pub fn writing(
        &self,
        pid: i32,
        directory: &Path,
        queue: mpsc::Receiver<(Bytes, Share)>,
    ) -> JoinHandle<Result<u64, MemoryError>> {
        let (stores, directory) = (self.stores.clone(), directory.to_owned());
        tokio::task::spawn_blocking(move || {
            let mut stores = stores.lock().unwrap_or_else(PoisonError::into_inner);
            if stores.len() >= MAX_PROCESSES {
                return Err(MemoryError::TooMany);
            }
            let failed = |source| MemoryError::Store { pid, source };
            let store = match stores.entry(pid) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(StoreWriter::create(&directory, pid).map_err(failed)?),
            };
            write(pid, store, queue)
        })
    }
}

impl Memory {
    /// The last round has landed: keeps of each store in `directory` what CRIU's `images` say is to come from it, all of which must be
    /// there. Blocking.
    ///
    /// # Errors
    /// Where a page is missing: the processes can't be restored.
    pub fn finish(self, directory: &Path, images: &Path) -> Result<(), FinishError> {
        let mut stores = std::mem::take(&mut *self.stores.lock().unwrap_or_else(PoisonError::into_inner));
        if stores.is_empty() {
            return Ok(());
        }
        let processes = pagemap::processes(images).map_err(FinishError::List)?;
        // What has ended since its pages were sent is in no image, and CRIU will never hand it over.
        for (pid, store) in stores.extract_if(.., |pid, _| !processes.contains(pid)) {
            store.discard().map_err(|source| FinishError::Store { pid, source })?;
        }
        // It hands over every other process, also where nothing of it is to come.
        for pid in processes {
            if let Entry::Vacant(entry) = stores.entry(pid) {
                entry.insert(StoreWriter::create(directory, pid).map_err(|source| FinishError::Store { pid, source })?);
            }
        }
        for (pid, store) in stores {
            let lazy = pagemap::lazy(images, pid).map_err(|source| FinishError::Image { pid, source })?;
            let present: Result<Vec<PageRange>, RangeError> =
                lazy.iter().map(|range| PageRange::new(range.start, range.end - range.start)).collect();
            let present = present.map_err(|source| FinishError::Range { pid, source })?;
            store.finish(&present).map_err(|source| FinishError::Store { pid, source })?;
        }
        Ok(())
    }
}

fn write(pid: i32, store: &mut StoreWriter, mut queue: mpsc::Receiver<(Bytes, Share)>) -> Result<u64, MemoryError> {
    let (mut decoder, mut length) = (Decoder::default(), 0);
    while let Some((piece, covered)) = queue.blocking_recv() {
        decoder.take(&piece, store).map_err(|error| match error {
            DecodeError::Stream(source) => MemoryError::Stream { pid, source },
            DecodeError::Sink(source) => MemoryError::Store { pid, source },
        })?;
        drop(covered);
        length += piece.len() as u64;
    }
    decoder.end().map_err(|source| MemoryError::Stream { pid, source })?;
    Ok(length)
}

impl Sink for StoreWriter {
    type Error = StoreError;

    fn pages(&mut self, address: u64, pages: &[u8]) -> Result<(), StoreError> {
        self.write(address, pages)
    }

    fn zeros(&mut self, address: u64, pages: usize) -> Result<(), StoreError> {
        self.zero(address, (pages * PAGE) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::{Claim, ClaimedParent};
    use crate::pages::store::pids;
    use std::time::Duration;

    #[test]
    fn a_process_that_has_ended_since_its_pages_were_sent_is_waited_for_by_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        // Images that know process 1, of which nothing is lazy.
        let images = directory.path().join("images");
        ClaimedParent::write(&images, vec![Claim::everything(1)], Duration::ZERO).expect("images");
        let memory = Memory::default();
        let mut ended = StoreWriter::create(directory.path(), 17).expect("a store");
        ended.write(0x1000, &[1; PAGE]).expect("a page");
        memory.stores.lock().expect("a lock").insert(17, ended);

        memory.finish(directory.path(), &directory.path().join("images.claimed")).expect("all that is asked for");
        assert_eq!(pids(directory.path()).expect("a directory"), [1], "CRIU hands over 1 and never 17");
        assert!(!directory.path().join("17.pages").exists());
    }
}
