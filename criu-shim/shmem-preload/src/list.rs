//! The list of objects: memory that its writer shares with this process.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicU64, Ordering};

/// Length of the list, bytes.
const LENGTH: usize = 64 << 10;
const WORDS: usize = LENGTH / size_of::<u64>();

/// Objects, by device and inode.
pub(crate) struct List {
    words: &'static [AtomicU64; WORDS],
}

impl List {
    /// The list whose descriptor `variable` names, which is closed then.
    pub(crate) fn inherited(variable: &CStr) -> Option<Self> {
        // SAFETY: a C string; what is returned is one too, and is read before anybody changes the environment.
        let value = unsafe {
            let value = libc::getenv(variable.as_ptr());
            if value.is_null() {
                return None;
            }
            CStr::from_ptr(value)
        };
        let descriptor: c_int = value.to_str().ok()?.parse().ok()?;
        let protection = libc::PROT_READ;
        // SAFETY: a new mapping at an address that the kernel chooses; the descriptor was handed over to be used here.
        unsafe {
            libc::ftruncate(descriptor, LENGTH as i64);
            let memory = libc::mmap(std::ptr::null_mut(), LENGTH, protection, libc::MAP_SHARED, descriptor, 0);
            libc::close(descriptor);
            // The mapping is as long as the file, whole words, never unmapped, and changes under atomics only.
            (memory != libc::MAP_FAILED).then(|| Self { words: &*memory.cast() })
        }
    }

    pub(crate) fn has(&self, device: u64, inode: u64) -> bool {
        let (count, objects) = (self.words[0].load(Ordering::Acquire), &self.words[1..]);
        let pairs = objects.chunks_exact(2).take(usize::try_from(count).unwrap_or(usize::MAX));
        pairs
            .into_iter()
            .any(|pair| pair[0].load(Ordering::Relaxed) == device && pair[1].load(Ordering::Relaxed) == inode)
    }
}
