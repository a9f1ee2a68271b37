//! One address space that is being served: putting pages into it, and believing what the kernel answers.

use super::book::{Book, SpaceId};
use super::error::DaemonError;
use super::missing::Chunk;
use super::userfault::{Refusal, Userfault};
use super::window::Windows;
use crate::pages::PAGE;
use crate::pages::store::Store;
use std::collections::VecDeque;

/// A userfaultfd, and who waits at it.
#[derive(Debug)]
pub(super) struct Live {
    /// Pid in the images, of the process itself or of what it was forked from.
    pub(super) pid: i32,
    pub(super) userfault: Userfault,
    /// Addresses of pages that threads wait for.
    pub(super) faults: VecDeque<u64>,
    /// How much is put for each.
    pub(super) windows: Windows,
    /// Where the last one was: what is around it is wanted before the rest.
    pub(super) near: Option<u64>,
}

/// How an attempt to put pages ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All of it is there, or has no place any more.
    Done,
    /// Events must be read first. What was not put is still in the book.
    Changing,
    /// There was no memory for this page. What was not put is still in the book.
    NoMemory(u64),
    /// The process is gone.
    Gone,
}

impl Live {
    pub(super) fn new(pid: i32, userfault: Userfault) -> Self {
        Self { pid, userfault, faults: VecDeque::new(), windows: Windows::default(), near: None }
    }

    /// Puts `chunk` and takes it down in `book`.
    ///
    /// # Errors
    /// [`DaemonError::Put`]; [`DaemonError::NotRegistered`] for a page that must be there and is not.
    pub(super) fn put(
        &self,
        id: SpaceId,
        chunk: Chunk,
        store: &Store,
        book: &mut Book,
    ) -> Result<Outcome, DaemonError> {
        let mut todo = vec![chunk];
        while let Some(piece) = todo.pop() {
            let (copied, refusal) = self.copy(piece, store)?;
            book.put(id, piece.address, copied);
            let rest = piece.after(copied);
            match refusal {
                None => {}
                Some(Refusal::Present) => {
                    self.userfault.wake(rest.address);
                    book.put(id, rest.address, PAGE);
                    todo.extend(Some(rest.after(PAGE)).filter(|rest| rest.length > 0));
                }
                // One call works inside of one mapping only, and the process may have any number of them.
                Some(Refusal::NotRegistered) if rest.length > PAGE => {
                    let (first, second) = rest.halves();
                    todo.extend([second, first]);
                }
                Some(Refusal::NotRegistered) => match self.look_again(rest, store)? {
                    (_, Some(Refusal::NotRegistered)) if book.must_be_there(id) => {
                        return Err(DaemonError::NotRegistered { pid: self.pid, address: rest.address });
                    }
                    (_, None | Some(Refusal::NotRegistered | Refusal::Present)) => {
                        self.userfault.wake(rest.address);
                        book.put(id, rest.address, PAGE);
                    }
                    (_, Some(refusal)) => return self.give_up(refusal, rest.address),
                },
                Some(refusal) => return self.give_up(refusal, rest.address),
            }
        }
        Ok(Outcome::Done)
    }

    /// Puts zeros for a thread that waits at `address`, where nothing is to be had.
    ///
    /// # Errors
    /// [`DaemonError::Put`].
    pub(super) fn zero(&self, address: u64) -> Result<Outcome, DaemonError> {
        match self.userfault.zero(address) {
            None => Ok(Outcome::Done),
            // Put by now, or unmapped by now: the thread finds out for itself.
            Some(Refusal::Present | Refusal::NotRegistered) => {
                self.userfault.wake(address);
                Ok(Outcome::Done)
            }
            Some(refusal) => self.give_up(refusal, address),
        }
    }

    fn copy(&self, chunk: Chunk, store: &Store) -> Result<(u64, Option<Refusal>), DaemonError> {
        let mut room = Vec::new();
        let bytes = store.bytes(chunk.offset, chunk.length, &mut room);
        let bytes = bytes.map_err(|source| DaemonError::Store { pid: self.pid, source })?;
        Ok(self.userfault.copy(chunk.address, bytes))
    }

    /// The kernel looks for the mapping before it looks whether mappings are changing, so that a mapping that is being
    /// unmapped may be gone before its event is there. The second answer can't be that one: until the event is read,
    /// every call that begins after the unmapping is told that there is one.
    fn look_again(&self, page: Chunk, store: &Store) -> Result<(u64, Option<Refusal>), DaemonError> {
        self.copy(page, store)
    }

    fn give_up(&self, refusal: Refusal, address: u64) -> Result<Outcome, DaemonError> {
        match refusal {
            Refusal::Changing => Ok(Outcome::Changing),
            Refusal::NoMemory => Ok(Outcome::NoMemory(address)),
            Refusal::Gone => Ok(Outcome::Gone),
            Refusal::Failed(source) => Err(DaemonError::Put { pid: self.pid, address, source }),
            Refusal::Present | Refusal::NotRegistered => Ok(Outcome::Done),
        }
    }
}
