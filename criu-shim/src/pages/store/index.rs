//! The index of one process, to bytes and back. No I/O; the format is in the module's doc.

use super::super::{PAGE, PageRange};

const MAGIC: &[u8; 8] = b"TIDEPAGE";
/// What was committed may lie there through an upgrade of the agent: should it change, the version before is still read.
const VERSION: u32 = 1;
const HEADER: usize = 32;
const EXTENT: usize = 24;
const CHECKSUM: usize = 32;

/// Most extents of one process: 64 GiB in the worst case, that of single pages.
pub(super) const MAX_EXTENTS: usize = 1 << 24;

/// Longest index, bytes.
pub(super) const MAX_LENGTH: usize = HEADER + MAX_EXTENTS * EXTENT + CHECKSUM;

/// Pages that follow each other both in memory and in the data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Virtual address of the first page.
    pub address: u64,
    /// Bytes, a multiple of 4096.
    pub length: u64,
    /// Where the first page lies in the data file, bytes.
    pub offset: u64,
}

/// What an index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) pid: i32,
    /// Length of the data file, bytes.
    pub(super) data_length: u64,
    /// By ascending address; no two share an address or a byte of the data file.
    pub(super) extents: Vec<Extent>,
}

impl Index {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.extents.len() * EXTENT + CHECKSUM);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.pid.to_le_bytes());
        bytes.extend_from_slice(&(self.extents.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&self.data_length.to_le_bytes());
        for extent in &self.extents {
            for number in [extent.address, extent.length, extent.offset] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        let checksum = blake3::hash(&bytes);
        bytes.extend_from_slice(checksum.as_bytes());
        bytes
    }

    /// The index that `bytes` are, taken whole or not at all.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or("it is cut off")?;
        if body.len() < HEADER {
            return Err("it is cut off");
        }
        if &body[..8] != MAGIC {
            return Err("it has another magic");
        }
        if read_u32(body, 8) != VERSION {
            return Err("it has another version");
        }
        let count = usize::try_from(read_u64(body, 16)).unwrap_or(usize::MAX);
        if count > MAX_EXTENTS {
            return Err("it has too many extents");
        }
        if body.len() != HEADER + count * EXTENT {
            return Err("its length is not that of its extents");
        }
        if blake3::hash(body).as_bytes() != checksum {
            return Err("its checksum is wrong");
        }
        let extents = body[HEADER..].chunks_exact(EXTENT).map(|bytes| Extent {
            address: read_u64(bytes, 0),
            length: read_u64(bytes, 8),
            offset: read_u64(bytes, 16),
        });
        let index = Self {
            pid: i32::from_le_bytes(read(body, 12)),
            data_length: read_u64(body, 24),
            extents: extents.collect(),
        };
        index.check()?;
        Ok(index)
    }

    fn check(&self) -> Result<(), &'static str> {
        let mut places = Vec::with_capacity(self.extents.len());
        let mut at = 0;
        for extent in &self.extents {
            let memory = PageRange::new(extent.address, extent.length);
            let memory = memory.map_err(|_| "an extent is no range of whole pages")?;
            let place = PageRange::new(extent.offset, extent.length);
            let place = place.map_err(|_| "an extent lies at no place in the data file")?;
            if memory.start() < at {
                return Err("its extents overlap or do not ascend");
            }
            if place.end() > self.data_length {
                return Err("an extent lies behind the end of the data file");
            }
            at = memory.end();
            places.push(place);
        }
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[0].end() > pair[1].start()) {
            return Err("two extents share a place in the data file");
        }
        if !self.data_length.is_multiple_of(PAGE) {
            return Err("the data file has no whole pages");
        }
        Ok(())
    }
}

/// `N` bytes at `at`, which the caller has seen to be there; zeros otherwise.
fn read<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(read(bytes, at))
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(read(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(address: u64, pages: u64, offset: u64) -> Extent {
        Extent { address: address * PAGE, length: pages * PAGE, offset: offset * PAGE }
    }

    fn index(extents: &[Extent]) -> Index {
        Index { pid: 17, data_length: 8 * PAGE, extents: extents.to_vec() }
    }

    #[test]
    fn what_was_encoded_reads_back() {
        for extents in [&[][..], &[extent(1, 2, 3), extent(3, 1, 0), extent(9, 3, 5)]] {
            assert_eq!(Index::decode(&index(extents).encode()).unwrap(), index(extents));
        }
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let cases = [
            (index(&[extent(1, 0, 0)]), "an extent is no range of whole pages"),
            (index(&[Extent { offset: 1, ..extent(1, 1, 0) }]), "an extent lies at no place in the data file"),
            (index(&[extent(1, 2, 0), extent(2, 1, 4)]), "its extents overlap or do not ascend"),
            (index(&[extent(1, 2, 7)]), "an extent lies behind the end of the data file"),
            (index(&[extent(1, 2, 0), extent(5, 1, 1)]), "two extents share a place in the data file"),
            (Index { data_length: 1, ..index(&[]) }, "the data file has no whole pages"),
        ];
        for (index, reason) in cases {
            assert_eq!(Index::decode(&index.encode()), Err(reason));
        }
    }

    #[test]
    fn a_number_of_extents_that_is_not_there_is_refused_before_it_is_believed() {
        let mut bytes = index(&[extent(1, 1, 0)]).encode();
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Index::decode(&bytes), Err("it has too many extents"));
        bytes[16..24].copy_from_slice(&2u64.to_le_bytes());
        assert_eq!(Index::decode(&bytes), Err("its length is not that of its extents"));
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_noticed(at in 0usize..HEADER + 2 * EXTENT + CHECKSUM, change in 1u8..) {
            let mut bytes = index(&[extent(1, 2, 0), extent(5, 1, 4)]).encode();
            bytes[at] ^= change;
            prop_assert!(Index::decode(&bytes).is_err());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Index::decode(&bytes).is_err());
        }
    }
}
