//! What was sent of an object: a digest of each page, and the order in which pages were sent first. No I/O.

use super::object::PAGE;
use crate::memory::Range;
use std::collections::BTreeMap;

/// Pages whose digests are kept together: those of 2 MiB.
pub(super) const GROUP: usize = 512;

/// A keyed digest of a page, cut to 128 bits. All zeros where nothing was sent.
pub(super) type Digest = [u8; 16];

const NOTHING: Digest = [0; 16];

#[derive(Debug)]
pub(super) struct Sent {
    key: [u8; 32],
    groups: BTreeMap<u64, Box<[Digest; GROUP]>>,
    order: Vec<Range>,
}

impl Sent {
    /// `key` must be random: who writes the pages may not be able to make two that look alike.
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self { key, groups: BTreeMap::new(), order: Vec::new() }
    }

    /// Whether page number `page` must be sent, which is `bytes` now.
    pub(super) fn differs(&self, page: u64, bytes: &[u8]) -> bool {
        match self.digest(page) {
            Some(sent) => *sent != self.digest_of(bytes),
            // What was never sent is a hole there, which reads as zeros.
            None => !is_zero(bytes),
        }
    }

    /// Takes note that page number `page` is sent as `bytes`. Zeros that follow on nothing are nothing to send.
    pub(super) fn note(&mut self, page: u64, bytes: &[u8]) {
        let first = self.digest(page).is_none();
        if first && is_zero(bytes) {
            return;
        }
        let digest = self.digest_of(bytes);
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

    /// Bytes of the object, in the order in which they were sent first.
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

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ early on.
    page.iter().take(16).all(|byte| *byte == 0) && page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONES: [u8; PAGE as usize] = [1; PAGE as usize];
    const TWOS: [u8; PAGE as usize] = [2; PAGE as usize];
    const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

    #[test]
    fn a_page_is_sent_when_it_is_another_than_it_was_and_zeros_only_in_place_of_something() {
        let mut sent = Sent::new([7; 32]);
        assert!(sent.differs(0, &ONES) && !sent.differs(0, &ZEROS));
        sent.note(0, &ONES);
        assert!(!sent.differs(0, &ONES) && sent.differs(0, &TWOS) && sent.differs(0, &ZEROS));
        sent.note(0, &ZEROS);
        assert!(!sent.differs(0, &ZEROS) && sent.differs(0, &ONES));
        sent.note(1, &ZEROS);
        assert!(!sent.differs(1, &ZEROS));
    }

    #[test]
    fn the_order_is_that_of_the_first_time() {
        let mut sent = Sent::new([7; 32]);
        for page in [1000, 1001, 3, 1000, 4] {
            sent.note(page, &ONES);
            sent.note(page + 1, &ZEROS);
        }
        let range = |start: u64, end: u64| Range { start: start * PAGE, end: end * PAGE };
        assert_eq!(sent.order(), [range(1000, 1002), range(3, 5)]);
        assert_eq!(sent.groups().collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn pages_that_look_alike_under_one_key_need_not_under_another() {
        assert_ne!(Sent::new([1; 32]).digest_of(&ONES), Sent::new([2; 32]).digest_of(&ONES));
    }
}
