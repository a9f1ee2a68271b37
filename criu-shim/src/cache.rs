//! The kernel's cache of files.

use rustix::fs::{Advice, fadvise};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// As much as the kernel reads by one such request where nobody has set less, bytes: it takes no more than the disk's read-ahead at a
/// time (`force_page_cache_ra` of its `mm/readahead.c`).
const AT_ONCE: u64 = 128 << 10;

/// Reading ahead that is wanted. Dropped, it ends soon: a restore's own reading does not wait for it, and what is read can go.
#[derive(Debug, Default)]
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// For who reads: whether nobody wants it any more.
    pub fn off(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the kernel read `range` of `file`, bytes, until it is called `off`. It does not wait for the disk where the disk takes more
/// requests. Returns how many bytes were asked for: fewer where the file system takes no advice. Blocking.
pub fn read_ahead(file: impl AsFd, range: Range<u64>, off: &AtomicBool) -> u64 {
    let mut at = range.start;
    while at < range.end && !off.load(Ordering::Relaxed) {
        let length = (range.end - at).min(AT_ONCE);
        if fadvise(&file, at, NonZeroU64::new(length), Advice::WillNeed).is_err() {
            break;
        }
        at += length;
    }
    at - range.start
}

/// How many pages of `file`, of `length` bytes, are in memory.
#[cfg(test)]
pub fn resident(file: &std::fs::File, length: usize) -> usize {
    use std::os::fd::AsRawFd;
    let mut pages = vec![0_u8; length.div_ceil(4096)];
    // SAFETY: the mapping is made here, of a file of that length, nobody touches it, and it is taken away again.
    unsafe {
        let at = libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(at, libc::MAP_FAILED);
        assert_eq!(libc::mincore(at, length, pages.as_mut_ptr()), 0);
        assert_eq!(libc::munmap(at, length), 0);
    }
    pages.iter().filter(|page| **page & 1 == 1).count()
}
