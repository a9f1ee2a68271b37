//! Shared memory that a dump leaves out: the list of it, which our CRIU and the library in it share with the agent.
//!
//! The library (`shmem-preload`) tells CRIU that an object on the list has no pages. Its image then has none, and
//! [`super::shared`] writes down afterwards which there are.

use super::error::SharedError;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Environment variable that names the list's descriptor to the library.
pub(super) const VARIABLE: &str = "TIDEOVER_WITHHELD";

/// Most objects on a list: its 64 KiB hold a count and two words for each.
pub const MOST: usize = (64 << 10) / 16 - 1;

/// An object of shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Device, as fstat(2) says it: that of the kernel's own mount of shmem.
    pub device: u64,
    /// Inode, by which the images name it too.
    pub inode: u32,
}

/// The list, empty at first.
#[derive(Debug)]
pub(super) struct Withheld {
    list: File,
}

impl Withheld {
    pub(super) fn new() -> Result<Self, SharedError> {
        let list = memfd_create("tideover-withheld", MemfdFlags::CLOEXEC);
        Ok(Self { list: list.map_err(|errno| SharedError::List(errno.into()))?.into() })
    }

    /// What CRIU inherits.
    pub(super) fn descriptor(&self) -> Result<File, SharedError> {
        self.list.try_clone().map_err(SharedError::List)
    }

    /// Puts `objects` on the list. CRIU must not be at work yet.
    pub(super) fn set(&self, objects: &[ObjectId]) -> Result<(), SharedError> {
        if objects.len() > MOST {
            return Err(SharedError::TooMany { objects: objects.len() });
        }
        let pairs = objects.iter().flat_map(|object| [object.device, object.inode.into()]);
        let words: Vec<u8> = std::iter::once(objects.len() as u64).chain(pairs).flat_map(u64::to_ne_bytes).collect();
        self.list.write_all_at(&words, 0).map_err(SharedError::List)
    }
}
