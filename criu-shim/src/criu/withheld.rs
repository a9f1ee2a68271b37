//! Memory that a dump leaves out: the list of it, which our CRIU and the library in it share with the agent.
//!
//! The library (`dump-preload`) tells CRIU that an object on the list has no pages, and that a process has none in a range on it.
//! CRIU's images then have none, and [`super::shared`] and [`super::pagemap`] write down afterwards which there are.

use super::error::WithholdError;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Environment variable that names the list's descriptor to the library.
pub(super) const VARIABLE: &str = "TIDEOVER_WITHHELD";

// The library's `list.rs` has the same format, words of 64 bits; a test below reads with that what is written here.
const LENGTH: u64 = 1 << 20;
const STATE_AT: u64 = 0;
const OBJECT_COUNT_AT: u64 = 1;
const RANGE_COUNT_AT: u64 = 2;
const KNOWN_AT: u64 = 3;
const OBJECTS_AT: u64 = 4;
const RANGES_AT: u64 = OBJECTS_AT + 2 * MOST as u64;
const TO_COME: u64 = 1;
const HERE: u64 = 2;

/// Most objects on a list.
pub const MOST: usize = 4095;

/// Most ranges on a list.
pub const MOST_RANGES: usize = (LENGTH as usize / 8 - RANGES_AT as usize) / 3;

/// An object of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Device, as fstat(2) says it: that of the kernel's own mount of shmem.
    pub device: u64,
    /// Inode, by which the images name it too.
    pub inode: u32,
}

/// The list, empty at first. A clone is the same list.
#[derive(Clone, Debug)]
pub struct Withheld {
    list: Arc<File>,
}

impl Withheld {
    pub(super) fn new() -> Result<Self, WithholdError> {
        let made = memfd_create("tideover-withheld", MemfdFlags::CLOEXEC)
            .and_then(|list| ftruncate(&list, LENGTH).map(|()| list));
        let list = made.map_err(|errno| WithholdError::List(errno.into()))?;
        Ok(Self { list: Arc::new(list.into()) })
    }

    /// What CRIU inherits.
    pub(super) fn descriptor(&self) -> Result<File, WithholdError> {
        self.list.try_clone().map_err(WithholdError::List)
    }

    /// Puts `objects` on the list. CRIU must not be at work yet.
    pub(super) fn set_objects(&self, objects: &[ObjectId]) -> Result<(), WithholdError> {
        if objects.len() > MOST {
            return Err(WithholdError::TooMany { objects: objects.len() });
        }
        self.put(OBJECTS_AT, objects.iter().flat_map(|object| [object.device, object.inode.into()]))?;
        self.put(OBJECT_COUNT_AT, [objects.len() as u64])
    }

    /// Says that ranges are to come. CRIU must not be at work yet.
    ///
    /// # Errors
    /// [`WithholdError`]: nothing is left out then.
    pub fn expect_memory(&self) -> Result<(), WithholdError> {
        self.put(STATE_AT, [TO_COME])
    }

    /// Begins to say which, after [`Withheld::expect_memory`] and once.
    pub fn tell(self) -> Telling {
        Telling { list: self, ranges: 0, known: 0 }
    }

    fn put(&self, word: u64, words: impl IntoIterator<Item = u64>) -> Result<(), WithholdError> {
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
        self.list.write_all_at(&bytes, word * 8).map_err(WithholdError::List)
    }
}

/// Private memory goes onto the list, one process after the other. CRIU, which may be at work, waits for that of a process before it
/// looks at any of it; but only for seconds, and then dumps all that is left.
#[derive(Debug)]
pub struct Telling {
    list: Withheld,
    /// How many ranges are on it.
    ranges: usize,
    /// The process that was told last.
    known: u64,
}

impl Telling {
    /// Puts `ranges` of process `pid`, as the agent's `/proc` names it, on the list: of whole pages, in their order. Processes come in
    /// the order of their ids. Returns those for which there is room: the longest. The others are dumped.
    ///
    /// # Errors
    /// [`WithholdError`]: what is left out is unknown, and the dump of no use.
    pub fn process(&mut self, pid: i32, ranges: Vec<Range<u64>>) -> Result<Vec<Range<u64>>, WithholdError> {
        let process = u64::from(pid.unsigned_abs());
        if process <= self.known {
            return Err(WithholdError::Order { pid });
        }
        let ranges = fitting(ranges, MOST_RANGES - self.ranges);
        let words = ranges.iter().flat_map(|range| [process, range.start, range.end]);
        self.list.put(RANGES_AT + 3 * self.ranges as u64, words)?;
        self.ranges += ranges.len();
        self.list.put(RANGE_COUNT_AT, [self.ranges as u64])?;
        self.known = process;
        // Last: the library looks at the others when it has seen this.
        self.list.put(KNOWN_AT, [process])?;
        Ok(ranges)
    }

    /// Nothing else is left out.
    ///
    /// # Errors
    /// [`WithholdError`]: CRIU waits in vain for others, and dumps them.
    pub fn end(self) -> Result<(), WithholdError> {
        self.list.put(STATE_AT, [HERE])
    }
}

/// As many of `ranges` as there is `room` for: the longest, in their order.
fn fitting(mut ranges: Vec<Range<u64>>, room: usize) -> Vec<Range<u64>> {
    if ranges.len() > room {
        ranges.sort_by_key(|range| std::cmp::Reverse(range.end - range.start));
        ranges.truncate(room);
        ranges.sort_by_key(|range| range.start);
    }
    ranges
}

/// The library's own code.
#[cfg(test)]
#[allow(dead_code, reason = "the library needs all of it, a test of the format does not")]
#[path = "../../dump-preload/src/list.rs"]
pub(super) mod list;

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "lists of ranges are meant")]
mod tests {
    use super::list::{List, Ranges};
    use super::*;
    use std::os::fd::IntoRawFd;

    /// What of `list` the library finds at and behind `address`, until there is nothing.
    fn found(ranges: Ranges) -> Vec<Range<u64>> {
        let next = |before: &(u64, u64)| ranges.after(before.1);
        std::iter::successors(ranges.after(0), next).map(|(start, end)| start..end).collect()
    }

    #[test]
    fn the_library_reads_what_is_written_here() {
        let written = Withheld::new().unwrap();
        let read = List::mapped(written.descriptor().unwrap().into_raw_fd()).unwrap();
        assert!(!read.withholds_memory());
        let objects: Vec<_> =
            (0..MOST as u32).map(|at| ObjectId { device: 7 + u64::from(at % 2), inode: at }).collect();
        written.set_objects(&objects).unwrap();
        let reads = |read: &List| {
            let some = objects.iter().step_by(63).chain(objects.last());
            some.into_iter().all(|object| read.has(object.device, object.inode.into()))
        };
        assert!(reads(&read));
        assert!(!read.has(7, 1) && !read.has(7, MOST as u64));

        written.expect_memory().unwrap();
        assert!(read.withholds_memory());
        let range = |at: u64| (at << 20)..(at << 20) + 4096 * (1 + at % 3);
        let all: Vec<_> = (0..MOST_RANGES as u64 - 2).map(range).collect();
        let mut telling = written.clone().tell();
        assert_eq!(telling.process(1, vec![range(3), range(5)]).unwrap(), [range(3), range(5)]);
        let ranges = |pid: i32| found(read.memory(pid.unsigned_abs().into()));
        assert_eq!(ranges(1), [range(3), range(5)], "while the others are to come");
        assert!(telling.process(1, vec![range(7)]).is_err(), "out of order");
        assert_eq!(telling.process(i32::MAX, all.clone()).unwrap(), all);
        telling.end().unwrap();
        assert_eq!((ranges(1), ranges(2), ranges(i32::MAX)), (vec![range(3), range(5)], vec![], all));
        assert!(reads(&read), "they are still there");
    }

    #[test]
    fn a_process_that_is_to_come_is_waited_for() {
        let written = Withheld::new().unwrap();
        let read = List::mapped(written.descriptor().unwrap().into_raw_fd()).unwrap();
        written.expect_memory().unwrap();
        let mut telling = written.tell();
        telling.process(7, vec![]).unwrap();
        let reading = std::thread::spawn(move || (found(read.memory(7)), found(read.memory(8)), found(read.memory(9))));
        std::thread::sleep(std::time::Duration::from_millis(5));
        telling.process(8, vec![4096..8192]).unwrap();
        telling.end().unwrap();
        assert_eq!(reading.join().unwrap(), (vec![], vec![4096..8192], vec![]));
    }

    #[test]
    fn where_there_is_no_room_the_longest_ranges_are_left_out() {
        assert_eq!(fitting(vec![0..4, 5..6, 8..10], 3), [0..4, 5..6, 8..10]);
        assert_eq!(fitting(vec![0..4, 5..6, 8..10], 2), [0..4, 8..10]);
        assert_eq!(fitting(vec![0..4], 0), []);
        let mut telling = Withheld::new().unwrap().tell();
        let many: Vec<_> = (0..MOST_RANGES as u64).map(|at| 2 * at..2 * at + 1).collect();
        assert_eq!(telling.process(1, many[1..].to_vec()).unwrap(), many[1..]);
        assert_eq!(telling.process(2, vec![0..1, 4..6]).unwrap(), [4..6]);
    }

    #[test]
    fn a_list_has_room_for_what_is_said_of_it() {
        let list = Withheld::new().unwrap();
        let objects = vec![ObjectId { device: u64::MAX, inode: u32::MAX }; MOST];
        list.set_objects(&objects).unwrap();
        list.expect_memory().unwrap();
        list.clone().tell().process(1, vec![0..1; MOST_RANGES]).unwrap();
        assert_eq!(list.descriptor().unwrap().metadata().unwrap().len(), LENGTH);
        assert!(list.set_objects(&vec![objects[0]; MOST + 1]).is_err());
    }
}
