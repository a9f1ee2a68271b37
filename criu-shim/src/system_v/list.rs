//! What there is, by `/proc/sysvipc`.

use std::fmt;
use std::io;

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A segment of shared memory.
    Segment,
    /// A set of semaphores.
    Semaphores,
    /// A message queue.
    Queue,
}

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its id, by which programs know it.
    pub id: i32,
    /// Access bits, and what the kernel notes beside them.
    pub mode: u32,
    /// User and group that own it.
    pub owner: [u32; 2],
    /// User and group that made it.
    pub creator: [u32; 2],
    /// Bytes of messages that wait in a queue; 0 for what is none.
    pub waiting: u64,
}

/// A segment that goes with its last mapping (`SHM_DEST` of the kernel's `include/linux/shm.h`).
const REMOVED: u32 = 0o1000;
/// A segment that is locked in memory (`SHM_LOCKED`, ibid.).
const LOCKED: u32 = 0o2000;

impl Object {
    /// A segment that was removed while processes had it mapped: it goes with the last of them.
    pub fn is_removed(&self) -> bool {
        self.kind == Kind::Segment && is_removed(self.mode)
    }

    /// A segment that is locked in memory.
    pub fn is_locked(&self) -> bool {
        self.kind == Kind::Segment && self.mode & LOCKED != 0
    }
}

/// Whether a segment of this mode was removed.
pub fn is_removed(mode: u32) -> bool {
    mode & REMOVED != 0
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Segment, Self::Semaphores, Self::Queue];

    /// Its file in `/proc/sysvipc`, and in which of its columns owner and creator begin. Source: sysvipc(7).
    fn file(self) -> (&'static str, usize) {
        match self {
            Self::Segment => ("shm", 7),
            Self::Semaphores => ("sem", 4),
            Self::Queue => ("msg", 7),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Segment => "shared memory segment",
            Self::Semaphores => "semaphore set",
            Self::Queue => "message queue",
        })
    }
}

/// Every object in the IPC namespace of the calling thread, in order of kind.
///
/// # Errors
/// As reading a file; [`io::ErrorKind::InvalidData`] for a line that is none of the kernel's.
pub fn list() -> io::Result<Vec<Object>> {
    let mut objects = Vec::new();
    for kind in Kind::ALL {
        let path = format!("/proc/sysvipc/{}", kind.file().0);
        // The first line has the names of the columns.
        for line in std::fs::read_to_string(&path)?.lines().skip(1) {
            let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("{path} has the line {line:?}"));
            objects.push(parse(kind, line).ok_or_else(invalid)?);
        }
    }
    Ok(objects)
}

fn parse(kind: Kind, line: &str) -> Option<Object> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let number = |column: usize| words.get(column)?.parse::<u32>().ok();
    let (_, owner) = kind.file();
    Some(Object {
        kind,
        id: words.get(1)?.parse().ok()?,
        mode: u32::from_str_radix(words.get(2)?, 8).ok()?,
        owner: [number(owner)?, number(owner + 1)?],
        creator: [number(owner + 2)?, number(owner + 3)?],
        waiting: if kind == Kind::Queue { words.get(3)?.parse().ok()? } else { 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_read_with_what_the_kernel_notes_beside_its_access_bits() {
        let line = "   5432065         98311  3600                    56   812   900      6   999   998  1000     7 \
                    1790000000          0 1790000000                  4096                     0";
        let segment = parse(Kind::Segment, line).unwrap();
        assert_eq!((segment.id, segment.owner, segment.creator), (98311, [999, 998], [1000, 7]));
        assert!(segment.is_removed() && segment.is_locked());
        let plain = Object { mode: 0o666, ..segment };
        assert!(!plain.is_removed() && !plain.is_locked());
    }

    #[test]
    fn a_queue_is_read_with_what_waits_in_it() {
        let line = "       -17      32769   600         120           3    11    12     5     6     7     8 1 2 3";
        let queue = parse(Kind::Queue, line).unwrap();
        assert_eq!((queue.id, queue.waiting, queue.owner, queue.creator), (32769, 120, [5, 6], [7, 8]));
    }

    #[test]
    fn a_line_that_is_none_is_not_taken_for_one() {
        for line in ["", "0 1", "0 1 9 4 5 6 7 8", "0 x 600 1 0 0 0 0 1 2"] {
            assert_eq!(parse(Kind::Semaphores, line), None, "{line:?}");
        }
    }
}
