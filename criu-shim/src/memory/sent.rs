//! What was sent of some memory: a digest of each page, and the order in which pages were sent first. No I/O.

use super::Range;
use std::collections::BTreeMap;
use std::io::{self, Read};

/// Bytes of a page.
pub(super) const PAGE: u64 = 4096;

/// Pages whose digests are kept together: those of 2 MiB.
pub(super) const GROUP: usize = 512;

/// A keyed digest of a page, cut to 128 bits. All zeros where nothing was sent.
pub(super) type Digest = [u8; 16];

const NOTHING: Digest = [0; 16];

/// Digests of what was sent last, by the number of the page.
#[derive(Debug)]
pub struct Sent {
    key: [u8; 32],
    groups: BTreeMap<u64, Box<[Digest; GROUP]>>,
    order: Vec<Range>,
}

impl Sent {
    /// With a key of its own: who writes the pages may not be able to make two that look alike.
    ///
    /// # Errors
    /// Where no random number is to be had.
    pub(super) fn nothing() -> io::Result<Self> {
        let mut key = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self::with_key(key))
    }

    fn with_key(key: [u8; 32]) -> Self {
        Self { key, groups: BTreeMap::new(), order: Vec::new() }
    }

    /// Whether page number `page` was ever sent.
    pub(super) fn has(&self, page: u64) -> bool {
        self.digest(page).is_some()
    }

    /// Whether page number `page` was sent last as these bytes. (Two pages with one digest of 128 bits under a random key are
    /// not to be expected.)
    pub(super) fn is(&self, page: u64, bytes: &[u8]) -> bool {
        self.digest(page).is_some_and(|sent| *sent == self.digest_of(bytes))
    }

    /// Takes note that page number `page` is sent as `bytes`.
    pub(super) fn note(&mut self, page: u64, bytes: &[u8]) {
        let (first, digest) = (!self.has(page), self.digest_of(bytes));
        let group = self.groups.entry(page / GROUP as u64).or_insert_with(|| Box::new([NOTHING; GROUP]));
        group[(page % GROUP as u64) as usize] = digest;
        if first {
            let range = Range { start: page * PAGE, end: (page + 1) * PAGE };
            match self.order.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => self.order.push(range),
            }
        }
    }

    /// How much was sent, bytes, each page once.
    pub(super) fn bytes(&self) -> u64 {
        self.order.iter().map(Range::len).sum()
    }

    /// What was sent, in the order in which it was sent first.
    pub(super) fn order(&self) -> &[Range] {
        &self.order
    }

    /// Numbers of the groups of which something was sent, ascending.
    pub(super) fn groups(&self) -> impl Iterator<Item = u64> + '_ {
        self.groups.keys().copied()
    }

    fn digest(&self, page: u64) -> Option<&Digest> {
        let group = self.groups.get(&(page / GROUP as u64))?;
        Some(&group[(page % GROUP as u64) as usize]).filter(|digest| **digest != NOTHING)
    }

    fn digest_of(&self, bytes: &[u8]) -> Digest {
        let mut digest = NOTHING;
        digest.copy_from_slice(&blake3::keyed_hash(&self.key, bytes).as_bytes()[..16]);
        digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONES: [u8; PAGE as usize] = [1; PAGE as usize];
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

    #[test]
    fn a_page_is_what_was_sent_last() {
        let mut sent = Sent::nothing().unwrap();
        assert!(!sent.has(0) && !sent.is(0, &ONES) && !sent.is(0, &ZEROS));
        sent.note(0, &ONES);
        assert!(sent.has(0) && sent.is(0, &ONES) && !sent.is(0, &ZEROS) && !sent.has(1));
        sent.note(0, &ZEROS);
        assert!(sent.is(0, &ZEROS) && !sent.is(0, &ONES));
    }

    #[test]
    fn the_order_is_that_of_the_first_time() {
        let mut sent = Sent::nothing().unwrap();
        for page in [1000, 1001, 3, 1000, 4] {
            sent.note(page, &ONES);
        }
        let range = |start: u64, end: u64| Range { start: start * PAGE, end: end * PAGE };
        assert_eq!(sent.order(), [range(1000, 1002), range(3, 5)]);
        assert_eq!(sent.groups().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn pages_that_look_alike_under_one_key_need_not_under_another() {
        assert_ne!(Sent::with_key([1; 32]).digest_of(&ONES), Sent::with_key([2; 32]).digest_of(&ONES));
    }
}
