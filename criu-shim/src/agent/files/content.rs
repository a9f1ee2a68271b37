//! The content of one file, read in pieces: what of it the target has not got. It never decides which files are read.

use crate::agent::files::archive;
use crate::agent::files::listing::{BLOCK, Blocks, Digest, NodeId, TreePath, ZEROS};
use crate::agent::files::pack::PackError;
use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pread};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Bytes of a file that are read at once.
pub(super) const PIECE: usize = BLOCK;

/// A file whose content is being read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) id: NodeId,
    pub(super) path: TreePath,
    pub(super) file: OwnedFd,
    /// Where the next bytes begin.
    pub(super) at: u64,
    /// Where the last bytes end.
    pub(super) end: u64,
    /// Where the next bytes are that are no hole, and where they end.
    pub(super) data: (u64, u64),
    /// What the target has; none of it, where the file is sent whole.
    pub(super) known: Option<Arc<Blocks>>,
    pub(super) whole: bool,
    /// Length of the blocks by which it is compared.
    pub(super) length: usize,
    /// Digests of what was read.
    pub(super) read: Vec<Digest>,
}

impl Reading {
    /// Writes what the target has not got of the next piece. False once the file is read.
    pub(super) fn next_piece(
        &mut self,
        stream: &mut Vec<u8>,
        buffer: &mut [u8],
        frozen: bool,
    ) -> Result<bool, PackError> {
        if self.at >= self.end {
            return Ok(false);
        }
        let length = usize::try_from(self.end - self.at).map_or(PIECE, |left| left.min(PIECE));
        let hole = self.is_hole(length as u64)?;
        if !hole {
            let read = self.read(&mut buffer[..length])?;
            if read < length {
                if frozen {
                    return Err(PackError::Changed { path: self.path.clone() });
                }
                // It has become shorter, which its ctime shows.
                buffer[read..length].fill(0);
            }
        }
        let mut run = Run::default();
        for (begin, block) in (0..).step_by(self.length).zip(buffer[..length].chunks(self.length)) {
            let digest = if hole { ZEROS } else { digest(block) };
            let has = self.has((self.at + begin as u64) / self.length as u64);
            if !frozen {
                self.read.push(digest);
            }
            if has == Some(digest) {
                continue;
            }
            let zeros = digest == ZEROS;
            if run.end != begin || run.zeros != zeros {
                run.write(stream, self.at, buffer);
                run = Run { begin, end: begin, zeros };
            }
            run.end += block.len();
        }
        run.write(stream, self.at, buffer);
        self.at += length as u64;
        Ok(true)
    }

    /// What the target has of the block of this number. Beyond the end of what was sent that is zeros, once it has the new
    /// length.
    fn has(&self, number: u64) -> Option<Digest> {
        match &self.known {
            Some(known) => {
                let digest = usize::try_from(number).ok().and_then(|number| known.digests.get(number));
                Some(digest.copied().unwrap_or(ZEROS))
            }
            None => self.whole.then_some(ZEROS),
        }
    }

    /// Whether nothing is stored of the next bytes. Source: lseek(2), SEEK_DATA and SEEK_HOLE.
    fn is_hole(&mut self, length: u64) -> Result<bool, PackError> {
        if self.at >= self.data.1 {
            self.data = match seek(&self.file, SeekFrom::Data(self.at)) {
                Ok(begin) => (begin, seek(&self.file, SeekFrom::Hole(begin)).map_err(|errno| self.failed(errno))?),
                // There is none up to the end, wherever that is by now.
                Err(Errno::NXIO) => (u64::MAX, u64::MAX),
                Err(errno) => return Err(self.failed(errno)),
            };
        }
        Ok(self.at + length <= self.data.0)
    }

    fn read(&self, buffer: &mut [u8]) -> Result<usize, PackError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match pread(&self.file, &mut buffer[filled..], self.at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        Ok(filled)
    }

    fn failed(&self, source: Errno) -> PackError {
        PackError::Read { path: self.path.clone(), source }
    }
}

/// Blocks of a piece, one after the other, that the target has not got.
#[derive(Default)]
struct Run {
    begin: usize,
    end: usize,
    zeros: bool,
}

impl Run {
    fn write(&self, stream: &mut Vec<u8>, at: u64, piece: &[u8]) {
        let offset = at + self.begin as u64;
        match piece.get(self.begin..self.end) {
            None | Some([]) => {}
            Some(_) if self.zeros => archive::zeros(stream, offset, (self.end - self.begin) as u64),
            Some(bytes) => archive::data(stream, offset, bytes),
        }
    }
}

/// Digest of a block.
fn digest(block: &[u8]) -> Digest {
    let (words, rest) = block.as_chunks::<16>();
    let zero = words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0);
    if zero { ZEROS } else { *blake3::hash(block).as_bytes() }
}
