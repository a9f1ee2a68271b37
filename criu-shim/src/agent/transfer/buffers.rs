//! Buffers for data frames that go around: one that was used up is filled again.
//!
//! A transfer fills thousands of them a second. Fresh memory for each would be paid for page by page.

use crate::agent::transfer::frame::MAX_DATA;
use crate::agent::transfer::outgoing::WINDOW;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Most buffers that are kept for later: what may be on its way or kept to be sent again, and what is being filled. With
/// [`MAX_DATA`] this bounds what an idle connection holds.
const KEPT: usize = WINDOW / MAX_DATA + 8;

/// Where used buffers wait. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Buffers {
    free: Arc<Mutex<Vec<Box<[u8]>>>>,
}

impl Buffers {
    /// An empty buffer: the one that was used last, because its memory is in the processor's cache.
    pub fn take(&self) -> Buffer {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer { memory: free.unwrap_or_else(|| vec![0; MAX_DATA].into()), filled: 0, home: self.clone() }
    }

    fn give_back(&self, memory: Box<[u8]>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT {
            free.push(memory);
        }
    }
}

/// A buffer of [`MAX_DATA`] bytes, filled from its start. Dropped, it goes back to where it came from.
#[derive(Debug)]
pub struct Buffer {
    memory: Box<[u8]>,
    filled: usize,
    home: Buffers,
}

impl Buffer {
    /// What is not filled yet.
    pub fn spare(&mut self) -> &mut [u8] {
        &mut self.memory[self.filled..]
    }

    /// The first `count` bytes of what was spare are filled now.
    pub fn fill(&mut self, count: usize) {
        self.filled = (self.filled + count).min(self.memory.len());
    }

    /// As bytes that can be shared. The buffer goes back when the last of them is dropped.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        self.home.give_back(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_once_nobody_looks_at_it() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take();
        buffer.spare()[..3].copy_from_slice(b"abc");
        buffer.fill(3);
        let (at, bytes) = (buffer.as_ref().as_ptr(), buffer.freeze());
        let part = bytes.slice(1..);
        drop(bytes);
        assert_ne!(buffers.take().as_ref().as_ptr(), at, "somebody looks at a part of it");
        assert_eq!(&part[..], b"bc");
        drop(part);
        let mut taken = [buffers.take(), buffers.take()];
        assert!(taken.iter_mut().any(|buffer| buffer.spare().as_ptr() == at));
        assert!(taken.iter().all(|buffer| buffer.as_ref().is_empty()), "of what was in it nothing is seen");
    }
}
