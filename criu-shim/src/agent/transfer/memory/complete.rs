//! Memory that has landed, as the images of a round ask for it.

use super::{FinishError, Memory};
use crate::agent::room::Share;
use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::manifest::Landed;
use crate::agent::transfer::message::Part;
use crate::criu::pagemap::Assembled;
use crate::criu::{pagemap, shared};
use crate::pages::store::{NamedSums, SharedWriter, StoreError};
use crate::pages::{PageRange, RangeError};
use crate::processors::processors;
use std::collections::btree_map::Entry;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most threads that put pages files together.
const MOST_WORKERS: usize = 4;

impl Memory {
    /// The images of a round have landed: puts the pages files together of which this has a part, and CRIU the rest. They come out of
    /// `room`. Blocking.
    ///
    /// # Errors
    /// Where a page is missing: the processes can't be restored. Where there is no room.
    pub(in crate::agent::transfer) fn assemble(
        &self,
        images: &Path,
        room: &mut Share,
    ) -> Result<Vec<(Part, Landed)>, FinishError> {
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
    pub(in crate::agent::transfer) fn show(&self, directory: &Path, images: &Path) -> Result<(), FinishError> {
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
