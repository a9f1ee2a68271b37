//! `/proc/PID/smaps` as the agent has read it while CRIU was about to begin.
//!
//! What costs time in it are walks through all page tables, 10 ms for 1 GiB, for sums that CRIU does not read. The agent walks while
//! CRIU does something else, and puts what CRIU does read into a memfd: words of 64 bits in the machine's order, how far the texts
//! have come ([`TO_COME`], 2 for "all are here", or nothing is asked for) and their number; from [`ENTRIES_AT`] on process, offset in bytes and
//! length of each; and the texts, in any order behind. A text is there before its entry is counted.

use std::ffi::{CStr, c_int, c_uint};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Length of the memfd, bytes, most of which are never touched. A file of another length is none.
const LENGTH: usize = 64 << 20;
const ENTRIES_AT: usize = 2;
const MOST_ENTRIES: usize = 4096;

/// Texts will come.
const TO_COME: u64 = 1;

/// How often it is looked for a text that is to come, and how long. Without it, CRIU reads the file itself.
const LOOK: Duration = Duration::from_micros(20);
const LOOKS: u32 = 50_000;

/// The texts.
pub(crate) struct Mappings {
    words: &'static [AtomicU64; LENGTH / size_of::<u64>()],
}

impl Mappings {
    /// The texts in `descriptor`, which is closed then; none where it holds something else.
    pub(crate) fn mapped(descriptor: c_int) -> Option<Self> {
        // As long as the file, whole words, never unmapped, and changed by its writer before it is counted.
        super::list::map(descriptor, LENGTH).map(|memory| Self {
            // SAFETY: of this length and alignment, for the rest of the program.
            words: unsafe { &*memory.cast() },
        })
    }

    /// A descriptor from which the text of `process` is read; none where there is none, and none comes.
    pub(crate) fn open(&self, process: u64) -> Option<c_int> {
        let mut text = self.text(process);
        for _ in 0..LOOKS {
            if text.is_some() || self.words[0].load(Ordering::Acquire) != TO_COME {
                break;
            }
            std::thread::sleep(LOOK);
            text = self.text(process);
        }
        // What came between the look and the word that nothing more comes.
        copy(text.or_else(|| self.text(process))?)
    }

    /// The text of `process`, where it is here.
    pub(crate) fn text(&self, process: u64) -> Option<&[u8]> {
        let count = usize::try_from(self.words[1].load(Ordering::Acquire)).ok()?.min(MOST_ENTRIES);
        let entries = &self.words[ENTRIES_AT..ENTRIES_AT + 3 * count];
        let entry = entries.chunks_exact(3).find(|entry| entry[0].load(Ordering::Relaxed) == process)?;
        let word = |at: usize| usize::try_from(entry[at].load(Ordering::Relaxed)).ok();
        let (start, length) = (word(1)?, word(2)?);
        let end = start.checked_add(length).filter(|end| *end <= LENGTH)?;
        // SAFETY: within the mapping, and not written any more, because its entry is counted.
        Some(unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast::<u8>().add(start), end - start) })
    }
}

/// A descriptor of its own with `text`, at its beginning.
fn copy(text: &[u8]) -> Option<c_int> {
    const NAME: &CStr = c"smaps";
    let flags: c_uint = libc::MFD_CLOEXEC;
    // SAFETY: a C string; a new descriptor, that nobody else has; and memory of the length that is named.
    unsafe {
        let descriptor = libc::memfd_create(NAME.as_ptr(), flags);
        if descriptor < 0 {
            return None;
        }
        let mut written = 0;
        while written < text.len() {
            let rest = &text[written..];
            let more = libc::pwrite(descriptor, rest.as_ptr().cast(), rest.len(), written as i64);
            let Ok(more) = usize::try_from(more) else {
                libc::close(descriptor);
                return None;
            };
            written += more;
        }
        Some(descriptor)
    }
}
