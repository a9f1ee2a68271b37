//! The room on this node's disk that incoming states may still take, one account for all of them.
//!
//! What was promised to one is not there for another, so that the sum of what may still come never exceeds what is free.
//! Bytes that are on the disk are no promise any more: the disk has less free itself.

use crate::agent::source::preflight::free_bytes;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Disk space that incoming states leave free, bytes.
const SPARE: u64 = 256 << 20;

/// There is less room than was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no space for {wanted} bytes of state: the target's disk has {left} for it, beside what other moves may bring")]
pub struct NoRoom {
    /// Bytes that were asked for.
    pub wanted: u64,
    /// Bytes that could be promised.
    pub left: u64,
}

/// The account: what was promised and is not on the disk yet.
#[derive(Debug, Default)]
struct Account {
    promised: u64,
}

impl Account {
    /// Promises `wanted` bytes more, given how many are free.
    fn promise(&mut self, wanted: u64, free: u64) -> Result<(), NoRoom> {
        let left = free.saturating_sub(self.promised);
        if wanted > left {
            return Err(NoRoom { wanted, left });
        }
        self.promised += wanted;
        Ok(())
    }
}

/// The room of one disk. Clones share its account.
#[derive(Clone)]
pub struct Room {
    free: Arc<dyn Fn() -> u64 + Send + Sync>,
    account: Arc<Mutex<Account>>,
}

impl fmt::Debug for Room {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Room").field("account", &self.account).finish_non_exhaustive()
    }
}

impl Room {
    /// The room on the file system of `path`: what is free there, without some spare.
    pub fn on(path: PathBuf) -> Self {
        Self::new(move || free_bytes(&path).saturating_sub(SPARE))
    }

    /// Room of which `free` tells how many bytes are free at the moment.
    pub fn new(free: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self { free: Arc::new(free), account: Arc::default() }
    }

    /// Promises `bytes` bytes to a state that is about to come.
    ///
    /// # Errors
    /// Where they are not free, or promised to others.
    pub fn promise(&self, bytes: u64) -> Result<Share, NoRoom> {
        let free = (self.free)();
        self.account().promise(bytes, free)?;
        Ok(Share { room: self.clone(), bytes })
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        // Nothing in here panics while it holds the lock.
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that were promised and are not on the disk yet. Dropping it gives them back.
#[derive(Debug)]
pub struct Share {
    room: Room,
    bytes: u64,
}

impl Share {
    /// Sees to it that this share has `bytes` bytes at least.
    ///
    /// # Errors
    /// Where there is no room for more; the share stays as it is.
    pub fn reach(&mut self, bytes: u64) -> Result<(), NoRoom> {
        if let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) {
            let mut more = self.room.promise(more)?;
            self.bytes += std::mem::take(&mut more.bytes);
        }
        Ok(())
    }

    /// Takes `bytes` bytes out of this share, for what is being written now: to be dropped when it is on the disk.
    ///
    /// # Errors
    /// Where there is no room for them.
    pub fn take(&mut self, bytes: u64) -> Result<Share, NoRoom> {
        self.reach(bytes)?;
        self.bytes -= bytes;
        Ok(Share { room: self.room.clone(), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.account().promised -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn what_is_promised_to_one_is_not_there_for_another() {
        let room = Room::new(|| 100);
        let first = room.promise(60).expect("room");
        assert_eq!(room.promise(60).expect_err("taken"), NoRoom { wanted: 60, left: 40 });
        let second = room.promise(40).expect("the rest");
        drop(first);
        room.promise(60).expect("given back");
        drop(second);
    }

    #[test]
    fn a_state_that_is_larger_than_was_thought_takes_more_if_there_is_more() {
        let room = Room::new(|| 100);
        let mut share = room.promise(10).expect("room");
        let written = share.take(50).expect("more");
        assert!(share.take(51).is_err(), "50 are being written");
        assert_eq!(share.take(51).expect_err("too much").left, 50);
        drop((share, written));
        room.promise(100).expect("all of it is free again");
    }

    proptest! {
        /// The disk never has less free than is promised, whatever comes in which order.
        #[test]
        fn the_disk_is_never_promised_twice(size in 0_u64..500, steps in proptest::collection::vec((0_usize..4, 0_u64..200), 0..60)) {
            let free = Arc::new(AtomicU64::new(size));
            let room = Room::new({ let free = free.clone(); move || free.load(Ordering::Relaxed) });
            let mut shares: Vec<Share> = Vec::new();
            for (what, bytes) in steps {
                match (what, shares.first_mut()) {
                    (0, _) => shares.extend(room.promise(bytes).ok()),
                    (1, Some(share)) => if let Ok(writing) = share.take(bytes) {
                        // On the disk first, then no promise any more.
                        free.fetch_sub(bytes, Ordering::Relaxed);
                        drop(writing);
                    },
                    (2, Some(_)) => drop(shares.remove(0)),
                    (_, Some(_)) => shares.rotate_left(1),
                    (_, None) => {}
                }
                let promised = room.account().promised;
                prop_assert_eq!(promised, shares.iter().map(|share| share.bytes).sum::<u64>());
                prop_assert!(promised <= free.load(Ordering::Relaxed));
            }
        }
    }
}
