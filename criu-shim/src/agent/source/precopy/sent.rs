//! Pages that were written with what they held before: they need not cross again.
//!
//! The kernel says that a page was written, not that it has changed. What a page held when it was sent last is kept as a
//! digest, and a page that has the same one is left out. In the first round every page is new, so digests begin with the
//! second: what is kept grows with what is written, and the round that sends the most costs nothing.
//!
//! Two contents that share a digest would leave the target with the wrong one. So it has 128 bits, of BLAKE3 with a key that
//! is drawn for each move and never leaves this process. Who does not know the key can't look for contents that share a digest,
//! and chance makes it happen once in 2^128 comparisons, because a page is only ever compared with itself here.

use super::alike::{Alike, Digest};
use crate::agent::transfer::pages::PAGE;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many pages are compared before anything follows from it.
const ENOUGH: u64 = 1024;
/// Of how many pages one must be left out for the comparison to be worth its time. Source: `make bench-transfer`, in which a
/// page takes some 10 µs of processors' time on both sides together, and BLAKE3 of one, seen as a part of a stream, took 1.4 µs.
const ONE_IN: u64 = 8;

/// What the pages of one process held when they were sent last. Clones share it.
#[derive(Clone, Debug)]
pub struct SentPages {
    alike: Alike,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    alike: Alike,
    /// The pages were sent for the first time.
    begun: bool,
    /// By address. A page that was sent and has an entry has the right one.
    digests: HashMap<u64, Digest>,
    compared: u64,
    same: u64,
}

impl SentPages {
    /// Of a process of which nothing was sent.
    pub(super) fn new(alike: Alike) -> Self {
        let inner = Inner { alike: alike.clone(), begun: false, digests: HashMap::new(), compared: 0, same: 0 };
        Self { alike, inner: Arc::new(Mutex::new(inner)) }
    }

    /// What is known of the pages of all processes.
    pub(super) fn alike(&self) -> &Alike {
        &self.alike
    }

    /// Begins a round of this process' pages. Returns whether they are to be compared. Where not, all that is known is forgotten: it
    /// is not true any more after such a round.
    pub(super) fn begin(&self) -> bool {
        let mut inner = self.inner();
        if !inner.begun {
            inner.begun = true;
            return false;
        }
        let worth_it = is_worth_it(inner.compared, inner.same);
        if !worth_it {
            inner.forget();
        }
        worth_it
    }

    /// Which of these pages, at most 64 from `address` on, the target has as they are, by their digests: the first is the lowest bit.
    /// Every other must be sent now.
    pub(super) fn known(&self, address: u64, pages: &[Digest]) -> u64 {
        let mut inner = self.inner();
        let Inner { digests, compared, same, .. } = &mut *inner;
        let mut known = 0;
        for (index, digest) in pages.iter().enumerate() {
            let address = address + (index * PAGE) as u64;
            if let Some(before) = digests.get_mut(&address) {
                *compared += 1;
                if before == digest {
                    *same += 1;
                    known |= 1 << index;
                }
                *before = *digest;
            } else if self.alike.remember() {
                digests.insert(address, *digest);
            }
        }
        known
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self) {
        self.alike.forget(std::mem::take(&mut self.digests).len());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Whether enough pages turned out to be the same.
fn is_worth_it(compared: u64, same: u64) -> bool {
    compared < ENOUGH || same.saturating_mul(ONE_IN) >= compared
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests of pages full of one byte each.
    fn pages(sent: &SentPages, bytes: &[u8]) -> Vec<Digest> {
        bytes.iter().map(|byte| sent.alike.digest(&[*byte; PAGE])).collect()
    }

    /// After a first round, with which nothing is compared.
    fn begun() -> SentPages {
        let sent = Alike::new().expect("a key").process();
        assert!(!sent.begin(), "in the first round every page is new");
        assert!(sent.begin(), "from then on they are compared");
        sent
    }

    #[test]
    fn a_page_that_holds_what_it_held_before_is_known_and_no_other_is() {
        let sent = begun();
        let known = |address, bytes: &[u8]| sent.known(address, &pages(&sent, bytes));
        assert_eq!(known(0x1000, &[1, 2, 3]), 0b000, "seen for the first time");
        assert_eq!(known(0x1000, &[1, 9, 3]), 0b101);
        assert_eq!(known(0x1000, &[1, 2, 3]), 0b101, "what counts is what was sent last");
        assert_eq!(known(0x2000, &[2]), 0b1);
        assert_eq!(known(0x5000, &[1]), 0b0, "the same at another address");
    }

    #[test]
    fn what_is_not_worth_it_is_given_up_and_forgotten() {
        let sent = begun();
        for round in 0..20 {
            sent.known(0, &pages(&sent, &[round; 64]));
        }
        assert!(!sent.begin());
        assert!(sent.inner().digests.is_empty(), "pages are sent from now on without a look at their digests");
    }

    #[test]
    fn one_page_in_eight_is_worth_it_and_a_few_pages_prove_nothing() {
        assert!(is_worth_it(ENOUGH - 1, 0));
        assert!(!is_worth_it(ENOUGH, ENOUGH / ONE_IN - 1));
        assert!(is_worth_it(ENOUGH, ENOUGH / ONE_IN));
    }
}
