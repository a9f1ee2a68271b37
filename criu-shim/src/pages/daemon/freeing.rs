//! The thread that gives back what of the stores is used up. A file system may wait for its disk in that, for hundreds of milliseconds,
//! and whoever answers faults may not.

use crate::causes::chain;
use crate::pages::store::{Store, StoreError, UsedUp};
use std::io::Write;
use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

/// Gives back, in the order in which it is told. No page is lost where that fails, and whoever made the directory of the stores removes
/// it.
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
    /// Gives back a part of a store, soon.
    pub(super) fn part(&mut self, store: &Store, range: Range<u64>) {
        self.tell(Work::Part(store.used_up(), range));
    }

    /// Gives back what is left of a store and removes it, soon.
    pub(super) fn whole(&mut self, store: &Store) {
        self.tell(Work::Whole(store.used_up()));
    }

    /// Waits until all of it is given back.
    pub(super) fn end(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            if thread.join().is_err() {
                say("giving memory back has panicked");
            }
        }
    }

    fn tell(&mut self, work: Work) {
        if self.thread.is_none() {
            let (sender, receiver) = channel();
            let thread = Builder::new().spawn(move || give_back(&receiver));
            self.thread = thread.ok().map(|thread| (sender, thread));
        }
        match &self.thread {
            // It ends early only by a panic, which `end` tells.
            Some((sender, _)) => _ = sender.send(work),
            None => carry_out(work).unwrap_or_else(|error| say(&chain(&error))),
        }
    }
}

fn give_back(receiver: &Receiver<Work>) {
    // A file system that can't punch holes says so each time.
    let mut said = false;
    for work in receiver {
        if let Err(error) = carry_out(work)
            && !std::mem::replace(&mut said, true)
        {
            say(&chain(&error));
        }
    }
}

fn carry_out(work: Work) -> Result<(), StoreError> {
    match work {
        Work::Part(store, range) => store.free(range),
        Work::Whole(store) => store.remove(),
    }
}

/// Says it where that can be said: the log may be on a full disk.
fn say(what: &str) {
    writeln!(std::io::stderr(), "criu-pages: {what}").ok();
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
    fn what_is_used_up_is_given_back_and_what_is_left_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
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
}
