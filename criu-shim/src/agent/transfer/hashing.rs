//! The digest of a part: what it is depends on what becomes of the part.
//!
//! A file lies on the target's disk until it is used, and is compared each time before that: BLAKE3. Pages are compared once,
//! as they land: against mistakes of ours and of the machine, not against anybody, because TLS has authenticated them. XXH3 is
//! enough for that, and takes a tenth of the time, on both sides of every page.

use crate::agent::transfer::message::Part;
use std::fmt;

/// A digest of the bytes of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digest {
    /// Of a file: BLAKE3.
    File(blake3::Hash),
    /// Of a stream of pages: XXH3, 128 bits.
    Pages(u128),
}

impl Digest {
    /// What `text` says of `part`, if it is a digest of such a part.
    pub fn parse(part: &Part, text: &str) -> Option<Self> {
        match part.is_memory() {
            true if text.len() == 32 => u128::from_str_radix(text, 16).ok().map(Self::Pages),
            true => None,
            false => blake3::Hash::from_hex(text).ok().map(Self::File),
        }
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self::File(hash)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(hash) => formatter.write_str(&hash.to_hex()),
            Self::Pages(hash) => write!(formatter, "{hash:032x}"),
        }
    }
}

/// What makes the digest of a part.
pub(super) enum Hashing {
    /// Of a file.
    File(Box<blake3::Hasher>),
    /// Of a stream of pages.
    Pages(Box<twox_hash::xxhash3_128::Hasher>),
}

impl Hashing {
    /// Of `part`.
    pub(super) fn of(part: &Part) -> Self {
        if part.is_memory() { Self::pages() } else { Self::File(Box::default()) }
    }

    /// Of a stream of pages.
    pub(super) fn pages() -> Self {
        Self::Pages(Box::new(twox_hash::xxhash3_128::Hasher::new()))
    }

    /// Takes the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::File(hasher) => {
                hasher.update(bytes);
            }
            Self::Pages(hasher) => hasher.write(bytes),
        }
    }

    /// The digest of all of them.
    pub(super) fn finish(self) -> Digest {
        match self {
            Self::File(hasher) => Digest::File(hasher.finalize()),
            Self::Pages(hasher) => Digest::Pages(hasher.finish_128()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_back_for_parts_of_its_kind_and_for_no_others() {
        let (file, memory) = (Part::Layer { round: 1 }, Part::Memory { pid: 1, round: 1 });
        for (part, other) in [(&file, &memory), (&memory, &file)] {
            let mut hashing = Hashing::of(part);
            hashing.update(b"ab");
            hashing.update(b"c");
            let digest = hashing.finish();
            assert_eq!(Digest::parse(part, &digest.to_string()), Some(digest));
            assert_eq!(Digest::parse(other, &digest.to_string()), None);
            assert_eq!(Digest::parse(part, "abc"), None);
        }
    }

    #[test]
    fn the_digest_of_pages_is_the_one_that_others_compute() {
        // Source: `xxh128sum` of an empty file.
        assert_eq!(Hashing::pages().finish().to_string(), "99aa06d3014798d86001c324468d497f");
    }
}
