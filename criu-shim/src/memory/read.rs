//! Reading the memory of a process while it runs, or while it is frozen.

use super::{Range, ReadError, Sent};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Most that is read at once, bytes. More is not faster, and the buffer stays in the processor's cache.
pub const CHUNK: usize = 1 << 20;

/// The smallest page there is on the machines that are supported, bytes.
const PAGE: u64 = 4096;

/// From this on a range is read by a call that copies it once and not twice, bytes. It takes another to see whose memory it was.
const LARGE: usize = 64 << 10;

/// What became of the start of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// These bytes are at the start of the buffer now.
    Read(Range),
    /// These can't be read: unmapped meanwhile, or a guard page. During pre-copy that is no error. For pages that the
    /// last look called written it is a doubt about their mapping, which must be dumped in the plain way then.
    Unreadable(Range),
}

/// The memory of the address space that a process had when this was made: what it executes later is not read.
#[derive(Debug)]
pub struct MemoryReader {
    pid: i32,
    memory: File,
    /// Who is to know what was read.
    sent: Option<Arc<Mutex<Sent>>>,
}

impl MemoryReader {
    /// Opens the memory of process `pid`.
    ///
    /// # Errors
    /// [`ReadError::Open`], also for a process that has ended.
    pub fn open(pid: i32) -> Result<Self, ReadError> {
        let path = PathBuf::from(format!("/proc/{pid}/mem"));
        match File::open(&path) {
            Ok(memory) => Ok(Self { pid, memory, sent: None }),
            Err(source) => Err(ReadError::Open { path, source }),
        }
    }

    /// Whatever is read is noted in `sent`, if there is such a note: it must be what is sent.
    #[must_use]
    pub fn noting(self, sent: Option<Arc<Mutex<Sent>>>) -> Self {
        Self { sent, ..self }
    }

    /// Reads the start of `rest` into `buffer`, as much as fits and at most [`CHUNK`], and takes what it dealt with off
    /// `rest`. None when nothing is left of it.
    ///
    /// `buffer` must hold a page.
    ///
    /// # Errors
    /// [`ReadError::Gone`] when the process has ended or executed another program.
    pub fn read_next(&self, rest: &mut Range, buffer: &mut [u8]) -> Result<Option<Piece>, ReadError> {
        if rest.is_empty() {
            return Ok(None);
        }
        let start = rest.start;
        let length = buffer.len().min(CHUNK).min(usize::try_from(rest.len()).unwrap_or(CHUNK));
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        let mut read = 0;
        let piece = match self.read_at(buffer, start) {
            Ok(0) => return Err(ReadError::Gone { pid: self.pid }),
            Ok(count) => {
                read = count;
                Piece::Read(Range { start, end: start + count as u64 })
            }
            Err(error) if [Some(libc::EIO), Some(libc::EFAULT)].contains(&error.raw_os_error()) => {
                Piece::Unreadable(Range { start, end: rest.end.min((start / PAGE + 1) * PAGE) })
            }
            Err(source) => return Err(ReadError::Read { pid: self.pid, address: start, length, source }),
        };
        if let (Piece::Read(_), Some(sent)) = (piece, &self.sent) {
            let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
            for (page, bytes) in (start / PAGE..).zip(buffer[..read].chunks_exact(PAGE as usize)) {
                sent.note(page, bytes);
            }
        }
        let (Piece::Read(done) | Piece::Unreadable(done)) = piece;
        rest.start = done.end;
        Ok(Some(piece))
    }

    fn read_at(&self, buffer: &mut [u8], address: u64) -> std::io::Result<usize> {
        let Ok(base) = usize::try_from(address) else { return self.memory.read_at(buffer, address) };
        if buffer.len() < LARGE {
            return self.memory.read_at(buffer, address);
        }
        let from = RemoteIoVec { base, len: buffer.len() };
        match process_vm_readv(Pid::from_raw(self.pid), &mut [IoSliceMut::new(buffer)], &[from]) {
            // It goes by the pid, which may have come to stand for another address space. This one has ended then: a process
            // that executes something is not looked into before its old memory is given up. Source: exec_mmap() and
            // mm_access() of Linux, which take the same lock.
            Ok(count) if count > 0 => match self.memory.read_at(&mut [0], address) {
                Ok(0) => Ok(0),
                _ => Ok(count),
            },
            // It knows no pages but those that the process itself may read.
            _ => self.memory.read_at(buffer, address),
        }
    }
}
