//! The pages of one process as the stream that crosses, read while the process runs or is frozen.

use super::followed::Written;
use super::sent::SentPages;
use crate::agent::transfer::pages::{Crossing, HEADER, MAX_PAGES, PAGE, Place, encode, is_zero};
use crate::memory::{MemoryReader, Piece, Range, ReadError, Sharing};
use std::io::{Error, Read};
use std::vec::IntoIter;

/// The least room that pages can be read into.
const LEAST: usize = HEADER + PAGE;

/// Reads the pages of `ranges` from a process, and encodes them.
///
/// While the process runs, what is not mapped any more when it is read is left out: the process has changed its mind, and
/// whatever is mapped there later is new and will be sent as such. The same goes for all that is left of a process that has
/// ended. Of a frozen process every page must be read: the target would keep an older one in its place.
#[derive(Debug)]
pub struct PageReader {
    frozen: bool,
    image_pid: i32,
    memory: MemoryReader,
    sharing: Sharing,
    ranges: IntoIter<Range>,
    rest: Range,
    /// What tells which pages the target has as they are, and which are like others.
    sent: SentPages,
    /// The former is asked.
    compares: bool,
    /// A page that did not fit into what it was asked for, and how much of it was given.
    page: Vec<u8>,
    given: usize,
}

impl PageReader {
    /// For what one process has written. What the target has is left out where that is worth its time.
    ///
    /// # Errors
    /// Where its memory may not be read, or it has ended.
    pub fn open(written: Written, frozen: bool) -> Result<Self, ReadError> {
        let Written { pid, image_pid, ranges, noted, sent } = written;
        // Of a process that is compared, only what differs comes here.
        let compares = noted.is_none() && sent.begin();
        Ok(Self {
            frozen,
            image_pid,
            memory: MemoryReader::open(pid)?.noting(noted),
            sharing: Sharing::open(pid)?,
            ranges: ranges.into_iter(),
            rest: Range { start: 0, end: 0 },
            sent,
            compares,
            page: Vec::new(),
            given: 0,
        })
    }

    /// How these pages cross, which are sent now. `read` are their addresses.
    fn crossings(&self, read: Range, pages: &[u8]) -> Vec<Crossing> {
        let (alike, shared) = (self.sent.alike(), self.sharing.shared(read));
        let (mut digests, mut known) = (Vec::new(), 0);
        if self.compares {
            digests = pages.chunks_exact(PAGE).map(|page| alike.digest(page)).collect();
            known = self.sent.known(read.start, &digests);
        }
        let mut listed = alike.listed();
        let crossing = |(index, page): (usize, &[u8])| {
            if known >> index & 1 == 1 {
                return Crossing::LeftOut;
            }
            let place = Place { pid: self.image_pid, address: read.start + (index * PAGE) as u64 };
            let looked_at = shared >> index & 1 == 1 && !is_zero(page);
            let digest = looked_at.then(|| digests.get(index).copied().unwrap_or_else(|| alike.digest(page)));
            listed.send(place, digest).map_or(Crossing::Content, Crossing::Copy)
        };
        pages.chunks_exact(PAGE).enumerate().map(crossing).collect()
    }

    /// Reads the next pages to where they are wanted, and encodes them there: at least [`LEAST`] bytes. Returns how many of
    /// them are filled, none at the end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let pages = ((buffer.len() - HEADER) / PAGE).min(MAX_PAGES);
        loop {
            match self.memory.read_next(&mut self.rest, &mut buffer[HEADER..HEADER + pages * PAGE]) {
                Ok(Some(Piece::Read(read))) => {
                    let pages = usize::try_from(read.len()).unwrap_or_default() / PAGE;
                    if pages == 0 {
                        return Err(Error::other(format!("a part of a page was read at {:#x}", read.start)));
                    }
                    let read_pages = &buffer[HEADER..HEADER + pages * PAGE];
                    let crossings = self.crossings(read, read_pages);
                    match encode(buffer, read.start, &crossings) {
                        0 => {}
                        length => return Ok(length),
                    }
                }
                Ok(Some(Piece::Unreadable(range))) if self.frozen => {
                    return Err(Error::other(format!(
                        "a page of a frozen process can't be read at {:#x}",
                        range.start
                    )));
                }
                Ok(Some(Piece::Unreadable(_))) => {}
                Ok(None) => match self.ranges.next() {
                    Some(range) => self.rest = range,
                    None => return Ok(0),
                },
                Err(ReadError::Gone { .. }) if !self.frozen => return Ok(0),
                Err(error) => return Err(Error::other(error)),
            }
        }
    }
}

impl Read for PageReader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.given == self.page.len() {
            if buffer.len() >= LEAST {
                return self.fill(buffer);
            }
            let mut page = vec![0; LEAST];
            let length = self.fill(&mut page)?;
            page.truncate(length);
            (self.page, self.given) = (page, 0);
        }
        let length = buffer.len().min(self.page.len() - self.given);
        buffer[..length].copy_from_slice(&self.page[self.given..self.given + length]);
        self.given += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::source::precopy::Alike;
    use crate::agent::transfer::pages::Decoder;
    use crate::agent::transfer::pages::tests::Memory;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    /// All of `ranges` of this process.
    fn own(ranges: Vec<Range>, sent: SentPages) -> Written {
        Written { pid: std::process::id().cast_signed(), image_pid: 1, ranges, noted: None, sent }
    }

    #[test]
    fn what_is_mapped_is_read_and_what_is_not_is_passed_over_unless_the_process_is_frozen() {
        const PAGES: usize = 3 * MAX_PAGES;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of this test's own, written and unmapped within its bounds.
        let base = unsafe {
            let base =
                mmap_anonymous(std::ptr::null_mut(), PAGES * PAGE, protection, MapFlags::PRIVATE).expect("memory");
            for page in 0..PAGES {
                base.cast::<u8>().add(page * PAGE).write_bytes((page % 251) as u8, PAGE);
            }
            munmap(base.byte_add(5 * PAGE), 2 * PAGE).expect("a hole");
            base
        };
        let begin = base as u64;
        let ranges = vec![Range { start: begin, end: begin + (PAGES * PAGE) as u64 }];
        let mut stream = Vec::new();
        let alike = Alike::new().expect("a key");
        let mut reader = PageReader::open(own(ranges.clone(), alike.process()), false).expect("this process");
        reader.read_to_end(&mut stream).expect("its memory");
        let mut frozen = PageReader::open(own(ranges, alike.process()), true).expect("this process");
        assert!(frozen.read_to_end(&mut Vec::new()).is_err(), "a page was passed over");
        // SAFETY: the same mapping, of which nothing is used any more.
        unsafe { munmap(base, PAGES * PAGE).expect("unmap") };

        let (mut decoder, mut memory) = (Decoder::default(), Memory::default());
        decoder.take(&stream, &mut memory).expect("a stream");
        decoder.end().expect("its end");
        let page = |index: usize| memory.0.get(&(begin + (index * PAGE) as u64)).copied();
        assert_eq!((page(4), page(5), page(6), page(7)), (Some(4), None, None, Some(7)));
        assert_eq!(memory.0.len(), PAGES - 2);
        assert!((0..PAGES).all(|index| page(index).is_none_or(|byte| byte == (index % 251) as u8)));
    }

    #[test]
    fn what_is_written_again_with_the_same_content_crosses_no_more() {
        const PAGES: usize = 2 * MAX_PAGES;
        let mut area = vec![0_u8; (PAGES + 1) * PAGE];
        let begin = (area.as_ptr() as u64).next_multiple_of(PAGE as u64);
        let first = (begin - area.as_ptr() as u64) as usize;
        let sent = Alike::new().expect("a key").process();
        let round = |area: &[u8]| {
            let pages = area.len() / PAGE - 1;
            let ranges = vec![Range { start: begin, end: begin + (pages * PAGE) as u64 }];
            let mut stream = Vec::new();
            let mut reader = PageReader::open(own(ranges, sent.clone()), true).expect("this process");
            reader.read_to_end(&mut stream).expect("its memory");
            let (mut decoder, mut memory) = (Decoder::default(), Memory::default());
            decoder.take(&stream, &mut memory).expect("a stream");
            decoder.end().expect("its end");
            memory.0
        };
        for page in 0..PAGES {
            area[first + page * PAGE..][..PAGE].fill((page % 7) as u8);
        }
        assert_eq!(round(&area).len(), PAGES);
        assert_eq!(round(&area).len(), PAGES, "of what was sent only once nothing is known");
        area[first + 5 * PAGE..][..PAGE].fill(99);
        area[first + 9 * PAGE..][..PAGE].fill(0);
        let changed = [(begin + 5 * PAGE as u64, 99), (begin + 9 * PAGE as u64, 0)];
        assert_eq!(round(&area), changed.into());
        assert!(round(&area).is_empty());
    }
}
