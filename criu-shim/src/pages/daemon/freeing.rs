//! The thread that gives back what of the stores is used up. A file system may wait for its disk in that, for hundreds of milliseconds,
//! and whoever answers faults may not.
//!
//! Memory is given back as it is used up, where it can't be used for anything else. What lies on a disk is given back when all of it is
//! used up: the kernel writes and forgets pages of it by itself where memory is short, but while a part is given back it lets nobody read
//! another from the disk (the `invalidate_lock` of its `mm/filemap.c`).

use crate::causes::chain;
use crate::pages::store::{Store, UsedUp};
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Gives back, in the order in which it is told.
#[derive(Debug, Default)]
pub(super) struct Freeing {
    thread: Option<(Sender<Work>, JoinHandle<()>)>,
}

#[derive(Debug)]
enum Work {
    Part(UsedUp, Range<u64>),
    /// All of a store, and its files.
    Whole(UsedUp),
}

impl Freeing {
    /// Gives back a part of a store, soon, or with all of it.
    pub(super) fn part(&mut self, store: &Store, range: Range<u64>) {
        if store.is_in_memory() {
            self.tell(Work::Part(store.used_up(), range));
        }
    }

    /// Gives back a store and removes its files, soon.
    pub(super) fn whole(&mut self, store: &Store) {
        self.tell(Work::Whole(store.used_up()));
    }

    /// Waits until all of it is given back.
    pub(super) fn end(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        }
    }

    fn tell(&mut self, work: Work) {
        let (sender, _) = self.thread.get_or_insert_with(|| {
            let (sender, receiver) = channel();
            (sender, std::thread::spawn(move || give_back(&receiver)))
        });
        // It ends early only by a panic, which `end` passes on.
        sender.send(work).ok();
    }
}

fn give_back(receiver: &Receiver<Work>) {
    // Whether the file system gives memory back.
    let mut frees = true;
    let mut free = |store: &UsedUp, range: Range<u64>| {
        if let Err(error) = if frees { store.free(range) } else { Ok(()) } {
            eprintln!("criu-pages: memory is used twice until all is served: {}", chain(&error));
            frees = false;
        }
    };
    for work in receiver {
        match work {
            Work::Part(store, range) => free(&store, range),
            Work::Whole(store) => {
                // Somebody else may have the file open.
                if store.length() > 0 {
                    free(&store, 0..store.length());
                }
                // No page is lost where that fails, and whoever made the directory removes it.
                store.remove().unwrap_or_else(|error| eprintln!("criu-pages: {}", chain(&error)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::store::StoreWriter;
    use crate::pages::{PAGE, PageRange};
    use std::fs::DirEntry;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    const PID: i32 = 17;
    const PAGES: u64 = 4;

    fn store(directory: &Path) -> Store {
        let mut writer = StoreWriter::create(directory, PID).expect("a store");
        writer.write(0, &vec![7; (PAGES * PAGE) as usize]).expect("written");
        writer.finish(&[PageRange::new(0, PAGES * PAGE).expect("whole pages")]).expect("finished");
        Store::open(directory, PID).expect("opened")
    }

    /// Bytes that the files in `directory` take.
    fn taken(directory: &Path) -> u64 {
        let blocks = |file: std::io::Result<DirEntry>| file?.metadata().map(|metadata| metadata.blocks() * 512);
        directory.read_dir().expect("a list").map(|file| blocks(file).expect("it is there")).sum()
    }

    #[test]
    fn memory_is_given_back_as_it_is_used_up() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let store = store(directory.path());
        let (before, mut freeing) = (taken(directory.path()), Freeing::default());
        freeing.part(&store, 0..PAGE);
        freeing.end();
        assert_eq!(before - taken(directory.path()), PAGE);
        freeing.whole(&store);
        freeing.end();
        assert_eq!(directory.path().read_dir().expect("a list").count(), 0);
        freeing.end();
    }

    #[test]
    fn what_lies_on_a_disk_is_given_back_at_the_end() {
        // Not in /tmp, which may be memory itself.
        let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let store = store(directory.path());
        let (before, mut freeing) = (taken(directory.path()), Freeing::default());
        freeing.part(&store, 0..PAGE);
        freeing.end();
        assert_eq!(before, taken(directory.path()));
        freeing.whole(&store);
        freeing.end();
        assert_eq!(directory.path().read_dir().expect("a list").count(), 0);
    }
}
