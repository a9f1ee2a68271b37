//! The digest over a round: the same on both sides if and only if the same parts with the same bytes are there.

use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::message::Part;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// One part as it was sent or as it landed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Landed {
    /// Length, bytes.
    pub bytes: u64,
    /// Digest of its bytes.
    pub digest: Digest,
}

/// The parts of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    parts: BTreeMap<Part, Landed>,
}

impl Manifest {
    /// Adds a part; false where the round has it already.
    #[must_use]
    pub fn add(&mut self, part: Part, landed: Landed) -> bool {
        self.parts.insert(part, landed).is_none()
    }

    /// Those of its parts that are wanted.
    #[must_use]
    pub fn only(&self, wanted: impl Fn(&Part) -> bool) -> Self {
        let parts = self.parts.iter().filter(|(part, _)| wanted(part));
        Self { parts: parts.map(|(part, landed)| (part.clone(), landed.clone())).collect() }
    }

    /// Number of parts.
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.values().map(|landed| landed.bytes).sum()
    }

    /// Its parts.
    pub fn parts(&self) -> impl Iterator<Item = (&Part, &Landed)> {
        self.parts.iter()
    }

    /// BLAKE3 over kind, name, length and digest of every part, in order of kind and name, hexadecimal.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (part, landed) in &self.parts {
            let (kind, name) = match part {
                Part::Image { name } => (b'i', Cow::Borrowed(name.as_str())),
                Part::Layer { round } => (b'l', Cow::Owned(round.to_string())),
                Part::Volume { name, round } => (b'v', Cow::Owned(format!("{name}/{round}"))),
                Part::SharedMemory { round } => (b's', Cow::Owned(round.to_string())),
                Part::Memory { pid, round } => (b'm', Cow::Owned(format!("{pid}/{round}"))),
                Part::Shared { inode, round } => (b'o', Cow::Owned(format!("{inode}/{round}"))),
            };
            hasher.update(&[kind]);
            hasher.update(&(name.len() as u64).to_be_bytes());
            hasher.update(name.as_bytes());
            hasher.update(&landed.bytes.to_be_bytes());
            hasher.update(landed.digest.to_string().as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(parts: &[(&str, &[u8])]) -> Manifest {
        let mut manifest = Manifest::default();
        for (name, bytes) in parts {
            let landed = Landed { bytes: bytes.len() as u64, digest: blake3::hash(bytes).into() };
            assert!(manifest.add(Part::Image { name: (*name).into() }, landed));
        }
        manifest
    }

    #[test]
    fn the_order_of_arrival_does_not_matter_and_everything_else_does() {
        let one = manifest(&[("a", b"1"), ("b", b"2")]);
        assert_eq!(one.digest(), manifest(&[("b", b"2"), ("a", b"1")]).digest());
        assert_ne!(one.digest(), manifest(&[("a", b"2"), ("b", b"1")]).digest());
        assert_ne!(one.digest(), manifest(&[("a", b"1")]).digest());
        assert_ne!(one.digest(), manifest(&[("ab", b"1"), ("b", b"2")]).digest());
    }
}
