//! Pages that hold what another one holds which the target has: they cross as the place of that one.
//!
//! Forked processes have in common what none of them has written since. The kernel says which pages more than one process
//! has, but not for how long, so that it only tells where it is worth to look. What counts is the content: of such a page
//! a digest is made, of the bytes that are about to be sent, and the place at which a content is sent first is listed. A page
//! with a digest that is listed crosses as that place, and the target copies what it has there.
//!
//! The target has pages by place, and takes them in the order in which they are sent. What is sent to a listed place later
//! may be something else, so nothing is ever said to be like that place again. So a place always means what the target has
//! there by then, whatever comes after.
//!
//! Two contents that share a digest would leave the target with the wrong one: see [`super::sent`] for why they don't. Here a
//! page is compared with every other one, of which there are at most [`MOST`]: chance makes it happen once in 2^88 moves.

use super::sent::SentPages;
use crate::agent::transfer::pages::{PAGE, Place};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Result};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most contents that are listed, one for each of 3.5 GiB of pages. What is beyond crosses once for each process. Source: the
/// table takes 25 bytes for each of a power of two, of which it fills seven in eight: 25 MiB at the most, and half as much
/// again in the moment in which it grows to that.
const MOST: usize = (1 << 20) / 8 * 7;
/// Most pages of which it is remembered what they held when they were sent last, of all processes together. Each takes about 40
/// bytes.
const MOST_REMEMBERED: usize = 256 << 10;
/// Bits of a page's number. Source: x86-64's five-level paging, the widest there is, has addresses of 57 bits.
const NUMBER_BITS: u32 = 45;
/// Pages whose states are kept together.
const GROUP: u64 = 64;

/// Half of a BLAKE3.
pub type Digest = [u8; 16];

/// What is known of the pages of one move. Clones share it.
#[derive(Clone, Debug)]
pub struct Alike {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Never leaves this process: who does not know it can't look for contents that share a digest.
    key: [u8; 32],
    listed: Mutex<Listed>,
    remembered: AtomicUsize,
}

impl Alike {
    /// For a target that has nothing yet.
    ///
    /// # Errors
    /// Where no key can be drawn.
    pub fn new() -> Result<Self> {
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let (listed, remembered) = (Mutex::default(), AtomicUsize::new(0));
        Ok(Self { shared: Arc::new(Shared { key, listed, remembered }) })
    }

    /// What the pages of one more process held when they were sent last: nothing yet.
    pub fn process(&self) -> SentPages {
        SentPages::new(self.clone())
    }

    /// The digest of a page.
    pub(super) fn digest(&self, page: &[u8]) -> Digest {
        let mut half = [0; 16];
        half.copy_from_slice(&blake3::keyed_hash(&self.shared.key, page).as_bytes()[..16]);
        half
    }

    /// The places that are listed.
    pub(super) fn listed(&self) -> MutexGuard<'_, Listed> {
        // Nothing panics while it holds the lock.
        self.shared.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more page can be remembered. It counts from then on.
    pub(super) fn remember(&self) -> bool {
        let more = |remembered: usize| (remembered < MOST_REMEMBERED).then_some(remembered + 1);
        self.shared.remembered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// So many pages are remembered no more.
    pub(super) fn forget(&self, pages: usize) {
        self.shared.remembered.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// Where the target has what.
#[derive(Debug, Default)]
pub(super) struct Listed {
    by_digest: HashMap<Digest, Packed>,
    /// Processes of which something is listed, each by its index.
    pids: Vec<i32>,
    /// By process and number of the group.
    groups: BTreeMap<(i32, u64), Group>,
}

/// A place in 8 bytes: the index of its process, and the number of its page.
#[derive(Clone, Copy, Debug)]
struct Packed(u64);

/// A bit for each page.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// It was listed.
    listed: u64,
    /// It was sent again since.
    stale: u64,
}

impl Listed {
    /// The page at `place` is sent now, with a content of this `digest` if it is looked at. Returns where the target has the
    /// same: it must be sent as that then.
    pub(super) fn send(&mut self, place: Place, digest: Option<Digest>) -> Option<Place> {
        let (key, bit) = group_of(place);
        let mut was_listed = false;
        if let Some(group) = self.groups.get_mut(&key) {
            group.stale |= group.listed & bit;
            was_listed = group.listed & bit != 0;
        }
        let digest = digest?;
        let known = self.by_digest.get(&digest).and_then(|known| self.unpack(*known));
        if let Some(known) = known.filter(|known| !self.is_stale(*known)) {
            return Some(known);
        }
        if was_listed || (known.is_none() && self.by_digest.len() >= MOST) {
            return None;
        }
        let packed = self.pack(place);
        self.groups.entry(key).or_default().listed |= bit;
        // A full table would grow for what replaces something, too.
        match self.by_digest.get_mut(&digest) {
            Some(former) => *former = packed,
            None => _ = self.by_digest.insert(digest, packed),
        }
        None
    }

    fn pack(&mut self, Place { pid, address }: Place) -> Packed {
        // The one that is listed now is the last that was.
        let index = self.pids.iter().rposition(|known| *known == pid).unwrap_or_else(|| {
            self.pids.push(pid);
            self.pids.len() - 1
        });
        Packed(((index as u64) << NUMBER_BITS) | (address / PAGE as u64))
    }

    fn unpack(&self, Packed(packed): Packed) -> Option<Place> {
        let index = usize::try_from(packed >> NUMBER_BITS).ok()?;
        let number = packed & ((1 << NUMBER_BITS) - 1);
        Some(Place { pid: *self.pids.get(index)?, address: number * PAGE as u64 })
    }

    fn is_stale(&self, place: Place) -> bool {
        let (key, bit) = group_of(place);
        self.groups.get(&key).is_some_and(|group| group.stale & bit != 0)
    }
}

/// The key of a page's group, and its bit there.
fn group_of(Place { pid, address }: Place) -> ((i32, u64), u64) {
    let page = address / PAGE as u64;
    ((pid, page / GROUP), 1 << (page % GROUP))
}

#[cfg(test)]
#[path = "alike_tests.rs"]
mod tests;
