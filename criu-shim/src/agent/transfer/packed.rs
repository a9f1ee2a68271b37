//! Data frames in short: each is one LZ4 block, which stands for as many bytes as its frame says.

use crate::agent::transfer::buffers::Buffer;
use crate::agent::transfer::frame::{MAX_DATA, Packed};
use lz4_flex::block::{
    CompressTable, DecompressError, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use std::fmt;
use thiserror::Error;

/// Of how many parts one must be saved for a frame to cross compressed: less would not pay for the time that it takes to be read.
const ONE_IN: usize = 8;

/// Why what came compressed can't be read.
#[derive(Debug, Error)]
pub enum PackedError {
    /// It is no LZ4 block, or one of more bytes than were announced.
    #[error("a frame is no LZ4 block of {announced} bytes")]
    Block {
        /// Bytes that it was said to stand for.
        announced: usize,
        /// Why.
        #[source]
        source: DecompressError,
    },
    /// It stands for fewer bytes.
    #[error("a frame that was said to stand for {announced} bytes stands for {found}")]
    Length {
        /// Bytes that it was said to stand for.
        announced: usize,
        /// Bytes that it stands for.
        found: usize,
    },
}

/// Compresses frames, one after the other. Its memory is used again.
pub(super) struct Packer {
    table: CompressTable,
    block: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> Self {
        Self { table: CompressTable::large(), block: vec![0; get_maximum_output_size(MAX_DATA)] }
    }

    /// The block for `bytes`, at most [`MAX_DATA`] of them.
    pub(super) fn block(&mut self, bytes: &[u8]) -> &[u8] {
        // It fails only where there is too little room for the block, and there is enough for any frame.
        let length = compress_into_with_table(bytes, &mut self.block, &mut self.table).unwrap_or_default();
        &self.block[..length]
    }

    /// `bytes` in short, in `buffer`. None where that saves too little.
    pub(super) fn pack(&mut self, bytes: &[u8], mut buffer: Buffer) -> Option<Packed> {
        let block = self.block(bytes);
        if block.is_empty() || block.len() > bytes.len() - bytes.len() / ONE_IN {
            return None;
        }
        buffer.spare()[..block.len()].copy_from_slice(block);
        buffer.fill(block.len());
        Some(Packed { length: bytes.len(), block: buffer.freeze() })
    }
}

/// Reads compressed frames, one after the other. Its memory is used again, and is never more than a frame's.
#[derive(Default)]
pub(super) struct Unpacking {
    bytes: Vec<u8>,
}

impl fmt::Debug for Unpacking {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Unpacking").field("room", &self.bytes.len()).finish()
    }
}

impl Unpacking {
    /// The bytes that `packed` stands for.
    ///
    /// # Errors
    /// Where it is not exactly as many, or no block at all.
    pub(super) fn unpack(&mut self, packed: &Packed) -> Result<&[u8], PackedError> {
        let announced = packed.length.min(MAX_DATA);
        if self.bytes.len() < announced {
            self.bytes.resize(MAX_DATA, 0);
        }
        let found = decompress_into(&packed.block, &mut self.bytes[..announced]);
        let found = found.map_err(|source| PackedError::Block { announced, source })?;
        if found == announced { Ok(&self.bytes[..found]) } else { Err(PackedError::Length { announced, found }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::transfer::buffers::Buffers;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn pack(bytes: &[u8]) -> Option<Packed> {
        Packer::new().pack(bytes, Buffers::default().take())
    }

    /// Words that come again, and bytes that don't.
    fn content() -> impl Strategy<Value = Vec<u8>> {
        let word = prop::collection::vec(any::<u8>(), 1..40);
        (prop::collection::vec(word, 1..20), prop::collection::vec(any::<prop::sample::Index>(), 1..2_000)).prop_map(
            |(words, order)| {
                let mut bytes: Vec<u8> = order.iter().flat_map(|index| index.get(&words).clone()).collect();
                bytes.truncate(MAX_DATA);
                bytes
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_packed_is_unpacked_to_the_same(content in content()) {
            if let Some(packed) = pack(&content) {
                prop_assert!(packed.block.len() < content.len() && packed.length == content.len());
                let mut unpacking = Unpacking::default();
                prop_assert_eq!(unpacking.unpack(&packed).expect("a block"), content);
            }
        }

        #[test]
        fn a_block_that_was_changed_stands_for_no_more_than_was_announced(
            content in content(), at: prop::sample::Index, change in 1..=255_u8, length in 1..=MAX_DATA,
        ) {
            let mut block = Packer::new().block(&content).to_vec();
            let at = at.index(block.len());
            block[at] ^= change;
            if let Ok(bytes) = Unpacking::default().unpack(&Packed { length, block: block.into() }) {
                prop_assert_eq!(bytes.len(), length);
            }
        }

        #[test]
        fn garbage_never_panics(garbage: Vec<u8>, length in 1..=MAX_DATA) {
            if let Ok(bytes) = Unpacking::default().unpack(&Packed { length, block: garbage.into() }) {
                prop_assert_eq!(bytes.len(), length);
            }
        }
    }

    #[test]
    fn the_longest_frame_can_be_packed() {
        let packed = pack(&[7; MAX_DATA]).expect("it is in short");
        assert!(packed.block.len() < MAX_DATA / 100);
        assert_eq!(Unpacking::default().unpack(&packed).expect("a block"), [7; MAX_DATA]);
    }

    #[test]
    fn what_can_t_be_compressed_crosses_as_it_is() {
        let mut state = 1_u64;
        let noise = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        assert_eq!(pack(&(0..MAX_DATA).map(noise).collect::<Vec<u8>>()), None);
    }

    #[test]
    fn a_block_of_another_length_than_was_announced_is_refused_by_name() {
        let packed = pack(&[7; 9_000]).expect("it is in short");
        let more = Packed { length: 9_001, ..packed.clone() };
        let error = Unpacking::default().unpack(&more).expect_err("it stands for less");
        assert!(matches!(error, PackedError::Length { announced: 9_001, found: 9_000 }), "{error}");
        let fewer = Packed { length: 8_999, ..packed };
        let error = Unpacking::default().unpack(&fewer).expect_err("it stands for more");
        assert!(matches!(error, PackedError::Block { announced: 8_999, .. }), "{error}");
        let none = Packed { length: 1, block: Bytes::new() };
        assert!(Unpacking::default().unpack(&none).is_err());
    }
}
