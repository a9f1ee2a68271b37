//! The thread that gives back what of the stores is used up. A file system may wait for its disk in that, for hundreds of milliseconds,
//! and whoever answers faults may not.

use crate::causes::chain;
use crate::pages::store::{Store, UsedUp};
use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// How far it may be behind before no more is used up than what is waited for, bytes: so much memory is used twice.
const BEHIND: u64 = 256 << 20;

/// Gives back, in the order in which it is told.
#[derive(Debug, Default)]
pub(super) struct Freeing {
    thread: Option<(Sender<Work>, JoinHandle<()>)>,
    waiting: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Work {
    Part(UsedUp, Range<u64>),
    /// All of a store, and its files.
    Whole(UsedUp),
}

impl Freeing {
    /// Gives back a part of a store, soon.
    pub(super) fn part(&mut self, store: &Store, range: Range<u64>) {
        self.waiting.fetch_add(range.end - range.start, Ordering::Relaxed);
        self.tell(Work::Part(store.used_up(), range));
    }

    /// Gives back a store and removes its files, soon.
    pub(super) fn whole(&mut self, store: &Store) {
        self.tell(Work::Whole(store.used_up()));
    }

    /// Whether so much waits to be given back that no more should be used up.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > BEHIND
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
            let waiting = self.waiting.clone();
            (sender, std::thread::spawn(move || give_back(&receiver, &waiting)))
        });
        // It ends early only by a panic, which `end` passes on.
        sender.send(work).ok();
    }
}

fn give_back(receiver: &Receiver<Work>, waiting: &AtomicU64) {
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
            Work::Part(store, range) => {
                let length = range.end - range.start;
                free(&store, range);
                waiting.fetch_sub(length, Ordering::Relaxed);
            }
            Work::Whole(store) => {
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

    #[test]
    fn what_is_used_up_is_given_back_and_what_is_left_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = store(directory.path());
        let blocks = |path: &Path| path.metadata().expect("it is there").blocks() * 512;
        let files: Vec<_> =
            directory.path().read_dir().expect("a list").map(|file| file.expect("one").path()).collect();
        let all = || files.iter().map(|path| blocks(path)).sum::<u64>();
        let (before, mut freeing) = (all(), Freeing::default());
        freeing.part(&store, 0..PAGE);
        freeing.end();
        assert_eq!(before - all(), PAGE);
        assert!(!freeing.is_behind());
        freeing.whole(&store);
        freeing.end();
        assert_eq!(directory.path().read_dir().expect("a list").count(), 0);
        freeing.end();
    }

    #[test]
    fn it_is_behind_while_much_waits() {
        let freeing = Freeing::default();
        freeing.waiting.store(BEHIND, Ordering::Relaxed);
        assert!(!freeing.is_behind());
        freeing.waiting.store(BEHIND + 1, Ordering::Relaxed);
        assert!(freeing.is_behind());
    }
}
