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
const OBJECTS_AT: u64 = 3;
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

/// Private memory of one process, of whole pages, by the id that CRIU knows the process by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessRange {
    /// The process, as the agent's `/proc` names it.
    pub pid: i32,
    /// First address, which comes first in the order too.
    pub start: u64,
    /// First address behind.
    pub end: u64,
}

impl ProcessRange {
    /// Each of `ranges` of process `pid`.
    pub fn all(pid: i32, ranges: &[Range<u64>]) -> impl Iterator<Item = Self> {
        ranges.iter().map(move |range| Self { pid, start: range.start, end: range.end })
    }

    fn length(&self) -> u64 {
        self.end - self.start
    }
}

/// As many of `ranges` as a list has room for: the longest, by process and address. The others are dumped.
pub fn fitting(mut ranges: Vec<ProcessRange>) -> Vec<ProcessRange> {
    if ranges.len() > MOST_RANGES {
        ranges.sort_by_key(|range| std::cmp::Reverse(range.length()));
        ranges.truncate(MOST_RANGES);
    }
    ranges.sort();
    ranges
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

    /// Puts `ranges`, which are [`fitting`], on the list after [`Withheld::expect_memory`]. CRIU, which may be at work, waits for
    /// them before it looks at any memory; but only for seconds, and then dumps it all.
    ///
    /// # Errors
    /// [`WithholdError`]: nothing is left out then.
    pub fn set_memory(&self, ranges: &[ProcessRange]) -> Result<(), WithholdError> {
        self.put(RANGES_AT, ranges.iter().flat_map(|range| [range.pid.unsigned_abs().into(), range.start, range.end]))?;
        self.put(RANGE_COUNT_AT, [ranges.len() as u64])?;
        // Last: the library looks at the others when it has seen this.
        self.put(STATE_AT, [HERE])
    }

    fn put(&self, word: u64, words: impl IntoIterator<Item = u64>) -> Result<(), WithholdError> {
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
        self.list.write_all_at(&bytes, word * 8).map_err(WithholdError::List)
    }
}

/// The library's own code.
#[cfg(test)]
#[allow(dead_code, reason = "the library needs all of it, a test of the format does not")]
#[path = "../../dump-preload/src/list.rs"]
pub(super) mod list;

#[cfg(test)]
mod tests {
    use super::list::{List, Ranges};
    use super::*;
    use std::os::fd::IntoRawFd;

    /// What of `list` the library finds at and behind `address`, until there is nothing.
    fn found(ranges: Ranges) -> Vec<(u64, u64)> {
        let next = |before: &(u64, u64)| ranges.after(before.1);
        std::iter::successors(ranges.after(0), next).collect()
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
        let range = |pid, at: u64| ProcessRange { pid, start: at << 20, end: (at << 20) + 4096 * (1 + at % 3) };
        let mut ranges: Vec<_> = (0..MOST_RANGES as u64 - 2).map(|at| range(i32::MAX, at)).collect();
        ranges.extend([range(1, 5), range(1, 3)]);
        let ranges = fitting(ranges);
        assert_eq!(ranges.len(), MOST_RANGES);
        written.set_memory(&ranges).unwrap();
        for pid in [1, i32::MAX, 2] {
            let expected: Vec<_> =
                ranges.iter().filter(|range| range.pid == pid).map(|range| (range.start, range.end)).collect();
            assert_eq!(found(read.memory(pid.unsigned_abs().into())), expected, "process {pid}");
        }
        assert!(reads(&read), "they are still there");
    }

    #[test]
    fn where_there_is_no_room_the_longest_ranges_are_left_out() {
        let range = |pid, start, end| ProcessRange { pid, start, end };
        assert_eq!(
            fitting(vec![range(2, 0, 1), range(1, 8, 9), range(1, 0, 4)]),
            [range(1, 0, 4), range(1, 8, 9), range(2, 0, 1)]
        );
        let many = (0..=MOST_RANGES as u64).map(|at| range(1, 10 * at, 10 * at + if at == 7 { 1 } else { 2 }));
        let fitting = fitting(many.collect());
        assert_eq!(fitting.len(), MOST_RANGES);
        assert!(fitting.is_sorted() && fitting.iter().all(|range| range.start != 70));
    }

    #[test]
    fn a_list_has_room_for_what_is_said_of_it() {
        let list = Withheld::new().unwrap();
        let objects = vec![ObjectId { device: u64::MAX, inode: u32::MAX }; MOST];
        list.set_objects(&objects).unwrap();
        list.expect_memory().unwrap();
        list.set_memory(&vec![ProcessRange { pid: 1, start: 0, end: 1 }; MOST_RANGES]).unwrap();
        assert_eq!(list.descriptor().unwrap().metadata().unwrap().len(), LENGTH);
        assert!(list.set_objects(&vec![objects[0]; MOST + 1]).is_err());
    }
}
