//! The ways to find out what a process writes, and which of them a process gets.

use super::{AttachError, Comparer, LastLook, Range, Sent, TrackError, Tracker};
use std::sync::{Arc, Mutex};

/// What finds out what one process writes. Both kinds promise the same; see [`Tracker`].
#[derive(Debug)]
pub enum Engine {
    /// The kernel's write protection.
    WriteProtect(Box<Tracker>),
    /// Reading and comparing all of its memory.
    ReadAndCompare(Comparer),
}

/// An engine, and why it is not a better one.
#[derive(Debug)]
pub struct Attached {
    /// The engine.
    pub engine: Engine,
    /// What the better one was refused with.
    pub instead: Option<AttachError>,
}

impl Engine {
    /// The best engine that process `pid` and this kernel allow.
    ///
    /// # Errors
    /// Where none does, which is so for a process that has ended. The process runs on as before.
    pub fn attach(pid: i32) -> Result<Attached, AttachError> {
        match Tracker::attach(pid) {
            Ok(tracker) => Ok(Attached { engine: Self::WriteProtect(Box::new(tracker)), instead: None }),
            // Of such a process there is no memory to be seen.
            Err(refusal @ (AttachError::Gone { .. } | AttachError::LeaderExited { .. })) => Err(refusal),
            Err(refusal) => {
                let engine = Self::ReadAndCompare(Comparer::attach(pid)?);
                Ok(Attached { engine, instead: Some(refusal) })
            }
        }
    }

    /// The pages that must be sent (again): see [`Tracker::take_written`]. None where it was not looked, to leave the
    /// processor to others.
    ///
    /// # Errors
    /// It is over, and everything returned so far is void.
    pub fn take_written(&mut self) -> Result<Option<Vec<Range>>, TrackError> {
        match self {
            Self::WriteProtect(tracker) => tracker.take_written().map(Some),
            Self::ReadAndCompare(comparer) => comparer.take_written(),
        }
    }

    /// The end, for a process that does not run: see [`Tracker::last_look`].
    ///
    /// # Errors
    /// Nothing is covered.
    pub fn last_look(&mut self) -> Result<LastLook, TrackError> {
        match self {
            Self::WriteProtect(tracker) => tracker.last_look(),
            Self::ReadAndCompare(comparer) => comparer.last_look(),
        }
    }

    /// Goes over to comparing where write protection can't go on, of process `pid`. All of its memory must be sent again.
    ///
    /// # Errors
    /// As [`Comparer::attach`]. It is as it was then.
    pub fn compare_from_now_on(&mut self, pid: i32) -> Result<(), AttachError> {
        *self = Self::ReadAndCompare(Comparer::attach(pid)?);
        Ok(())
    }

    /// Bytes that the last look reads, as far as is known.
    pub fn compared_bytes(&self) -> u64 {
        match self {
            Self::WriteProtect(_) => 0,
            Self::ReadAndCompare(comparer) => comparer.bytes(),
        }
    }

    /// From now on every round looks: the freeze is near.
    pub fn wake(&mut self) {
        match self {
            Self::WriteProtect(_) => {}
            Self::ReadAndCompare(comparer) => comparer.wake(),
        }
    }

    /// Where whoever reads pages to send them must note what they were ([`super::MemoryReader::noting`]), if anywhere.
    pub fn sent(&self) -> Option<Arc<Mutex<Sent>>> {
        match self {
            Self::WriteProtect(_) => None,
            Self::ReadAndCompare(comparer) => Some(comparer.sent()),
        }
    }
}
