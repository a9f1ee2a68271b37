//! The list: memory that its writer shares with this process.
//!
//! Words of 64 bits in the machine's order: how far the ranges have come ([`TO_COME`], [`HERE`], or nothing is asked for), the
//! number of objects, the number of ranges, the highest id of a process whose ranges are there; from [`OBJECTS_AT`] on device and inode of each object, from [`RANGES_AT`] on process,
//! first address and end of each range, by process and address. Objects are there before the dump is asked for; the ranges may
//! come while it is under way, one process after the other.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Length of the list, bytes. A file of another length is none.
const LENGTH: usize = 1 << 20;
const WORDS: usize = LENGTH / size_of::<u64>();
const OBJECTS_AT: usize = 4;
const MOST_OBJECTS: usize = 4095;
const RANGES_AT: usize = OBJECTS_AT + 2 * MOST_OBJECTS;
const MOST_RANGES: usize = (WORDS - RANGES_AT) / 3;

/// Ranges will come.
const TO_COME: u64 = 1;
/// All ranges are here.
const HERE: u64 = 2;

/// How often it is looked for ranges that are to come, and how long. Without them, everything is dumped.
const LOOK: Duration = Duration::from_micros(20);
const LOOKS: u32 = 50_000;

/// Objects by device and inode, and ranges by process.
pub(crate) struct List {
    words: &'static [AtomicU64; WORDS],
    /// Ranges were waited for in vain.
    given_up: AtomicBool,
}

/// Ranges of one process.
#[derive(Clone, Copy)]
pub(crate) struct Ranges {
    words: &'static [AtomicU64],
}

impl List {
    /// The list in `descriptor`, which is closed then; none where it holds something else.
    pub(crate) fn mapped(descriptor: c_int) -> Option<Self> {
        // As long as the file, whole words, never unmapped, and changed under atomics only.
        let memory = map(descriptor, LENGTH)?;
        // SAFETY: of this length and alignment, for the rest of the program.
        Some(Self { words: unsafe { &*memory.cast() }, given_up: AtomicBool::new(false) })
    }

    /// Whether an object is left out.
    pub(crate) fn has(&self, device: u64, inode: u64) -> bool {
        let objects = &self.words[OBJECTS_AT..RANGES_AT];
        let pairs = objects.chunks_exact(2).take(count(&self.words[1]));
        pairs
            .into_iter()
            .any(|pair| pair[0].load(Ordering::Relaxed) == device && pair[1].load(Ordering::Relaxed) == inode)
    }

    /// Whether there are ranges, or there will be.
    pub(crate) fn withholds_memory(&self) -> bool {
        self.words[0].load(Ordering::Relaxed) != 0
    }

    /// What is left out of `process`. Waits until it is known; nothing is left out any more once that was in vain.
    pub(crate) fn memory(&self, process: u64) -> Ranges {
        let words = 3 * if self.is_known(process) { count(&self.words[2]).min(MOST_RANGES) } else { 0 };
        let all = Ranges { words: &self.words[RANGES_AT..RANGES_AT + words] };
        let begin = all.first(|range| range.0 >= process);
        let end = all.first(|range| range.0 > process);
        Ranges { words: &all.words[3 * begin..3 * end] }
    }

    /// Whether the ranges of `process` are here, and the dump is to leave them out.
    fn is_known(&self, process: u64) -> bool {
        if self.given_up.load(Ordering::Relaxed) {
            return false;
        }
        let told = || match self.words[0].load(Ordering::Acquire) {
            TO_COME if self.words[3].load(Ordering::Acquire) < process => None,
            state => Some(matches!(state, TO_COME | HERE)),
        };
        let looks = (0..LOOKS).find_map(|_| {
            let told = told();
            if told.is_none() {
                std::thread::sleep(LOOK);
            }
            told
        });
        looks.unwrap_or_else(|| {
            self.given_up.store(true, Ordering::Relaxed);
            false
        })
    }
}

impl Ranges {
    #[cfg(test)]
    pub(crate) fn of(words: &'static [AtomicU64]) -> Self {
        Self { words }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The first range that ends after `address`: its first address and its end.
    pub(crate) fn after(&self, address: u64) -> Option<(u64, u64)> {
        let number = self.first(|range| range.2 > address);
        (number < self.words.len() / 3).then(|| self.number(number)).map(|(_, start, end)| (start, end))
    }

    /// Number of the first range for which `holds`, which it does for all that follow.
    fn first(&self, holds: impl Fn((u64, u64, u64)) -> bool) -> usize {
        let (mut low, mut high) = (0, self.words.len() / 3);
        while low < high {
            let middle = low.midpoint(high);
            if holds(self.number(middle)) { high = middle } else { low = middle + 1 }
        }
        low
    }

    fn number(&self, number: usize) -> (u64, u64, u64) {
        let word = |at: usize| self.words[3 * number + at].load(Ordering::Relaxed);
        (word(0), word(1), word(2))
    }
}

/// Maps the file in `descriptor`, which is closed then, if it has `length` bytes.
pub(crate) fn map(descriptor: c_int, length: usize) -> Option<*const c_void> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `stat` is read only where the kernel has written it. A new mapping at an address that the kernel chooses; the
    // descriptor was handed over to be used here.
    unsafe {
        if libc::fstat(descriptor, stat.as_mut_ptr()) != 0 || stat.assume_init().st_size != length as i64 {
            return None;
        }
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let memory = libc::mmap(std::ptr::null_mut(), length, read, shared, descriptor, 0);
        libc::close(descriptor);
        (memory != libc::MAP_FAILED).then_some(memory.cast_const())
    }
}

fn count(word: &AtomicU64) -> usize {
    usize::try_from(word.load(Ordering::Acquire)).unwrap_or(usize::MAX)
}
