//! Receiving memory: pages go into the store of their process, round after round, until the last round says which count.

use crate::agent::room::Share;
use crate::agent::transfer::hashing::{Digest, Hashing};
use crate::agent::transfer::pages::{DecodeError, Decoder, PAGE, PagesError, Sink};
use crate::criu::{MOST_WITHHELD, PagemapError, pagemap, shared};
use crate::pages::store::{SharedWriter, StoreError, StoreWriter};
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
    /// What came is no stream of pages.
    #[error("read the pages of shared memory {inode}")]
    SharedStream {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: PagesError,
    },
    /// The store.
    #[error("keep the pages of shared memory {inode}")]
    SharedStore {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// More objects than a dump leaves out.
    #[error("more than {MOST_WITHHELD} objects of shared memory were sent")]
    TooManyShared,
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
    /// CRIU's image does not say.
    #[error("read which pages of shared memory {inode} are to come from the store")]
    SharedImage {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: PagemapError,
    },
    /// It says what can't be.
    #[error("understand which pages of shared memory {inode} are to come from the store")]
    SharedRange {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: RangeError,
    },
    /// The store has others.
    #[error("complete the shared memory {inode}")]
    SharedStore {
        /// Its inode, by which the images name it.
        inode: u32,
        /// Why.
        #[source]
        source: StoreError,
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
    shared: Arc<Mutex<BTreeMap<u32, SharedWriter>>>,
}

impl Memory {
    /// Takes what comes out of `queue` for process `pid` into its store in `directory`. Returns length and digest of the stream.
    pub fn writing(
        &self,
        pid: i32,
        directory: &Path,
        queue: mpsc::Receiver<(Bytes, Share)>,
    ) -> JoinHandle<Result<(u64, Digest), MemoryError>> {
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
            write(store, queue).map_err(|error| match error {
                DecodeError::Stream(source) => MemoryError::Stream { pid, source },
                DecodeError::Sink(source) => MemoryError::Store { pid, source },
            })
        })
    }

    /// Takes what comes out of `queue` for the object `inode` into its file in `directory`. Returns length and digest of the stream.
    pub fn writing_shared(
        &self,
        inode: u32,
        directory: &Path,
        queue: mpsc::Receiver<(Bytes, Share)>,
    ) -> JoinHandle<Result<(u64, Digest), MemoryError>> {
        let (shared, directory) = (self.shared.clone(), directory.to_owned());
        tokio::task::spawn_blocking(move || {
            let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
            if shared.len() >= MOST_WITHHELD && !shared.contains_key(&inode) {
                return Err(MemoryError::TooManyShared);
            }
            let failed = |source| MemoryError::SharedStore { inode, source };
            let writer = match shared.entry(inode) {
                Entry::Occupied(entry) => entry.into_mut(),
                Entry::Vacant(entry) => entry.insert(SharedWriter::create(&directory, inode).map_err(failed)?),
            };
            write(writer, queue).map_err(|error| match error {
                DecodeError::Stream(source) => MemoryError::SharedStream { inode, source },
                DecodeError::Sink(source) => MemoryError::SharedStore { inode, source },
            })
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
        let shared = std::mem::take(&mut *self.shared.lock().unwrap_or_else(PoisonError::into_inner));
        for (inode, writer) in shared {
            finish_shared(inode, writer, images)?;
        }
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

/// Keeps the pages of an object where the images ask for them: not where the dump has them, nor where the object is gone.
fn finish_shared(inode: u32, writer: SharedWriter, images: &Path) -> Result<(), FinishError> {
    let store = |source| FinishError::SharedStore { inode, source };
    let image = shared::read(images, inode).map_err(|source| FinishError::SharedImage { inode, source })?;
    let Some((link, pages)) = image.map(|image| (images.join(shared::pages_file(image.pages_id)), image.pages)) else {
        return writer.discard().map_err(store);
    };
    if pages.is_empty() || link.exists() {
        return writer.discard().map_err(store);
    }
    let asked: Result<Vec<PageRange>, RangeError> =
        pages.iter().map(|range| PageRange::new(range.start, range.end - range.start)).collect();
    let asked = asked.map_err(|source| FinishError::SharedRange { inode, source })?;
    writer.finish(&asked, &link).map_err(store)
}

fn write<S: Sink>(
    sink: &mut S,
    mut queue: mpsc::Receiver<(Bytes, Share)>,
) -> Result<(u64, Digest), DecodeError<S::Error>> {
    let (mut decoder, mut hashing, mut length) = (Decoder::default(), Hashing::pages(), 0);
    while let Some((piece, covered)) = queue.blocking_recv() {
        hashing.update(&piece);
        decoder.take(&piece, sink)?;
        drop(covered);
        length += piece.len() as u64;
    }
    decoder.end().map_err(DecodeError::Stream)?;
    Ok((length, hashing.finish()))
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

impl Sink for SharedWriter {
    type Error = StoreError;

    fn pages(&mut self, offset: u64, pages: &[u8]) -> Result<(), StoreError> {
        self.write(offset, pages)
    }

    fn zeros(&mut self, offset: u64, pages: usize) -> Result<(), StoreError> {
        self.zero(offset, (pages * PAGE) as u64)
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

    #[test]
    fn shared_memory_lies_where_criu_reads_it_unless_the_dump_has_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (memory, images) = (directory.path().join("memory"), directory.path().join("images"));
        std::fs::create_dir(&memory).expect("a directory");
        std::fs::create_dir(&images).expect("a directory");
        let landed = Memory::default();
        for (inode, pages_id) in [(5_u32, 1_u32), (6, 2), (7, 3)] {
            // `pagemap_head`; the page at offset 0x2000 will be filled in.
            let image = crate::criu::image::assemble(0x5608_4025, [vec![0x08, pages_id as u8]]);
            std::fs::write(images.join(format!("pagemap-shmem-{inode}.img")), image).expect("an image");
            let mut writer = SharedWriter::create(&memory, inode).expect("a file");
            writer.write(0x2000, &[inode as u8; PAGE]).expect("a page");
            landed.shared.lock().expect("a lock").insert(inode, writer);
        }
        for inode in [5, 6] {
            let page = 0x2000..0x3000;
            assert!(shared::fill_in(&images, inode, std::slice::from_ref(&page), 0x3000).expect("filled in"));
        }
        std::fs::write(images.join("pages-2.img"), [9; PAGE]).expect("what the dump has");

        landed.finish(&memory, &images).expect("all that is asked for");
        assert_eq!(std::fs::read(images.join("pages-1.img")).expect("5"), [5; PAGE]);
        assert_eq!(std::fs::read(images.join("pages-2.img")).expect("6"), [9; PAGE]);
        assert!(!images.join("pages-3.img").exists() && !memory.join("shared-7.pages").exists());
        assert_eq!(shared::incomplete(&images).expect("images"), None);
        std::fs::remove_file(images.join("pages-1.img")).expect("5");
        assert_eq!(shared::incomplete(&images).expect("images"), Some(5), "a restore would fail, or worse");
    }
}
