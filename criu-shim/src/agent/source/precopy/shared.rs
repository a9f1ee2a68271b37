//! The shared memory of one container, copied while its processes run.

use crate::agent::transfer::message::Part;
use crate::agent::transfer::pages::{Crossing, HEADER, MAX_PAGES, PAGE, encode};
use crate::agent::transfer::send::{RoundSender, SendError};
use crate::criu::{MOST_WITHHELD, ObjectId, SharedError, shared};
use crate::memory::Range;
use crate::memory::shared::{SharedObject, device, find};
use crate::processors::processors;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::vec::IntoIter;

/// While the application runs, looking takes at most one part in so many of one processor.
const LEISURE: u32 = 10;

/// Most threads that compare while it is frozen. Memory does not answer more of them faster.
const MOST_THREADS: usize = 8;

/// An object that is copied.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Which it is.
    pub id: ObjectId,
    object: Arc<Mutex<SharedObject>>,
}

/// The objects of a container.
#[derive(Debug, Default)]
pub struct SharedMemory {
    objects: BTreeMap<u32, Arc<Mutex<SharedObject>>>,
    /// Device of them all, once known.
    device: u64,
    /// Objects that were let go of, or seemed so. The target has pages of them in an order that is forgotten here.
    gone: BTreeSet<u32>,
    /// Not to be compared again before.
    rest: Option<Instant>,
    /// It is compared in every round.
    awake: bool,
}

impl SharedMemory {
    /// What there is to copy now, of what processes `pids` have. None where it was compared just now: what is written
    /// meanwhile is found later. What they have let go of is let go of at once. Blocking.
    pub fn look(&mut self, pids: &[i32]) -> Option<Vec<Shared>> {
        if self.device == 0 {
            // Without it there is nothing to be found: CRIU dumps it all.
            self.device = device().unwrap_or_default();
        }
        let known: BTreeSet<u32> = self.objects.keys().copied().collect();
        let found = find(pids, self.device, &known);
        self.gone.extend(known.difference(&found.inodes));
        self.objects.retain(|inode, _| found.inodes.contains(inode));
        for (inode, file) in found.new {
            if self.objects.len() < MOST_WITHHELD
                && !self.gone.contains(&inode)
                && let Ok(object) = SharedObject::new(file)
            {
                self.objects.insert(inode, Arc::new(Mutex::new(object)));
            }
        }
        let rests = !self.awake && self.rest.is_some_and(|rest| Instant::now() < rest);
        (!rests || self.objects.is_empty()).then(|| self.all())
    }

    /// Takes note of how long looking and comparing took.
    pub fn rest_after(&mut self, took: Duration) {
        self.rest = Some(Instant::now() + took * LEISURE);
    }

    /// From now on every round compares: the freeze is near.
    pub fn wake(&mut self) {
        self.awake = true;
    }

    /// Bytes that the last look compares.
    pub fn bytes(&self) -> u64 {
        self.all().iter().filter_map(|shared| shared.lock().ok()?.size().ok()).sum()
    }

    /// The objects that a dump of the frozen container can leave out: those that have not become shorter.
    pub fn last_look(&self) -> Vec<Shared> {
        let mut shared = self.all();
        shared.retain(|shared| shared.lock().is_ok_and(|object| object.size().is_ok_and(|size| fits(&object, size))));
        shared
    }

    fn all(&self) -> Vec<Shared> {
        let id = |inode| ObjectId { device: self.device, inode };
        self.objects.iter().map(|(inode, object)| Shared { id: id(*inode), object: object.clone() }).collect()
    }
}

fn fits(object: &SharedObject, size: u64) -> bool {
    let page = PAGE as u64;
    object.order().iter().all(|range| range.end <= size.next_multiple_of(page))
}

impl Shared {
    /// Writes down in CRIU's `images` which pages there are, if the dump left them out. Returns how many bytes. Blocking.
    ///
    /// # Errors
    /// [`SharedError`]; the images are of no use then.
    pub fn fill_in(&self, images: &Path) -> Result<u64, SharedError> {
        let object = self.lock().map_err(SharedError::Read)?;
        let pages: Vec<std::ops::Range<u64>> = object.order().iter().map(|range| range.start..range.end).collect();
        let size = object.size().map_err(SharedError::Read)?;
        let bytes = pages.iter().map(|range| range.end - range.start).sum();
        Ok(if shared::fill_in(images, self.id.inode, &pages, size)? { bytes } else { 0 })
    }

    fn lock(&self) -> Result<std::sync::MutexGuard<'_, SharedObject>, Error> {
        // Whoever panicked with it may have taken pages for sent that were not.
        self.object.lock().map_err(|_| Error::other("the comparison of shared memory has panicked"))
    }
}

/// Sends what differs in `objects` as parts of a round. Returns how long comparing took.
///
/// # Errors
/// Where the connection is gone or an object can't be read.
pub async fn send_shared(
    sending: &mut RoundSender,
    round: u32,
    objects: Vec<Shared>,
    frozen: bool,
) -> Result<Duration, SendError> {
    let processors = processors();
    let threads = if frozen { processors.min(MOST_THREADS) } else { 1 };
    let mut compared = Duration::ZERO;
    for shared in objects {
        let part = Part::Shared { inode: shared.id.inode, round };
        let failed = |source| SendError::Read { part: part.clone(), source };
        let object = shared.clone();
        let comparing = tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            object.lock()?.changed(threads).map(|changed| (changed, begun.elapsed()))
        });
        let (changed, took) = comparing.await.map_err(Error::other).and_then(|changed| changed).map_err(failed)?;
        compared += took;
        if !changed.is_empty() {
            sending.part(part, SharedReader::new(shared.object, changed)).await?;
        }
    }
    Ok(compared)
}

/// The changed pages of an object as the stream that crosses. What it has given is taken for sent.
#[derive(Debug)]
struct SharedReader {
    object: Arc<Mutex<SharedObject>>,
    ranges: IntoIter<Range>,
    rest: Range,
    /// Records, of which the first `filled` bytes count, and `given` of those were given.
    stream: Vec<u8>,
    filled: usize,
    given: usize,
}

impl SharedReader {
    fn new(object: Arc<Mutex<SharedObject>>, ranges: Vec<Range>) -> Self {
        Self {
            object,
            ranges: ranges.into_iter(),
            rest: Range { start: 0, end: 0 },
            stream: vec![0; HEADER + MAX_PAGES * PAGE],
            filled: 0,
            given: 0,
        }
    }

    /// Fills the stream with the next pages. False at the end.
    fn fill(&mut self) -> Result<bool, Error> {
        (self.filled, self.given) = (0, 0);
        if self.rest.is_empty() {
            match self.ranges.next() {
                Some(range) => self.rest = range,
                None => return Ok(false),
            }
        }
        let length = (MAX_PAGES * PAGE).min(usize::try_from(self.rest.len()).unwrap_or(usize::MAX));
        let pages = &mut self.stream[HEADER..HEADER + length];
        self.object.lock().unwrap_or_else(PoisonError::into_inner).take(self.rest.start, pages)?;
        self.filled = encode(&mut self.stream, self.rest.start, &[Crossing::Content; MAX_PAGES][..length / PAGE]);
        self.rest.start += length as u64;
        Ok(true)
    }
}

impl Read for SharedReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.given == self.filled && !self.fill()? {
            return Ok(0);
        }
        let length = buffer.len().min(self.filled - self.given);
        buffer[..length].copy_from_slice(&self.stream[self.given..self.given + length]);
        self.given += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::transfer::pages::Decoder;
    use crate::pages::PageRange;
    use crate::pages::store::SharedWriter;
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const P: u64 = PAGE as u64;

    fn memfd(length: u64) -> (File, u32) {
        let file = File::from(memfd_create("shared-test", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(length).expect("its length");
        let inode = u32::try_from(file.metadata().expect("it").ino()).expect("an inode");
        (file, inode)
    }

    fn only(memory: &mut SharedMemory, inode: u32) -> Option<Shared> {
        let own = std::process::id() as i32;
        memory.look(&[own])?.into_iter().find(|shared| shared.id.inode == inode)
    }

    /// A round of one object, over the stream, into the target's file.
    fn cross(shared: &Shared, writer: &mut SharedWriter) {
        let changed = shared.lock().expect("it").changed(2).expect("a look");
        let mut stream = Vec::new();
        SharedReader::new(shared.object.clone(), changed).read_to_end(&mut stream).expect("a stream");
        let mut decoder = Decoder::default();
        decoder.take(&stream, writer).expect("pages");
        decoder.end().expect("the end");
    }

    #[test]
    fn the_target_has_every_page_in_the_order_that_the_source_says() {
        let (file, inode) = memfd(4 << 20);
        let mut memory = SharedMemory::default();
        let shared = only(&mut memory, inode).expect("it is found");
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = SharedWriter::create(directory.path(), inode).expect("a file");

        file.write_all_at(&[1; 200 * PAGE], 300 * P).expect("a write");
        cross(&shared, &mut writer);
        file.write_all_at(&[2; 50 * PAGE], 280 * P).expect("a write");
        file.write_all_at(&[0; PAGE], 400 * P).expect("a write");
        file.write_all_at(&[3; PAGE], 0).expect("a write");
        cross(&shared, &mut writer);

        let order = shared.lock().expect("it").order().to_vec();
        let asked: Vec<_> =
            order.iter().map(|range| PageRange::new(range.start, range.len()).expect("pages")).collect();
        let link = directory.path().join("pages-1.img");
        writer.finish(&asked, &link).expect("the same order");
        let stored = std::fs::read(&link).expect("the pages");
        let mut restored = vec![0; 4 << 20];
        let mut at = 0;
        for range in &order {
            let length = range.len() as usize;
            restored[range.start as usize..range.end as usize].copy_from_slice(&stored[at..at + length]);
            at += length;
        }
        let mut whole = vec![0; 4 << 20];
        file.read_exact_at(&mut whole, 0).expect("it");
        assert!(at == stored.len() && restored == whole);
    }

    #[test]
    fn an_object_that_has_become_shorter_or_is_gone_is_left_to_criu() {
        let (file, inode) = memfd(4 << 20);
        file.write_all_at(&[1; PAGE], 1000 * P).expect("a write");
        let mut memory = SharedMemory::default();
        let shared = only(&mut memory, inode).expect("it is found");
        let directory = tempfile::tempdir().expect("a directory");
        cross(&shared, &mut SharedWriter::create(directory.path(), inode).expect("a file"));
        let has = |memory: &SharedMemory| memory.last_look().iter().any(|shared| shared.id.inode == inode);
        assert!(has(&memory));
        file.set_len(2 << 20).expect("its length");
        assert!(!has(&memory));
        memory.look(&[]);
        assert!(memory.objects.is_empty(), "no process has it");
    }

    #[test]
    fn an_object_that_was_away_for_a_look_is_left_to_criu() {
        let (_file, inode) = memfd(1 << 20);
        let mut memory = SharedMemory::default();
        assert!(only(&mut memory, inode).is_some());
        assert!(memory.look(&[]).is_some_and(|found| found.is_empty()), "nobody has it");
        // The target has pages of it, in an order that nobody remembers.
        assert!(only(&mut memory, inode).is_none());
    }

    #[test]
    fn looking_rests_for_longer_than_it_took() {
        let (_file, inode) = memfd(1 << 20);
        let mut memory = SharedMemory::default();
        assert!(only(&mut memory, inode).is_some());
        memory.rest_after(Duration::from_secs(60));
        assert!(only(&mut memory, inode).is_none());
        assert!(memory.last_look().iter().any(|shared| shared.id.inode == inode), "the last look is one all the same");
        memory.wake();
        assert!(only(&mut memory, inode).is_some());
    }
}
