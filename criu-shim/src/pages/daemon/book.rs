//! What every address space still lacks, whose turn it is, and what of a store nobody needs any more. No I/O.

use super::missing::{Chunk, Missing};
use crate::pages::store::Extent;
use std::collections::BTreeMap;
use std::ops::Range;

/// An address space, for as long as the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SpaceId(pub(super) u64);

/// What the kernel says that a process did to its address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// mremap: pages are at another address now.
    Moved { from: u64, to: u64, length: u64 },
    /// munmap, or madvise that throws content away: what was there does not come back.
    Dropped { start: u64, end: u64 },
}

/// The books of the daemon.
///
/// A restored process and what it forks are a family: they are served from one store, that of the pid in the images.
#[derive(Debug, Default)]
pub(super) struct Book {
    spaces: BTreeMap<SpaceId, Space>,
    /// Per family, how far its data file was given back, bytes.
    freed: BTreeMap<i32, u64>,
    turn: u64,
    next: u64,
}

#[derive(Clone, Debug)]
struct Space {
    family: i32,
    missing: Missing,
    /// Whether all that is missing is where CRIU restored it. See [`Book::must_be_there`].
    as_restored: bool,
}

impl Book {
    /// A restored process, that lacks everything its store has.
    pub(super) fn add(&mut self, family: i32, extents: &[Extent]) -> SpaceId {
        self.freed.entry(family).or_insert(0);
        self.insert(Space { family, missing: Missing::of(extents), as_restored: true })
    }

    /// A child that was just forked: it lacks what its parent lacks now, and from now on for itself.
    pub(super) fn fork(&mut self, parent: SpaceId) -> Option<SpaceId> {
        let space = self.spaces.get(&parent)?.clone();
        Some(self.insert(Space { as_restored: false, ..space }))
    }

    /// Takes down what a process did.
    pub(super) fn change(&mut self, id: SpaceId, change: Change) {
        let Some(space) = self.spaces.get_mut(&id) else { return };
        match change {
            Change::Moved { from, to, length } => {
                space.missing.remap(from, to, length);
                space.as_restored = false;
            }
            Change::Dropped { start, end } => space.missing.remove(start..end),
        }
    }

    /// Pages were put, or are no longer to be put.
    pub(super) fn put(&mut self, id: SpaceId, address: u64, length: u64) {
        if let Some(space) = self.spaces.get_mut(&id) {
            space.missing.remove(address..address.saturating_add(length));
        }
    }

    /// What to put for a fault at `address`: the page and its neighbours within `window` bytes, or zeros if nothing.
    pub(super) fn around(&self, id: SpaceId, address: u64, window: u64) -> Option<Chunk> {
        self.spaces.get(&id)?.missing.around(address, window)
    }

    /// What is missing within the aligned window of `window` bytes around `address`, whose own page need not be missing.
    pub(super) fn beside(&self, id: SpaceId, address: u64, window: u64) -> Option<Chunk> {
        self.spaces.get(&id)?.missing.within(address, window)
    }

    /// What to put next while nobody waits, at most `most` bytes. The address spaces take turns.
    pub(super) fn next(&mut self, most: u64) -> Option<(SpaceId, Chunk)> {
        let mut in_turn = self.spaces.range(SpaceId(self.turn)..).chain(self.spaces.range(..SpaceId(self.turn)));
        let found = in_turn.find_map(|(id, space)| Some((*id, space.missing.first(most)?)))?;
        self.turn = found.0.0 + 1;
        Some(found)
    }

    /// Whether a page that the kernel does not know as one of this userfaultfd is an error.
    ///
    /// It is where CRIU restored it: CRIU did not register what it was believed to, and the process sees zeros. A child
    /// may lack whole mappings of its parent (`MADV_DONTFORK`), and a move may be overstated.
    pub(super) fn must_be_there(&self, id: SpaceId) -> bool {
        self.spaces.get(&id).is_some_and(|space| space.as_restored)
    }

    /// Whether this address space lacks nothing.
    pub(super) fn is_full(&self, id: SpaceId) -> bool {
        self.spaces.get(&id).is_none_or(|space| space.missing.is_empty())
    }

    /// Whether any address space lacks something.
    pub(super) fn has_work(&self) -> bool {
        self.spaces.values().any(|space| !space.missing.is_empty())
    }

    /// This address space is no longer served. Returns its family if that was the last of it.
    pub(super) fn close(&mut self, id: SpaceId) -> Option<i32> {
        let family = self.spaces.remove(&id)?.family;
        if self.spaces.values().any(|space| space.family == family) {
            return None;
        }
        self.freed.remove(&family);
        Some(family)
    }

    /// The part of the data file of `family`, `length` bytes long, that nobody needs any more and that was not returned
    /// by an earlier call, if it is at least `least` bytes.
    pub(super) fn free(&mut self, family: i32, length: u64, least: u64) -> Option<Range<u64>> {
        let freed = self.freed.get_mut(&family)?;
        let needed = self.spaces.values().filter(|space| space.family == family);
        let lowest = needed.filter_map(|space| space.missing.lowest_offset()).min().unwrap_or(length);
        if lowest < freed.saturating_add(least.max(1)) {
            return None;
        }
        Some(std::mem::replace(freed, lowest)..lowest)
    }

    fn insert(&mut self, space: Space) -> SpaceId {
        let id = SpaceId(self.next);
        self.next += 1;
        self.spaces.insert(id, space);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PAGE;

    fn extent(address: u64, pages: u64, offset: u64) -> Extent {
        Extent { address: address * PAGE, length: pages * PAGE, offset: offset * PAGE }
    }

    fn chunk(address: u64, pages: u64, offset: u64) -> Chunk {
        Chunk { address: address * PAGE, length: pages * PAGE, offset: offset * PAGE }
    }

    fn put(book: &mut Book, id: SpaceId, page: u64, pages: u64) {
        book.put(id, page * PAGE, pages * PAGE);
    }

    #[test]
    fn address_spaces_take_turns() {
        let mut book = Book::default();
        let first = book.add(17, &[extent(0, 3, 0)]);
        let second = book.add(18, &[extent(0, 1, 0)]);
        let mut turns = Vec::new();
        while let Some((id, chunk)) = book.next(PAGE) {
            book.put(id, chunk.address, chunk.length);
            turns.push(id);
        }
        assert_eq!(turns, [first, second, first, first]);
        assert!(book.is_full(first) && book.is_full(second) && !book.has_work());
    }

    #[test]
    fn a_child_lacks_what_its_parent_lacked_when_it_was_forked() {
        let mut book = Book::default();
        let parent = book.add(17, &[extent(10, 4, 0)]);
        put(&mut book, parent, 10, 1);
        let child = book.fork(parent).unwrap();
        put(&mut book, parent, 11, 3);
        book.change(child, Change::Dropped { start: 12 * PAGE, end: 13 * PAGE });
        assert!(book.is_full(parent));
        assert!(!book.is_full(child));
        assert_eq!(book.around(child, 11 * PAGE, PAGE), Some(chunk(11, 1, 1)));
        assert_eq!(book.around(child, 12 * PAGE, PAGE), None);
        assert_eq!(book.around(child, 13 * PAGE, PAGE), Some(chunk(13, 1, 3)));
    }

    #[test]
    fn nothing_is_freed_that_a_child_needs() {
        let mut book = Book::default();
        let parent = book.add(17, &[extent(10, 8, 0)]);
        put(&mut book, parent, 10, 2);
        assert_eq!(book.free(17, 8 * PAGE, PAGE), Some(0..2 * PAGE));
        let child = book.fork(parent).unwrap();
        put(&mut book, parent, 12, 2);
        assert_eq!(book.free(17, 8 * PAGE, PAGE), None, "the parent is ahead of the child");
        put(&mut book, parent, 14, 4);
        assert_eq!(book.free(17, 8 * PAGE, PAGE), None, "the parent has everything");
        assert_eq!(book.close(parent), None, "the child still needs the store");
        put(&mut book, child, 12, 3);
        assert_eq!(book.free(17, 8 * PAGE, 4 * PAGE), None, "less than it is worth");
        assert_eq!(book.free(17, 8 * PAGE, PAGE), Some(2 * PAGE..5 * PAGE));
        put(&mut book, child, 15, 3);
        assert_eq!(book.free(17, 8 * PAGE, PAGE), Some(5 * PAGE..8 * PAGE));
        assert_eq!(book.free(17, 8 * PAGE, PAGE), None);
        assert_eq!(book.close(child), Some(17));
    }

    #[test]
    fn what_a_fault_put_early_is_freed_when_the_fill_has_passed_it() {
        let mut book = Book::default();
        let id = book.add(17, &[extent(0, 6, 0)]);
        put(&mut book, id, 2, 1);
        assert_eq!(book.free(17, 6 * PAGE, PAGE), None);
        put(&mut book, id, 0, 2);
        assert_eq!(book.free(17, 6 * PAGE, PAGE), Some(0..3 * PAGE));
    }

    #[test]
    fn only_where_criu_put_it_must_a_page_be_known_to_the_kernel() {
        let mut book = Book::default();
        let id = book.add(17, &[extent(0, 6, 0)]);
        book.change(id, Change::Dropped { start: 0, end: PAGE });
        assert!(book.must_be_there(id));
        let child = book.fork(id).unwrap();
        assert!(!book.must_be_there(child));
        book.change(id, Change::Moved { from: PAGE, to: 9 * PAGE, length: PAGE });
        assert!(!book.must_be_there(id));
    }

    #[test]
    fn what_moved_before_a_fork_is_where_it_went_in_the_child_too() {
        let mut book = Book::default();
        let parent = book.add(17, &[extent(0, 2, 0)]);
        book.change(parent, Change::Moved { from: 0, to: 50 * PAGE, length: 2 * PAGE });
        let child = book.fork(parent).unwrap();
        assert_eq!(book.around(child, 51 * PAGE, PAGE), Some(chunk(51, 1, 1)));
        assert_eq!(book.around(child, PAGE, PAGE), None);
    }
}
