//! Pages of one process as a stream of bytes: what a [`Part::Memory`](super::message::Part::Memory) is on the wire.
//!
//! A sequence of records, each a header of 16 bytes (address, 8 bytes; number of pages, 4 bytes; kind, 1 byte; three
//! bytes of zero; big-endian) and, for kind 0, the pages themselves. Kind 1 stands for pages that hold nothing but zeros. Kind 2
//! stands for pages that hold what others hold that have come already, and has their place behind its header (address, 8
//! bytes; process, 4 bytes; four bytes of zero). A record has 1 to [`MAX_PAGES`] pages. What comes later in a stream, or in a
//! later one, replaces what came before it; a place means what is there when the record is reached.

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
const COPIES: u8 = 2;
/// Bytes behind the header of pages that are copies.
const FROM: usize = 16;
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

/// A page of one of the processes that move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The process, as the images name it.
    pub pid: i32,
    /// Address of the page.
    pub address: u64,
}

/// How a page crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// Its content does, in short where that is nothing but zeros.
    Content,
    /// As the place of another page, which the target has and which holds the same.
    Copy(Place),
    /// Not at all.
    LeftOut,
}

/// Makes records of the pages that lie in `buffer` behind room for a header ([`HEADER`] bytes), and returns how many bytes of
/// `buffer` they take: fewer than before where there is nothing but zeros in some of them, or they cross in another way.
///
/// `crossings` has one element for each page, at most [`MAX_PAGES`]; none makes no record.
pub fn encode(buffer: &mut [u8], address: u64, crossings: &[Crossing]) -> usize {
    let mut end = 0;
    for Run { pages, kind } in runs(&buffer[HEADER..HEADER + crossings.len() * PAGE], crossings) {
        let begin = address + pages.start as u64 * PAGE as u64;
        let (from, length) = (HEADER + pages.start * PAGE, pages.len() * PAGE);
        // Never ahead of what is still to be moved: a page before it that is not there leaves more room than this takes.
        let header = &mut buffer[end..end + HEADER];
        header[..8].copy_from_slice(&begin.to_be_bytes());
        header[8..12].copy_from_slice(&(pages.len() as u32).to_be_bytes());
        header[12..].copy_from_slice(&[kind.number(), 0, 0, 0]);
        end += HEADER;
        match kind {
            Kind::Data => {
                if end != from {
                    buffer.copy_within(from..from + length, end);
                }
                end += length;
            }
            Kind::Zeros => {}
            Kind::Copies(place) => {
                let behind = &mut buffer[end..end + FROM];
                behind[..8].copy_from_slice(&place.address.to_be_bytes());
                behind[8..12].copy_from_slice(&place.pid.to_be_bytes());
                behind[12..].fill(0);
                end += FROM;
            }
        }
    }
    end
}

/// What a record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Data,
    Zeros,
    /// Those from this place on.
    Copies(Place),
}

impl Kind {
    fn of(page: &[u8], crossing: Crossing) -> Option<Self> {
        match crossing {
            Crossing::Content if is_zero(page) => Some(Self::Zeros),
            Crossing::Content => Some(Self::Data),
            Crossing::Copy(place) => Some(Self::Copies(place)),
            Crossing::LeftOut => None,
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::Data => DATA,
            Self::Zeros => ZEROS,
            Self::Copies(_) => COPIES,
        }
    }

    /// What the page that is `pages` further on in the same record is.
    fn after(self, pages: usize) -> Self {
        match self {
            Self::Copies(Place { pid, address }) => {
                Self::Copies(Place { pid, address: address + (pages * PAGE) as u64 })
            }
            kind => kind,
        }
    }

    /// Bytes of a record of so many pages.
    fn length(self, pages: usize) -> usize {
        match self {
            Self::Data => HEADER + pages * PAGE,
            Self::Zeros => HEADER,
            Self::Copies(_) => HEADER + FROM,
        }
    }
}

struct Run {
    pages: Range<usize>,
    kind: Kind,
}

/// Neighbours that make one record, without those that are left out.
fn runs(pages: &[u8], crossings: &[Crossing]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, (page, crossing)) in pages.chunks_exact(PAGE).zip(crossings).enumerate() {
        let Some(kind) = Kind::of(page, *crossing) else { continue };
        match runs.last_mut() {
            Some(run) if run.pages.end == index && run.kind.after(run.pages.len()) == kind => run.pages.end = index + 1,
            _ => runs.push(Run { pages: index..index + 1, kind }),
        }
    }
    runs
}

/// Whether a page holds nothing but zeros.
pub fn is_zero(page: &[u8]) -> bool {
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

    /// Takes `pages` pages that hold what those from `place` on hold now.
    ///
    /// # Errors
    /// Where those never came, or that can't be kept.
    fn copies(&mut self, address: u64, pages: usize, place: Place) -> Result<(), Self::Error>;
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
    let (_, pages, kind) = header_of(header, None)?;
    Ok(kind.length(pages))
}

/// Gives a whole record to the sink.
fn give<S: Sink>(record: &[u8], sink: &mut S) -> Result<(), DecodeError<S::Error>> {
    let Some((header, bytes)) = record.split_first_chunk::<HEADER>() else { return Ok(()) };
    let (address, pages, kind) = header_of(header, bytes.first_chunk()).map_err(DecodeError::Stream)?;
    let given = match kind {
        Kind::Data => sink.pages(address, bytes),
        Kind::Zeros => sink.zeros(address, pages),
        Kind::Copies(place) => sink.copies(address, pages, place),
    };
    given.map_err(DecodeError::Sink)
}

/// Address, number of pages, and what they are. The place of copies is that in `behind`, and nothing that counts without it.
fn header_of(header: &[u8; HEADER], behind: Option<&[u8; FROM]>) -> Result<(u64, usize, Kind), PagesError> {
    let [a, b, c, d, e, f, g, h, p, q, r, s, number, ..] = *header;
    let address = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let pages = u32::from_be_bytes([p, q, r, s]);
    let fits = |address: u64| address.is_multiple_of(PAGE as u64) && address < ADDRESSES - (MAX_PAGES * PAGE) as u64;
    let refused = PagesError::Record { address, pages, kind: number };
    if !fits(address) || header[13..] != [0; 3] || !(1..=MAX_PAGES as u32).contains(&pages) {
        return Err(refused);
    }
    let kind = match number {
        DATA => Kind::Data,
        ZEROS => Kind::Zeros,
        COPIES => {
            let [a, b, c, d, e, f, g, h, p, q, r, s, rest @ ..] = *behind.unwrap_or(&[0; FROM]);
            let address = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
            if !fits(address) || rest != [0; 4] {
                return Err(refused);
            }
            Kind::Copies(Place { pid: i32::from_be_bytes([p, q, r, s]), address })
        }
        _ => return Err(refused),
    };
    Ok((address, pages as usize, kind))
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

        /// Of one process only: a copy holds the number of the page that it was made of.
        fn copies(&mut self, address: u64, pages: usize, place: Place) -> Result<(), Infallible> {
            for index in 0..pages {
                let distance = (index * PAGE) as u64;
                self.0.insert(address + distance, copied(place.pid, place.address + distance));
            }
            Ok(())
        }
    }

    /// What stands for a page of another process.
    fn copied(pid: i32, address: u64) -> u8 {
        100 + ((pid as u64 + address / PAGE as u64) % 100) as u8
    }

    /// Appends what becomes of `pages` to a stream.
    fn append(stream: &mut Vec<u8>, address: u64, pages: &[u8], crossings: &[Crossing]) {
        let mut buffer = [&[0; HEADER], pages].concat();
        let length = encode(&mut buffer, address, crossings);
        stream.extend_from_slice(&buffer[..length]);
    }

    fn crossing() -> impl Strategy<Value = Crossing> {
        prop_oneof![
            3 => Just(Crossing::Content),
            2 => (0..2, 0..3_u64).prop_map(|(pid, page)| Crossing::Copy(Place { pid, address: page * PAGE as u64 })),
            1 => Just(Crossing::LeftOut),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_comes_out_in_whatever_pieces_it_crosses(
            records in prop::collection::vec((0..64u64, prop::collection::vec((0..3u8, crossing()), 0..=MAX_PAGES)), 0..6),
            piece in 1..10_000usize,
        ) {
            let (mut stream, mut expected) = (Vec::new(), Memory::default());
            for (place, pages) in &records {
                let address = place * PAGE as u64;
                let bytes: Vec<u8> = pages.iter().flat_map(|(byte, _)| [*byte; PAGE]).collect();
                let crossings: Vec<Crossing> = pages.iter().map(|(_, crossing)| *crossing).collect();
                append(&mut stream, address, &bytes, &crossings);
                for (index, (byte, crossing)) in pages.iter().enumerate() {
                    let content = match crossing {
                        Crossing::Content => *byte,
                        Crossing::Copy(place) => copied(place.pid, place.address),
                        Crossing::LeftOut => continue,
                    };
                    expected.0.insert(address + (index * PAGE) as u64, content);
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
        append(&mut stream, 0x1000, &[0; 8 * PAGE], &[Crossing::Content; 8]);
        assert_eq!(stream.len(), HEADER);
    }

    #[test]
    fn neighbours_that_are_copies_of_neighbours_are_one_record() {
        let place = |page: u64| Crossing::Copy(Place { pid: 7, address: page * PAGE as u64 });
        let mut stream = Vec::new();
        append(&mut stream, 0x1000, &[1; 4 * PAGE], &[place(3), place(4), place(5), place(3)]);
        assert_eq!(stream.len(), 2 * (HEADER + FROM));
    }

    #[test]
    fn a_copy_of_what_no_process_has_is_refused() {
        for (address, rest) in [(1, 0), (ADDRESSES, 0), (0x1000, 1)] {
            let place = Crossing::Copy(Place { pid: 7, address });
            let mut stream = Vec::new();
            append(&mut stream, 0x1000, &[1; PAGE], &[place]);
            stream[HEADER + FROM - 1] = rest;
            let taken = Decoder::default().take(&stream, &mut Memory::default());
            assert!(matches!(taken, Err(DecodeError::Stream(PagesError::Record { kind: COPIES, .. }))), "{address:#x}");
        }
    }

    #[test]
    fn a_page_outside_of_any_address_space_is_refused() {
        for (address, pages, kind) in [(1, 1, 0), (1 << 57, 1, 0), (!4095, 1, 1), (0, 0, 0), (0, 65, 0), (0, 1, 3)] {
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
        append(&mut stream, 0, &[1; PAGE], &[Crossing::Content]);
        let mut decoder = Decoder::default();
        decoder.take(&stream[..stream.len() - 1], &mut Memory::default()).expect("so far");
        assert_eq!(decoder.end(), Err(PagesError::Truncated));
    }
}
