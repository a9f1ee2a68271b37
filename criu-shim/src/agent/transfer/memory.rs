//! Receiving memory: pages go into the store of their process, round after round, until the last round says which count.
//!
//! A page that is like another one is copied from that one's store as soon as it is named: the other may be something else
//! with the next record. So parts are taken one at a time.

use crate::agent::room::{NoRoom, Share};
use crate::agent::transfer::hashing::{Digest, Hashing};
use crate::agent::transfer::manifest::Landed;
use crate::agent::transfer::message::Part;
use crate::agent::transfer::pages::{DecodeError, Decoder, PAGE, PagesError, Place, Sink};
use crate::criu::pagemap::Assembled;
use crate::criu::{MOST_WITHHELD, PagemapError, pagemap, shared};
use crate::pages::store::{NamedSums, SharedWriter, StoreError, StoreWriter};
use crate::pages::{PageRange, RangeError};
use crate::processors::processors;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use thiserror::Error;

/// Most processes of one move. Beyond that something else is wrong.
const MAX_PROCESSES: usize = 10_000;

/// Most threads that put pages files together.
const MOST_WORKERS: usize = 4;

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
    /// Copies of pages are larger than there is room for.
    #[error("copy pages of another process to process {pid}")]
    TooMuch {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: NoRoom,
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
    /// What it asks for is not here, or can't be put in its place.
    #[error("put the pages file of process {pid} together")]
    Assemble {
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
    /// It is not as long as CRIU's image says.
    #[error("the pages of shared memory {inode} are not all here")]
    SharedMissing {
        /// Its inode, by which the images name it.
        inode: u32,
    },
    /// It can't be told whether all of it is here.
    #[error("see whether all shared memory is here")]
    SharedLengths(#[source] PagemapError),
    /// There is no room for the pages files that are put together.
    #[error("put the pages file of process {pid} together")]
    NoRoom {
        /// The process, as the images name it.
        pid: i32,
        /// Why.
        #[source]
        source: NoRoom,
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

    /// The images of a round have landed: puts the pages files together of which this has a part, and CRIU the rest. They come out of
    /// `room`. Blocking.
    ///
    /// # Errors
    /// Where a page is missing: the processes can't be restored. Where there is no room.
    pub(super) fn assemble(&self, images: &Path, room: &mut Share) -> Result<Vec<(Part, Landed)>, FinishError> {
        let processes = pagemap::processes(images).map_err(FinishError::List)?;
        let mut lengths = Vec::new();
        for &pid in &processes {
            let bytes = pagemap::assembled(images, pid).map_err(|source| FinishError::Assemble { pid, source })?;
            lengths.extend(bytes.map(|bytes| (pid, bytes)));
        }
        let mut written = Vec::new();
        for &(pid, bytes) in &lengths {
            written.push(room.take(bytes).map_err(|source| FinishError::NoRoom { pid, source })?);
        }
        let next = AtomicUsize::new(0);
        let work = || {
            let mine = std::iter::from_fn(|| lengths.get(next.fetch_add(1, Ordering::Relaxed)));
            mine.map(|(pid, _)| self.assemble_one(*pid, images)).collect::<Result<Vec<_>, _>>()
        };
        // The application stands still meanwhile.
        let workers = processors().min(MOST_WORKERS);
        let all: Result<Vec<_>, _> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..workers.min(lengths.len())).map(|_| scope.spawn(work)).collect();
            let mut all = vec![work()];
            all.extend(others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))));
            all.into_iter().collect()
        });
        all.map(|files| files.into_iter().flatten().collect())
    }

    fn assemble_one(&self, pid: i32, images: &Path) -> Result<(Part, Landed), FinishError> {
        let stored = |range: std::ops::Range<u64>| {
            let never_came = StoreError::NeverCame { pid, address: range.start };
            let length = (range.end - range.start) as usize;
            let read = self.stores.get(&pid).ok_or(never_came).and_then(|store| store.read(range.start, length));
            read.map_err(std::io::Error::other)
        };
        let file = pagemap::assemble(images, pid, stored).map_err(|source| FinishError::Assemble { pid, source })?;
        let Assembled { name, bytes, digest } = file;
        Ok((Part::Image { name }, Landed { bytes, digest: Digest::from(digest) }))
    }

    /// A cut has landed: shows what CRIU's `images` of it say is to come, all of which must be there, as stores in `directory`. They are
    /// right until another round comes. Blocking.
    ///
    /// # Errors
    /// As [`Memory::finish`].
    pub(super) fn show(&self, directory: &Path, images: &Path) -> Result<(), FinishError> {
        for (&inode, writer) in &self.shared {
            let store = |source| FinishError::SharedStore { inode, source };
            if let Some((asked, link)) = asked_of(inode, images)? {
                writer.show(&asked, &link, directory).map_err(store)?;
            }
        }
        if self.stores.is_empty() {
            return Ok(());
        }
        for pid in pagemap::processes(images).map_err(FinishError::List)? {
            let failed = |source| FinishError::Store { pid, source };
            let present = lazy_of(pid, images)?;
            match self.stores.get(&pid) {
                Some(store) => store.show(&present, directory).map_err(failed)?,
                None => {
                    let empty = self.store(directory, pid).map_err(failed)?;
                    empty.finish(&present).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// The last round has landed: keeps of each store in `directory` what CRIU's `images` say is to come from it, all of which must be
    /// there. Returns the sums of what lasts. Blocking.
    ///
    /// # Errors
    /// Where a page is missing: the processes can't be restored.
    pub fn finish(self, directory: &Path, images: &Path) -> Result<Vec<NamedSums>, FinishError> {
        let (lasts, mut sums) = (self.lasts, Vec::new());
        let Self { mut stores, shared: of_shared, .. } = self;
        for (inode, writer) in of_shared {
            sums.extend(finish_shared(inode, writer, images)?);
        }
        if lasts && let Some(inode) = shared::incomplete(images).map_err(FinishError::SharedLengths)? {
            return Err(FinishError::SharedMissing { inode });
        }
        if stores.is_empty() {
            return Ok(sums);
        }
        let empty = Self { lasts, ..Self::default() };
        let processes = pagemap::processes(images).map_err(FinishError::List)?;
        // What has ended since its pages were sent is in no image, and CRIU will never hand it over.
        for (pid, store) in stores.extract_if(.., |pid, _| !processes.contains(pid)) {
            store.discard().map_err(|source| FinishError::Store { pid, source })?;
        }
        // It hands over every other process, also where nothing of it is to come.
        for pid in processes {
            if let Entry::Vacant(entry) = stores.entry(pid) {
                entry.insert(empty.store(directory, pid).map_err(|source| FinishError::Store { pid, source })?);
            }
        }
        for (pid, store) in stores {
            let stored = store.finish(&lazy_of(pid, images)?).map_err(|source| FinishError::Store { pid, source })?;
            sums.extend(stored.sums);
        }
        Ok(sums)
    }
}

/// The pages that CRIU's image of a process calls lazy.
fn lazy_of(pid: i32, images: &Path) -> Result<Vec<PageRange>, FinishError> {
    let lazy = pagemap::lazy(images, pid).map_err(|source| FinishError::Image { pid, source })?;
    page_ranges(&lazy).map_err(|source| FinishError::Range { pid, source })
}

/// Keeps the pages of an object where the images ask for them: not where the dump has them, nor where the object is gone.
fn finish_shared(inode: u32, writer: SharedWriter, images: &Path) -> Result<Option<NamedSums>, FinishError> {
    let store = |source| FinishError::SharedStore { inode, source };
    match asked_of(inode, images)? {
        Some((asked, link)) => writer.finish(&asked, &link).map_err(store),
        None => writer.discard().map(|()| None).map_err(store),
    }
}

/// The pages of an object for which the images ask, in their order, and where they look for them. None where they ask for none.
fn asked_of(inode: u32, images: &Path) -> Result<Option<(Vec<PageRange>, PathBuf)>, FinishError> {
    let image = shared::read(images, inode).map_err(|source| FinishError::SharedImage { inode, source })?;
    let Some(image) = image else { return Ok(None) };
    let link = images.join(shared::pages_file(image.pages_id));
    if image.pages.is_empty() || link.exists() {
        return Ok(None);
    }
    let asked = page_ranges(&image.pages).map_err(|source| FinishError::SharedRange { inode, source })?;
    Ok(Some((asked, link)))
}

fn page_ranges(ranges: &[std::ops::Range<u64>]) -> Result<Vec<PageRange>, RangeError> {
    ranges.iter().map(|range| PageRange::new(range.start, range.end - range.start)).collect()
}

/// The memory of one process while a part of it arrives, beside what has landed of the others.
struct Own<'a> {
    pid: i32,
    store: &'a mut StoreWriter,
    others: &'a BTreeMap<i32, StoreWriter>,
    room: &'a mut Share,
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::agent::room::Room;
    use crate::agent::transfer::pages::{Crossing, HEADER, encode};
    use crate::pages::store::pids;

    impl Memory {
        /// The page of process `pid` that has landed for `address`.
        pub(crate) fn page(&self, pid: i32, address: u64) -> Vec<u8> {
            self.stores[&pid].read(address, PAGE).expect("a page")
        }
    }

    /// A target, and what it has of the processes.
    pub(crate) struct Target {
        directory: tempfile::TempDir,
        memory: Memory,
        room: Share,
    }

    impl Target {
        /// One with room for so many bytes.
        pub(crate) fn with_room(bytes: u64) -> Self {
            let room = Room::new(move || bytes).promise(0).expect("room");
            let directory = tempfile::tempdir().expect("a directory");
            Self { directory, memory: Memory::default(), room }
        }

        /// Takes a stream of pages of process `pid`.
        pub(crate) fn take(&mut self, pid: i32, stream: &[u8]) -> Result<u64, MemoryError> {
            let mut arriving = self.memory.begin(pid, self.directory.path())?;
            self.memory.take(&mut arriving, stream, &mut self.room)?;
            self.memory.end(arriving).map(|(length, _)| length)
        }

        /// The page that it has at `place`.
        pub(crate) fn page(&self, place: Place) -> Vec<u8> {
            self.memory.page(place.pid, place.address)
        }
    }

    /// A record of one page full of `byte`.
    fn page(address: u64, byte: u8, crossing: Crossing) -> Vec<u8> {
        let mut buffer = [vec![0; HEADER], vec![byte; PAGE]].concat();
        let length = encode(&mut buffer, address, &[crossing]);
        buffer.truncate(length);
        buffer
    }

    const PLACE: Place = Place { pid: 1, address: 0x5000 };

    #[test]
    fn a_copy_is_what_its_place_holds_when_it_is_named_and_stays_so() {
        let mut target = Target::with_room(1 << 20);
        target.take(1, &page(PLACE.address, 7, Crossing::Content)).expect("taken");
        target.take(2, &page(0x9000, 0, Crossing::Copy(PLACE))).expect("taken");
        target.take(1, &page(PLACE.address, 8, Crossing::Content)).expect("taken");
        target.take(1, &page(0x6000, 0, Crossing::Copy(PLACE))).expect("taken");
        assert_eq!(target.page(Place { pid: 2, address: 0x9000 }), [7; PAGE]);
        assert_eq!(target.page(Place { pid: 1, address: 0x6000 }), [8; PAGE]);
    }

    #[test]
    fn a_copy_of_what_never_came_is_refused_by_its_place() {
        for from in [PLACE, Place { pid: 1, address: 0x7000 }, Place { pid: 9, ..PLACE }] {
            let mut target = Target::with_room(1 << 20);
            target.take(1, &page(0x8000, 7, Crossing::Content)).expect("taken");
            let refused = target.take(1, &page(0x9000, 0, Crossing::Copy(from)));
            let Err(MemoryError::Store { source: StoreError::NeverCame { pid, address }, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(Place { pid, address }, from);
        }
    }

    #[test]
    fn copies_take_room_although_they_cross_in_a_few_bytes() {
        let mut target = Target::with_room(PAGE as u64 - 1);
        target.take(1, &page(PLACE.address, 7, Crossing::Content)).expect("taken");
        let refused = target.take(2, &page(0x9000, 0, Crossing::Copy(PLACE)));
        assert!(matches!(refused, Err(MemoryError::TooMuch { pid: 2, .. })), "{refused:?}");
    }

    #[test]
    fn shared_memory_takes_no_copies() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = SharedWriter::create(directory.path(), 5).expect("a file");
        assert!(matches!(writer.copies(0, 1, PLACE), Err(StoreError::NotAlike { inode: 5 })));
    }

    #[test]
    fn a_process_that_has_ended_since_its_pages_were_sent_is_waited_for_by_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        // Images that know process 1, of which nothing is lazy.
        let images = directory.path().join("images");
        std::fs::create_dir(&images).expect("a directory");
        // `pagemap_head` alone.
        let image = crate::criu::image::assemble(0x5608_4025, [vec![0x08, 1]]);
        std::fs::write(images.join("pagemap-1.img"), image).expect("an image");
        let mut memory = Memory::default();
        let mut ended = StoreWriter::create(directory.path(), 17).expect("a store");
        ended.write(0x1000, &[1; PAGE]).expect("a page");
        memory.stores.insert(17, ended);

        memory.finish(directory.path(), &images).expect("all that is asked for");
        assert_eq!(pids(directory.path()).expect("a directory"), [1], "CRIU hands over 1 and never 17");
        assert!(!directory.path().join("17.pages").exists());
    }

    #[test]
    fn what_no_daemon_may_bring_is_put_into_the_pages_file_and_taken_out_of_the_store() {
        let directory = tempfile::tempdir().expect("a directory");
        let images = directory.path().join("images");
        std::fs::create_dir(&images).expect("a directory");
        // `pagemap_head`, and an `mm` image without any mapping: what is left out can't come later.
        let image = |magic: u32, entry: Vec<u8>| crate::criu::image::assemble(magic, [entry]);
        std::fs::write(images.join("pagemap-1.img"), image(0x5608_4025, vec![0x08, 4])).expect("an image");
        std::fs::write(images.join("mm-1.img"), image(0x5749_2820, Vec::new())).expect("an image");
        let settled = pagemap::settle(&images, 1, &[0x1000..0x3000, 0x5000..0x6000]).expect("settled");
        assert_eq!(settled.stored, [0x1000..0x3000, 0x5000..0x6000]);

        let mut room = Room::new(|| u64::MAX).promise(0).expect("room");
        let mut memory = Memory::default();
        let refused = memory.assemble(&images, &mut room).expect_err("it has nothing of that process");
        assert!(matches!(refused, FinishError::Assemble { pid: 1, .. }));
        let mut store = StoreWriter::create(directory.path(), 1).expect("a store");
        store.write(0x5000, &[5; PAGE]).expect("a page");
        store.write(0x1000, &[1; PAGE]).expect("a page");
        memory.stores.insert(1, store);
        memory.assemble(&images, &mut room).expect_err("a page never came");
        memory.stores.get_mut(&1).expect("a store").zero(0x2000, PAGE as u64).expect("a page");

        let mut little = Room::new(|| 2 * PAGE as u64).promise(0).expect("room");
        let refused = memory.assemble(&images, &mut little).expect_err("it is three pages");
        assert!(matches!(refused, FinishError::NoRoom { pid: 1, .. }));
        let assembled = memory.assemble(&images, &mut room).expect("all is there");
        let name = format!("pages-{}.img", 4_u32 | 1 << 31);
        let expected = [[1; PAGE], [0; PAGE], [5; PAGE]].concat();
        assert_eq!(std::fs::read(images.join(&name)).expect("pages"), expected);
        let landed = Landed { bytes: expected.len() as u64, digest: Digest::from(blake3::hash(&expected)) };
        assert_eq!(assembled, [(Part::Image { name }, landed)]);
        memory.finish(directory.path(), &images).expect("nothing is to come");
        let store = crate::pages::store::Store::open(directory.path(), 1).expect("a store");
        assert!(store.extents().is_empty(), "no daemon may bring it");
    }

    #[test]
    fn shared_memory_lies_where_criu_reads_it_unless_the_dump_has_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let (memory, images) = (directory.path().join("memory"), directory.path().join("images"));
        std::fs::create_dir(&memory).expect("a directory");
        std::fs::create_dir(&images).expect("a directory");
        let mut landed = Memory::default();
        for (inode, pages_id) in [(5_u32, 1_u32), (6, 2), (7, 3)] {
            // `pagemap_head`; the page at offset 0x2000 will be filled in.
            let image = crate::criu::image::assemble(0x5608_4025, [vec![0x08, pages_id as u8]]);
            std::fs::write(images.join(format!("pagemap-shmem-{inode}.img")), image).expect("an image");
            let mut writer = SharedWriter::create(&memory, inode).expect("a file");
            writer.write(0x2000, &[inode as u8; PAGE]).expect("a page");
            landed.shared.insert(inode, writer);
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
