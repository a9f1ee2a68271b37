//! One object of shared memory: what differs from what was sent, and reading it.

use crate::memory::Range;
use crate::memory::range::coalesce;
use crate::memory::sent::{GROUP, PAGE, Sent};
use rustix::fs::SeekFrom;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a group of pages.
const GROUP_BYTES: u64 = GROUP as u64 * PAGE;

/// How much is read at once, bytes: it is digested while it is in the processor's cache.
const CHUNK: usize = 256 << 10;

/// An object of shared memory, and what was sent of it.
///
/// # Guarantees
/// Whatever was written to it, by whomever and how: a page that is not what was read of it last is among
/// [`SharedObject::changed`].
#[derive(Debug)]
pub struct SharedObject {
    file: File,
    sent: Sent,
}

impl SharedObject {
    /// An object of which nothing was sent yet.
    ///
    /// # Errors
    /// Where no random number is to be had.
    pub fn new(file: File) -> io::Result<Self> {
        Ok(Self { file, sent: Sent::nothing()? })
    }

    /// Its length now, bytes.
    ///
    /// # Errors
    /// As of fstat(2).
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// The pages that must be sent, as offsets in the object, coalesced. `threads` compare.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn changed(&self, threads: usize) -> io::Result<Vec<Range>> {
        let size = self.size()?;
        let mut groups: BTreeSet<u64> = self.sent.groups().collect();
        for range in self.data(size)? {
            groups.extend(range.start / GROUP_BYTES..range.end.div_ceil(GROUP_BYTES));
        }
        let groups: Vec<u64> = groups.into_iter().collect();
        let share = groups.len().div_ceil(threads.max(1)).max(1);
        let compared: Vec<io::Result<Vec<Range>>> = std::thread::scope(|scope| {
            let (first, others) = groups.split_at(share.min(groups.len()));
            let others: Vec<_> = others.chunks(share).map(|part| scope.spawn(|| self.compare(part, size))).collect();
            let ended = || io::Error::other("a thread that compares has ended unexpectedly");
            let first = self.compare(first, size);
            let others = others.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(ended())));
            std::iter::once(first).chain(others).collect()
        });
        let mut changed = Vec::new();
        for part in compared {
            changed.extend(part?);
        }
        Ok(coalesce(changed))
    }

    /// Reads the whole pages from `start` on into `buffer`, and takes them for sent. What is beyond the object's end is zeros.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn take(&mut self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read(start, buffer)?;
        for (page, bytes) in (start / PAGE..).zip(buffer.chunks(PAGE as usize)) {
            // Zeros that follow on nothing are nothing to send: there it is a hole, which reads as zeros.
            if self.sent.has(page) || !is_zero(bytes) {
                self.sent.note(page, bytes);
            }
        }
        Ok(())
    }

    /// Bytes of the object, in the order in which they were taken first. Pages that were zeros then are not among them.
    pub fn order(&self) -> &[Range] {
        self.sent.order()
    }

    fn compare(&self, groups: &[u64], size: u64) -> io::Result<Vec<Range>> {
        let mut changed = Vec::new();
        let mut buffer = vec![0; CHUNK];
        for group in groups {
            let (start, end) = (group * GROUP_BYTES, (group + 1) * GROUP_BYTES);
            // Beyond the end there may be pages that were sent when it was longer. They read as zeros.
            let end = end.min(size.next_multiple_of(PAGE).max(start + PAGE));
            for start in (start..end).step_by(CHUNK) {
                let bytes = &mut buffer[..CHUNK.min((end - start) as usize)];
                self.read(start, bytes)?;
                for (page, bytes) in (start / PAGE..).zip(bytes.chunks(PAGE as usize)) {
                    let same = if self.sent.has(page) { self.sent.is(page, bytes) } else { is_zero(bytes) };
                    if !same {
                        changed.push(Range { start: page * PAGE, end: (page + 1) * PAGE });
                    }
                }
            }
        }
        Ok(changed)
    }

    fn read(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            match self.file.read_at(&mut buffer[done..], start + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buffer[done..].fill(0);
        Ok(())
    }

    /// Where the object has pages. Reading elsewhere would find zeros.
    fn data(&self, size: u64) -> io::Result<Vec<Range>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            at = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
                Ok(end) => end,
                // It has become shorter meanwhile.
                Err(rustix::io::Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            ranges.push(Range { start, end: at });
        }
        Ok(ranges)
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Most pages differ early on.
    page.iter().take(16).all(|byte| *byte == 0) && page.iter().all(|byte| *byte == 0)
}
