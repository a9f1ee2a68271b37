//! The pages that one address space still lacks. No I/O.
//!
//! Two orders of the same pages: by address, because faults and events name addresses, and by place in the data file,
//! because the background fill goes through the file from its start, so that what lies behind it can be given back.

use crate::pages::PAGE;
use crate::pages::store::Extent;
use std::collections::BTreeMap;
use std::ops::Range;

/// Pages to put at `address`, from `offset` of the data file; both in bytes, as is `length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) address: u64,
    pub(super) length: u64,
    pub(super) offset: u64,
}

impl Chunk {
    /// What is left behind the first `length` bytes.
    pub(super) fn after(self, length: u64) -> Self {
        let length = length.min(self.length);
        Self { address: self.address + length, length: self.length - length, offset: self.offset + length }
    }

    /// Both halves, of whole pages; the first is the smaller one, and empty if there is one page only.
    pub(super) fn halves(self) -> (Self, Self) {
        let first = self.length / PAGE / 2 * PAGE;
        (Self { length: first, ..self }, self.after(first))
    }
}

/// What an address space still lacks. An address that is not in here was put already, or reads as zero.
#[derive(Clone, Debug, Default)]
pub(super) struct Missing {
    by_address: BTreeMap<u64, Piece>,
    /// Address of the piece that begins at an offset.
    by_offset: BTreeMap<u64, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    offset: u64,
}

impl Missing {
    /// Everything that a store has. The extents do not overlap, neither in memory nor in the data file.
    pub(super) fn of(extents: &[Extent]) -> Self {
        let by_address = extents
            .iter()
            .map(|extent| (extent.address, Piece { end: extent.address + extent.length, offset: extent.offset }));
        let by_offset = extents.iter().map(|extent| (extent.offset, extent.address));
        Self { by_address: by_address.collect(), by_offset: by_offset.collect() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Where the first page lies in the data file that is still missing.
    pub(super) fn lowest_offset(&self) -> Option<u64> {
        self.by_offset.keys().next().copied()
    }

    /// The next pages to put when nobody waits for any: those that come first in the data file, at most `most` bytes.
    pub(super) fn first(&self, most: u64) -> Option<Chunk> {
        let (&offset, &address) = self.by_offset.iter().next()?;
        let piece = self.by_address.get(&address)?;
        Some(Chunk { address, length: most.min(piece.end - address), offset })
    }

    /// The page at `address` together with what is missing right beside it, within the aligned window of `window` bytes
    /// around it. Nothing if that page is not missing.
    pub(super) fn around(&self, address: u64, window: u64) -> Option<Chunk> {
        let (&start, piece) = self.by_address.range(..=address).next_back()?;
        if address >= piece.end {
            return None;
        }
        let low = address - address % window;
        let (from, to) = (start.max(low), piece.end.min(low.saturating_add(window)));
        Some(Chunk { address: from, length: to - from, offset: piece.offset + (from - start) })
    }

    /// The first pages in a row that are missing in the aligned window of `window` bytes around `address`.
    pub(super) fn within(&self, address: u64, window: u64) -> Option<Chunk> {
        let low = address - address % window;
        let before = self.by_address.range(..low).next_back().filter(|(_, piece)| piece.end > low);
        let (&start, piece) = before.or_else(|| self.by_address.range(low..low.saturating_add(window)).next())?;
        let (from, to) = (start.max(low), piece.end.min(low.saturating_add(window)));
        Some(Chunk { address: from, length: to - from, offset: piece.offset + (from - start) })
    }

    /// These addresses lack nothing any more: they were put, or what was there is gone.
    pub(super) fn remove(&mut self, range: Range<u64>) {
        self.take(range);
    }

    /// `length` bytes moved from `from` to `to`, as mremap does it.
    ///
    /// What is missing at the new place already stays: the kernel says that the old content of a place is unmapped
    /// before it says that something moved there, and kernels before 6.17 overstate the length of a move that shrinks.
    pub(super) fn remap(&mut self, from: u64, to: u64, length: u64) {
        for piece in self.take(from..from.saturating_add(length)) {
            let moved = Chunk { address: piece.address.wrapping_sub(from).wrapping_add(to), ..piece };
            for chunk in self.free_parts(moved) {
                self.insert(chunk);
            }
        }
    }

    fn insert(&mut self, chunk: Chunk) {
        self.by_address.insert(chunk.address, Piece { end: chunk.address + chunk.length, offset: chunk.offset });
        self.by_offset.insert(chunk.offset, chunk.address);
    }

    /// Takes out what is in `range`, in pieces.
    fn take(&mut self, range: Range<u64>) -> Vec<Chunk> {
        let from = match self.by_address.range(..range.start).next_back() {
            Some((&start, piece)) if piece.end > range.start => start,
            _ => range.start,
        };
        if from >= range.end {
            return Vec::new();
        }
        let touched: Vec<u64> = self.by_address.range(from..range.end).map(|(&start, _)| start).collect();
        let mut taken = Vec::with_capacity(touched.len());
        for start in touched {
            let Some(piece) = self.by_address.remove(&start) else { continue };
            self.by_offset.remove(&piece.offset);
            let whole = Chunk { address: start, length: piece.end - start, offset: piece.offset };
            let left = range.start.saturating_sub(start);
            let inside = Chunk { length: piece.end.min(range.end) - start.max(range.start), ..whole.after(left) };
            let right = whole.after(left + inside.length);
            for kept in [Chunk { length: left, ..whole }, right] {
                if kept.length > 0 {
                    self.insert(kept);
                }
            }
            taken.push(inside);
        }
        taken
    }

    /// The parts of `chunk` whose addresses lack nothing yet.
    fn free_parts(&self, chunk: Chunk) -> Vec<Chunk> {
        let mut parts = Vec::new();
        let mut rest = chunk;
        while rest.length > 0 {
            let end = rest.address + rest.length;
            let covering =
                self.by_address.range(..=rest.address).next_back().filter(|(_, piece)| piece.end > rest.address);
            if let Some((_, piece)) = covering {
                rest = rest.after(piece.end - rest.address);
                continue;
            }
            let next = self.by_address.range(rest.address..end).next().map_or(end, |(&start, _)| start);
            parts.push(Chunk { length: next - rest.address, ..rest });
            rest = rest.after(next - rest.address);
        }
        parts
    }
}

#[cfg(test)]
#[path = "missing_tests.rs"]
mod tests;
