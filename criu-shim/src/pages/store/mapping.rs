//! The data file as memory that the kernel may copy from.
//!
//! The only `unsafe` of the store. No byte of the mapping is ever read here: the kernel reads it for `UFFDIO_COPY`, and
//! answers with an error where this process would get SIGBUS, after a failed read or a file that was cut.

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ptr;

/// The mapping of a data file, shared and for reading.
#[derive(Debug)]
pub(super) struct Mapping {
    /// Dangling where the length is 0.
    start: *mut c_void,
    length: usize,
}

/// A part of a mapping, or of other memory, while that is there.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a> {
    start: *const c_void,
    length: u64,
    memory: PhantomData<&'a [u8]>,
}

impl Mapping {
    /// Maps the first `length` bytes of `file`.
    ///
    /// # Errors
    /// What mmap says.
    pub(super) fn of(file: &File, length: u64) -> io::Result<Self> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if length == 0 {
            return Ok(Self { start: ptr::dangling_mut(), length });
        }
        // SAFETY: the kernel chooses an address where nothing is mapped, and nothing here makes a reference into it.
        let start = unsafe { mmap(ptr::null_mut(), length, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        Ok(Self { start, length })
    }

    /// `length` bytes at `offset`, if the mapping has them.
    pub(super) fn bytes(&self, offset: u64, length: u64) -> Option<Bytes<'_>> {
        let end = offset.checked_add(length)?;
        if end > self.length as u64 {
            return None;
        }
        // Inside of the mapping, whose length is an usize.
        let start = self.start.cast::<u8>().wrapping_add(offset as usize);
        Some(Bytes { start: start.cast(), length, memory: PhantomData })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.length != 0 {
            // SAFETY: mapped by `of` with this length, and every `Bytes` borrows the mapping, so none is left.
            unsafe { munmap(self.start, self.length) }.ok();
        }
    }
}

impl<'a> Bytes<'a> {
    /// `bytes`, that were read already.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { start: bytes.as_ptr().cast(), length: bytes.len() as u64, memory: PhantomData }
    }
}

impl Bytes<'_> {
    /// Address in this process, for the kernel to read from.
    pub(in super::super) fn address(&self) -> u64 {
        self.start.addr() as u64
    }

    /// Bytes.
    pub(in super::super) fn length(&self) -> u64 {
        self.length
    }
}
