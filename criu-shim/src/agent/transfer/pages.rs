//! Pages of one process as a stream of bytes: what a [`Part::Memory`](super::message::Part::Memory) is on the wire.
//!
//! A sequence of records, each a header of 16 bytes (address, 8 bytes; number of pages, 4 bytes; kind, 1 byte; three
//! bytes of zero; big-endian) and, for kind 0, the pages themselves. Kind 1 stands for pages that hold nothing but zeros. A
//! record has 1 to [`MAX_PAGES`] pages. What comes later in a stream, or in a later one, replaces what came before it.

use std::ops::Range;
use thiserror::Error;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Most pages of one record.
pub const MAX_PAGES: usize = 64;
/// Bytes of a record's header.
pub const HEADER: usize = 16;
const DATA: u8 = 0;
const ZEROS: u8 = 1;
/// The first address that no process has. Source: x86-64's five-level paging, the widest there is.
const ADDRESSES: u64 = 1 << 57;

/// Why a stream of pages can't be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PagesError {
    /// Not what a source sends.
    #[error("a record of pages at {address:#x} with {pages} pages of kind {kind}")]
    Record {
        /// Its address.
        address: u64,
        /// Its number of pages.
        pages: u32,
        /// Its kind.
        kind: u8,
    },
    /// It ended inside a record.
    #[error("the pages end inside a record")]
    Truncated,
}

/// Makes records of the pages that lie in `buffer` behind room for a header ([`HEADER`] bytes), and returns how many bytes of
/// `buffer` they take: fewer than before where there is nothing but zeros in some of them, or they are left out.
///
/// `pages` is their number, at most [`MAX_PAGES`]; none makes no record. `left_out` are those that make none, the first the
/// lowest bit.
pub fn encode(buffer: &mut [u8], address: u64, pages: usize, left_out: u64) -> usize {
    let mut end = 0;
    for run in runs(&buffer[HEADER..HEADER + pages * PAGE], left_out) {
        let begin = address + run.pages.start as u64 * PAGE as u64;
        let (from, length) = (HEADER + run.pages.start * PAGE, run.pages.len() * PAGE);
        // Never ahead of what is still to be moved: a page before it that is not there leaves more room than a header takes.
        let header = &mut buffer[end..end + HEADER];
        header[..8].copy_from_slice(&begin.to_be_bytes());
        header[8..12].copy_from_slice(&(run.pages.len() as u32).to_be_bytes());
        header[12..].copy_from_slice(&[if run.zeros { ZEROS } else { DATA }, 0, 0, 0]);
        end += HEADER;
        if !run.zeros {
            if end != from {
                buffer.copy_within(from..from + length, end);
            }
            end += length;
        }
    }
    end
}

struct Run {
    pages: Range<usize>,
    zeros: bool,
}

/// Neighbours that are alike, without those that are left out.
fn runs(pages: &[u8], left_out: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, page) in pages.chunks_exact(PAGE).enumerate().filter(|(index, _)| left_out >> index & 1 == 0) {
        let zeros = is_zero(page);
        match runs.last_mut() {
            Some(run) if run.zeros == zeros && run.pages.end == index => run.pages.end = index + 1,
            _ => runs.push(Run { pages: index..index + 1, zeros }),
        }
    }
    runs
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ early on; the rest compiles to wide compares.
    page[..16].iter().all(|byte| *byte == 0) && page == [0; PAGE]
}

/// Where pages go.
pub trait Sink {
    /// Why it can't take them.
    type Error;

    /// Takes whole pages.
    ///
    /// # Errors
    /// Where they can't be kept.
    fn pages(&mut self, address: u64, pages: &[u8]) -> Result<(), Self::Error>;

    /// Takes `pages` pages of zeros.
    ///
    /// # Errors
    /// Where that can't be kept.
    fn zeros(&mut self, address: u64, pages: usize) -> Result<(), Self::Error>;
}

/// Reads a stream in whatever pieces it comes. It keeps at most one record.
#[derive(Debug, Default)]
pub struct Decoder {
    kept: Vec<u8>,
}

/// Why decoding did not go on.
#[derive(Debug)]
pub enum DecodeError<E> {
    /// The stream.
    Stream(PagesError),
    /// The sink.
    Sink(E),
}

impl Decoder {
    /// Takes the next piece.
    ///
    /// # Errors
    /// Where the stream is none, or the sink fails. Nothing more may be given to it then.
    pub fn take<S: Sink>(&mut self, mut piece: &[u8], sink: &mut S) -> Result<(), DecodeError<S::Error>> {
        while !self.kept.is_empty() {
            let missing = length_of(&self.kept).map_err(DecodeError::Stream)? - self.kept.len();
            if missing == 0 {
                give(&self.kept, sink)?;
                self.kept.clear();
                break;
            }
            if piece.is_empty() {
                return Ok(());
            }
            let (more, rest) = piece.split_at(missing.min(piece.len()));
            self.kept.extend_from_slice(more);
            piece = rest;
        }
        // What is whole in a piece need not be copied.
        while !piece.is_empty() {
            let length = length_of(piece).map_err(DecodeError::Stream)?;
            let Some((record, rest)) = piece.split_at_checked(length) else { break };
            give(record, sink)?;
            piece = rest;
        }
        self.kept.extend_from_slice(piece);
        Ok(())
    }

    /// The stream is at its end.
    ///
    /// # Errors
    /// Where that is in the middle of a record.
    pub fn end(self) -> Result<(), PagesError> {
        if self.kept.is_empty() { Ok(()) } else { Err(PagesError::Truncated) }
    }
}

/// Bytes of the record that begins here, as far as that can be told: those of its header where that is cut off.
fn length_of(record: &[u8]) -> Result<usize, PagesError> {
    let Some(header) = record.first_chunk::<HEADER>() else { return Ok(HEADER) };
    let (_, pages, zeros) = header_of(header)?;
    Ok(if zeros { HEADER } else { HEADER + pages * PAGE })
}

/// Gives a whole record to the sink.
fn give<S: Sink>(record: &[u8], sink: &mut S) -> Result<(), DecodeError<S::Error>> {
    let Some((header, bytes)) = record.split_first_chunk::<HEADER>() else { return Ok(()) };
    let (address, pages, zeros) = header_of(header).map_err(DecodeError::Stream)?;
    let given = if zeros { sink.zeros(address, pages) } else { sink.pages(address, bytes) };
    given.map_err(DecodeError::Sink)
}

fn header_of(header: &[u8; HEADER]) -> Result<(u64, usize, bool), PagesError> {
    let [a, b, c, d, e, f, g, h, p, q, r, s, kind, ..] = *header;
    let address = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let pages = u32::from_be_bytes([p, q, r, s]);
    let fits = address.is_multiple_of(PAGE as u64) && address < ADDRESSES - (MAX_PAGES * PAGE) as u64;
    let known = matches!(kind, DATA | ZEROS) && header[13..] == [0; 3];
    if fits && known && (1..=MAX_PAGES as u32).contains(&pages) {
        Ok((address, pages as usize, kind == ZEROS))
    } else {
        Err(PagesError::Record { address, pages, kind })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::convert::Infallible;

    /// Address of a page to its first byte; all bytes of a page are the same here.
    #[derive(Default)]
    pub(crate) struct Memory(pub(crate) BTreeMap<u64, u8>);

    impl Sink for Memory {
        type Error = Infallible;

        fn pages(&mut self, address: u64, pages: &[u8]) -> Result<(), Infallible> {
            for (index, page) in pages.chunks(PAGE).enumerate() {
                assert!(page.iter().all(|byte| *byte == page[0]), "pages are mixed up");
                self.0.insert(address + (index * PAGE) as u64, page[0]);
            }
            Ok(())
        }

        fn zeros(&mut self, address: u64, pages: usize) -> Result<(), Infallible> {
            for index in 0..pages {
                self.0.insert(address + (index * PAGE) as u64, 0);
            }
            Ok(())
        }
    }

    /// Appends what becomes of `pages` to a stream.
    fn append(stream: &mut Vec<u8>, address: u64, pages: &[u8], left_out: u64) {
        let mut buffer = [&[0; HEADER], pages].concat();
        let length = encode(&mut buffer, address, pages.len() / PAGE, left_out);
        stream.extend_from_slice(&buffer[..length]);
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_out_in_whatever_pieces_it_crosses(
            records in prop::collection::vec((0..64u64, prop::collection::vec(0..3u8, 0..=MAX_PAGES), any::<u64>()), 0..6),
            piece in 1..10_000usize,
        ) {
            let (mut stream, mut expected) = (Vec::new(), Memory::default());
            for (place, pages, left_out) in &records {
                let address = place * PAGE as u64;
                let bytes: Vec<u8> = pages.iter().flat_map(|byte| [*byte; PAGE]).collect();
                append(&mut stream, address, &bytes, *left_out);
                for (index, page) in bytes.chunks(PAGE).enumerate().filter(|(index, _)| left_out >> index & 1 == 0) {
                    expected.pages(address + (index * PAGE) as u64, page).expect("memory");
                }
            }
            let (mut decoder, mut found) = (Decoder::default(), Memory::default());
            for piece in stream.chunks(piece) {
                decoder.take(piece, &mut found).expect("a stream");
            }
            decoder.end().expect("the end");
            prop_assert_eq!(found.0, expected.0);
        }

        #[test]
        fn garbage_is_refused_or_waits_for_more_and_never_panics(garbage: Vec<u8>) {
            let mut decoder = Decoder::default();
            let taken = decoder.take(&garbage, &mut Memory::default());
            prop_assert!(taken.is_err() || garbage.is_empty() || decoder.end().is_err() || garbage.len() >= HEADER);
        }
    }

    #[test]
    fn zeros_take_a_header_only() {
        let mut stream = Vec::new();
        append(&mut stream, 0x1000, &[0; 8 * PAGE], 0);
        assert_eq!(stream.len(), HEADER);
    }

    #[test]
    fn a_page_outside_of_any_address_space_is_refused() {
        for (address, pages, kind) in [(1, 1, 0), (1 << 57, 1, 0), (!4095, 1, 1), (0, 0, 0), (0, 65, 0), (0, 1, 2)] {
            let mut stream = Vec::from(u64::to_be_bytes(address));
            stream.extend(u32::to_be_bytes(pages));
            stream.extend([kind, 0, 0, 0]);
            let taken = Decoder::default().take(&stream, &mut Memory::default());
            assert!(
                matches!(taken, Err(DecodeError::Stream(PagesError::Record { .. }))),
                "{address:#x} {pages} {kind}"
            );
        }
    }

    #[test]
    fn an_end_inside_a_record_is_noticed() {
        let mut stream = Vec::new();
        append(&mut stream, 0, &[1; PAGE], 0);
        let mut decoder = Decoder::default();
        decoder.take(&stream[..stream.len() - 1], &mut Memory::default()).expect("so far");
        assert_eq!(decoder.end(), Err(PagesError::Truncated));
    }
}
