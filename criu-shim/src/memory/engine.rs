//! The ways to find out what a process writes, and which of them a process gets.

use super::{AttachError, Comparer, Injector, LastLook, Range, Sent, SoftDirty, TrackError, Tracker};
use std::sync::{Arc, Mutex};

/// What finds out what one process writes. All kinds promise the same; see [`Tracker`].
#[derive(Debug)]
pub enum Engine {
    /// The kernel's write protection.
    WriteProtect(Box<Tracker>),
    /// Comparing what the kernel has marked as written.
    SoftDirty(Box<SoftDirty>),
    /// Reading and comparing all of its memory.
    ReadAndCompare(Comparer),
}

/// An engine, and why it is not a better one.
#[derive(Debug)]
pub struct Attached {
    /// The engine.
    pub engine: Engine,
    /// What each of the better ones was refused with, the best one first.
    pub instead: Vec<AttachError>,
}

impl Engine {
    /// The best engine that process `pid` and this kernel allow; `injector` does what has to be done inside of it.
    ///
    /// # Errors
    /// Where none does, which is so for a process that has ended. The process runs on as before.
    pub fn attach(pid: i32, injector: &Injector) -> Result<Attached, AttachError> {
        let protecting = || Ok(Self::WriteProtect(Box::new(Tracker::attach(pid, injector)?)));
        let marking = || Ok(Self::SoftDirty(Box::new(SoftDirty::attach(pid)?)));
        let better: [&dyn Fn() -> Result<Self, AttachError>; 2] = [&protecting, &marking];
        let mut instead = Vec::new();
        for attach in better {
            match attach() {
                Ok(engine) => return Ok(Attached { engine, instead }),
                // Of such a process there is no memory to be seen.
                Err(refusal @ (AttachError::Gone { .. } | AttachError::LeaderExited { .. })) => return Err(refusal),
                Err(refusal) => instead.push(refusal),
            }
        }
        Ok(Attached { engine: Self::ReadAndCompare(Comparer::attach(pid)?), instead })
    }

    /// The pages that must be sent (again): see [`Tracker::take_written`]. None where it was not looked, to leave the
    /// processor to others.
    ///
    /// # Errors
    /// It is over, and everything returned so far is void.
    pub fn take_written(&mut self) -> Result<Option<Vec<Range>>, TrackError> {
        match self {
            Self::WriteProtect(tracker) => tracker.take_written().map(Some),
            Self::SoftDirty(soft_dirty) => soft_dirty.take_written(),
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
            Self::SoftDirty(soft_dirty) => soft_dirty.last_look(),
            Self::ReadAndCompare(comparer) => comparer.last_look(),
        }
    }

    /// Goes over to comparing where nothing else can go on, of process `pid`. What was write-protected must all be sent again; of
    /// what was marked it is known what was sent.
    ///
    /// # Errors
    /// As [`Comparer::attach`]. It is as it was then.
    pub fn compare_from_now_on(&mut self, pid: i32) -> Result<(), AttachError> {
        *self = Self::ReadAndCompare(match self {
            Self::SoftDirty(soft_dirty) => soft_dirty.comparer(),
            Self::WriteProtect(_) | Self::ReadAndCompare(_) => Comparer::attach(pid)?,
        });
        Ok(())
    }

    /// Bytes that the last look reads, as far as is known.
    pub fn compared_bytes(&self) -> u64 {
        match self {
            Self::WriteProtect(_) => 0,
            Self::SoftDirty(soft_dirty) => soft_dirty.bytes(),
            Self::ReadAndCompare(comparer) => comparer.bytes(),
        }
    }

    /// From now on every round looks: the freeze is near.
    pub fn wake(&mut self) {
        match self {
            Self::WriteProtect(_) => {}
            Self::SoftDirty(soft_dirty) => soft_dirty.wake(),
            Self::ReadAndCompare(comparer) => comparer.wake(),
        }
    }

    /// Where whoever reads pages to send them must note what they were ([`super::MemoryReader::noting`]), if anywhere.
    pub fn sent(&self) -> Option<Arc<Mutex<Sent>>> {
        match self {
            Self::WriteProtect(_) => None,
            Self::SoftDirty(soft_dirty) => Some(soft_dirty.sent()),
            Self::ReadAndCompare(comparer) => Some(comparer.sent()),
        }
    }
}
