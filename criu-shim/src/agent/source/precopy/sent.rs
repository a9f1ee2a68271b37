//! Pages that were written with what they held before: they need not cross again.
//!
//! The kernel says that a page was written, not that it has changed. What a page held when it was sent last is kept as a
//! digest, and a page that has the same one is left out. In the first round every page is new, so digests begin with the
//! second: what is kept grows with what is written, and the round that sends the most costs nothing.
//!
//! Two contents that share a digest would leave the target with the wrong one. So it has 128 bits, of BLAKE3 with a key that
//! is drawn for each process and never leaves this one. Who does not know the key can't look for contents that share a digest,
//! and chance makes it happen once in 2^128 comparisons, because a page is only ever compared with itself.

use crate::agent::transfer::pages::PAGE;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most pages of one process of which a digest is kept. Each takes about 40 bytes.
const MOST: usize = 256 << 10;
/// How many pages are compared before anything follows from it.
const ENOUGH: u64 = 1024;
/// Of how many pages one must be left out for the comparison to be worth its time. Source: `make bench-transfer`, in which a
/// page takes some 10 µs of processors' time on both sides together, and BLAKE3 of one, seen as a part of a stream, took 1.4 µs.
const ONE_IN: u64 = 8;

/// Half of a BLAKE3.
type Digest = [u8; 16];

/// What the pages of one process held when they were sent last. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct SentPages {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// None until the pages were sent for the first time.
    key: Option<[u8; 32]>,
    /// By address. A page that was sent and has an entry has the right one.
    digests: HashMap<u64, Digest>,
    compared: u64,
    same: u64,
}

impl SentPages {
    /// Begins a round of this process' pages. None where they are not to be compared, and all that is known is forgotten: it
    /// is not true any more after such a round.
    ///
    /// # Errors
    /// Where no key can be drawn.
    pub fn begin(&self) -> Result<Option<Self>> {
        let mut inner = self.inner();
        if inner.key.is_none() {
            let mut key = [0; 32];
            File::open("/dev/urandom")?.read_exact(&mut key)?;
            inner.key = Some(key);
            return Ok(None);
        }
        if !is_worth_it(inner.compared, inner.same) {
            inner.digests = HashMap::new();
            return Ok(None);
        }
        Ok(Some(self.clone()))
    }

    /// Which of these pages, at most 64 from `address` on, the target has as they are: the first is the lowest bit. Every other
    /// must be sent now.
    pub fn known(&self, address: u64, pages: &[u8]) -> u64 {
        let mut inner = self.inner();
        let Inner { key: Some(key), digests, compared, same } = &mut *inner else { return 0 };
        let mut known = 0;
        for (index, page) in pages.chunks_exact(PAGE).enumerate() {
            let address = address + (index * PAGE) as u64;
            let digest = digest(key, page);
            if let Some(before) = digests.get_mut(&address) {
                *compared += 1;
                if *before == digest {
                    *same += 1;
                    known |= 1 << index;
                }
                *before = digest;
            } else if digests.len() < MOST {
                digests.insert(address, digest);
            }
        }
        known
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(key: &[u8; 32], page: &[u8]) -> Digest {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::keyed_hash(key, page).as_bytes()[..16]);
    half
}

/// Whether enough pages turned out to be the same.
fn is_worth_it(compared: u64, same: u64) -> bool {
    compared < ENOUGH || same.saturating_mul(ONE_IN) >= compared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(bytes: &[u8]) -> Vec<u8> {
        bytes.iter().flat_map(|byte| [*byte; PAGE]).collect()
    }

    /// After a first round, with which nothing is compared.
    fn begun() -> SentPages {
        let sent = SentPages::default();
        assert!(sent.begin().expect("a key").is_none(), "in the first round every page is new");
        sent.begin().expect("a key").expect("from then on they are compared")
    }

    #[test]
    fn a_page_that_holds_what_it_held_before_is_known_and_no_other_is() {
        let sent = begun();
        assert_eq!(sent.known(0x1000, &pages(&[1, 2, 3])), 0b000, "seen for the first time");
        assert_eq!(sent.known(0x1000, &pages(&[1, 9, 3])), 0b101);
        assert_eq!(sent.known(0x1000, &pages(&[1, 2, 3])), 0b101, "what counts is what was sent last");
        assert_eq!(sent.known(0x2000, &pages(&[2])), 0b1);
        assert_eq!(sent.known(0x5000, &pages(&[1])), 0b0, "the same at another address");
    }

    #[test]
    fn every_process_has_a_key_of_its_own() {
        let [one, other] = [begun(), begun()].map(|sent| sent.inner().key);
        assert!(one.is_some() && one != other);
    }

    #[test]
    fn what_is_not_worth_it_is_given_up_and_forgotten() {
        let sent = begun();
        for round in 0..20 {
            sent.known(0, &pages(&[round; 64]));
        }
        assert!(sent.begin().expect("a key").is_none());
        assert!(sent.inner().digests.is_empty(), "pages are sent from now on without a look at their digests");
    }

    #[test]
    fn one_page_in_eight_is_worth_it_and_a_few_pages_prove_nothing() {
        assert!(is_worth_it(ENOUGH - 1, 0));
        assert!(!is_worth_it(ENOUGH, ENOUGH / ONE_IN - 1));
        assert!(is_worth_it(ENOUGH, ENOUGH / ONE_IN));
    }
}
