//! What has changed in a tree, as the archive that crosses, read while the tree is used or while nobody runs.
//!
//! While the application runs, what is gone when it is read is left out and marked: the next look sends what is there then.
//! A file that changes while it is read crosses as a mixture, and its ctime says so at the next look. While nothing runs,
//! everything must be read as it was listed.

use crate::agent::files::TreeKind;
use crate::agent::files::archive::{self, Attributes, Shape};
use crate::agent::files::attributes::{self, Marks, Scratch};
use crate::agent::files::beneath::{Beneath, way_to};
use crate::agent::files::changes::{Changes, How};
use crate::agent::files::listing::{BLOCK, Digest, Facts, Kind, NodeId, TreePath, ZEROS};
use crate::agent::files::tree::Tree;
use crate::agent::files::walk::{facts_of_open, is_gone};
use rustix::fs::{Mode, OFlags, SeekFrom, open, openat, readlinkat, seek};
use rustix::io::{Errno, pread};
use std::io::{Error, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::vec::IntoIter;
use thiserror::Error;

/// Why a tree can't be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// Something in it can't be read.
    #[error("read {path:?}")]
    Read {
        /// Path in the tree.
        path: TreePath,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It is not what was listed, and nobody should have changed it.
    #[error("{path:?} has changed while nobody ran")]
    Changed {
        /// Path in the tree.
        path: TreePath,
    },
    /// Overlayfs keeps this entry in a way that means nothing without the layers below.
    #[error("{path:?} has the overlay attribute {name}, which can't be carried to another node")]
    OverlayFeature {
        /// Path in the tree.
        path: TreePath,
        /// The attribute.
        name: String,
    },
    /// A device in a volume.
    #[error("{path:?} is a device: a volume with devices can't be moved")]
    Device {
        /// Path in the tree.
        path: TreePath,
    },
}

impl PackError {
    fn is_gone(&self) -> bool {
        matches!(self, Self::Changed { .. }) || matches!(self, Self::Read { source, .. } if is_gone(*source))
    }
}

/// The archive of what has changed in a tree. Keeps in the tree what was sent.
#[derive(Debug)]
pub struct Packing {
    tree: Arc<Mutex<Tree>>,
    root: Beneath,
    kind: TreeKind,
    frozen: bool,
    /// What is still to be written, but for the file that is being read.
    begin: Option<bool>,
    removed: IntoIter<TreePath>,
    sent: IntoIter<(NodeId, How)>,
    reading: Option<Reading>,
    ended: bool,
    stream: Vec<u8>,
    given: usize,
    scratch: Scratch,
    block: Box<[u8]>,
}

/// A file whose content is being read.
#[derive(Debug)]
struct Reading {
    id: NodeId,
    path: TreePath,
    file: OwnedFd,
    size: u64,
    at: u64,
    /// Where the next bytes are that are no hole, and where they end.
    data: (u64, u64),
    /// What the target has; none of it, where the file is sent whole.
    known: Option<Box<[Digest]>>,
    whole: bool,
    blocks: Vec<Digest>,
}

impl Packing {
    /// The archive of `changes`, which [`Tree::look`] has found.
    pub fn new(tree: Arc<Mutex<Tree>>, root: Beneath, kind: TreeKind, changes: Changes, frozen: bool) -> Self {
        Self {
            tree,
            root,
            kind,
            frozen,
            begin: Some(changes.base),
            removed: changes.removed.into_iter(),
            sent: changes.sent.into_iter(),
            reading: None,
            ended: false,
            stream: Vec::with_capacity(2 * BLOCK),
            given: 0,
            scratch: Scratch::default(),
            block: vec![0; BLOCK].into(),
        }
    }

    /// Fills the stream with the next records. False at the end.
    fn fill(&mut self) -> Result<bool, PackError> {
        self.stream.clear();
        self.given = 0;
        let tree = self.tree.clone();
        let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
        while self.stream.len() < BLOCK && !self.ended {
            if let Some(base) = self.begin.take() {
                archive::begin(&mut self.stream, self.kind, base);
            } else if let Some(path) = self.removed.next() {
                archive::remove(&mut self.stream, &path);
            } else if let Some(reading) = self.reading.take() {
                self.reading = reading.next_block(&mut tree, &mut self.stream, &mut self.block, self.frozen)?;
            } else if let Some((id, how)) = self.sent.next() {
                if tree.is_lost(id) {
                    // What is in it would have no place to go.
                    tree.mark_unsent(id);
                    continue;
                }
                match self.node(&mut tree, id, how) {
                    Err(error) if !self.frozen && error.is_gone() => tree.mark_unsent(id),
                    sent => sent?,
                }
            } else {
                archive::end(&mut self.stream);
                self.ended = true;
            }
        }
        tree.add_sent(self.stream.len());
        Ok(!self.stream.is_empty())
    }

    fn node(&mut self, tree: &mut Tree, id: NodeId, how: How) -> Result<(), PackError> {
        let Some((path, facts)) = tree.named(id) else { return Ok(()) };
        let Some((parent, name)) = path.split() else { return self.directory(id, how, &path, &facts) };
        let failed = |source| PackError::Read { path: path.clone(), source };
        if let How::Link(to) = how {
            match tree.named(to).filter(|_| !tree.is_unsent(to)) {
                Some((to, _)) => archive::link(&mut self.stream, &path, &to),
                None => tree.mark_unsent(id),
            }
            return Ok(());
        }
        if self.kind == TreeKind::Layer && facts.kind == Kind::Character && facts.device == (0, 0) {
            archive::remove(&mut self.stream, &path);
            return Ok(());
        }
        match facts.kind {
            Kind::Directory => return self.directory(id, how, &path, &facts),
            Kind::File => return self.file(tree, id, how, &path, &facts),
            Kind::Character | Kind::Block if self.kind == TreeKind::Volume => {
                return Err(PackError::Device { path });
            }
            _ => {}
        }
        let directory = self.root.directory(&parent).map_err(failed)?;
        let now = crate::agent::files::walk::facts_at(directory, name).map_err(failed)?;
        if (now.id, now.kind) != (facts.id, facts.kind) {
            return Err(PackError::Changed { path });
        }
        let shape = match facts.kind {
            Kind::Symlink => {
                let target = readlinkat(directory, name, Vec::new()).map_err(failed)?;
                Shape::Symlink { target: target.into_bytes() }
            }
            Kind::Fifo => Shape::Fifo,
            Kind::Character => Shape::Character { device: facts.device },
            Kind::Block => Shape::Block { device: facts.device },
            Kind::Socket | Kind::Directory | Kind::File => Shape::Socket,
        };
        let way = way_to(directory, name);
        let (extended, _) = read_extended(self.kind, attributes::File::At(&way), &path, &mut self.scratch)?;
        archive::node(&mut self.stream, &path, how == How::Update, &shape, &with(&now, extended));
        Ok(())
    }

    fn directory(&mut self, _: NodeId, how: How, path: &TreePath, facts: &Facts) -> Result<(), PackError> {
        let failed = |source| PackError::Read { path: path.clone(), source };
        let directory = match path.split() {
            Some((parent, name)) => {
                let parent = self.root.directory(&parent).map_err(failed)?;
                // A mount on it is not entered, and says nothing of what it covers.
                match crate::agent::files::beneath::open_directory(parent, name) {
                    Ok(directory) => directory,
                    Err(Errno::XDEV) => {
                        let attributes = with(facts, Vec::new());
                        archive::node(&mut self.stream, path, false, &Shape::Directory { clear: false }, &attributes);
                        return Ok(());
                    }
                    Err(errno) => return Err(failed(errno)),
                }
            }
            None => {
                let root = self.root.directory(path).map_err(failed)?;
                root.try_clone_to_owned().map_err(|_| failed(Errno::MFILE))?
            }
        };
        let now = facts_of_open(directory.as_fd()).map_err(failed)?;
        if now.id != facts.id {
            return Err(PackError::Changed { path: path.clone() });
        }
        let file = attributes::File::Open(directory.as_fd());
        let (extended, marks) = read_extended(self.kind, file, path, &mut self.scratch)?;
        let clear = matches!(how, How::Whole { clear } if marks.opaque || (clear && self.kind == TreeKind::Volume));
        let keep = how == How::Update || path.is_root();
        archive::node(&mut self.stream, path, keep, &Shape::Directory { clear }, &with(&now, extended));
        Ok(())
    }

    fn file(&mut self, tree: &mut Tree, id: NodeId, how: How, path: &TreePath, facts: &Facts) -> Result<(), PackError> {
        let failed = |source| PackError::Read { path: path.clone(), source };
        let Some((parent, name)) = path.split() else { return Ok(()) };
        let parent = self.root.directory(&parent).map_err(failed)?;
        // First without opening it: it may have become a device, and opening one may do something to the machine.
        let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(parent, name, place, Mode::empty()).map_err(failed)?;
        if facts_of_open(place.as_fd()).map_err(failed)?.kind != facts.kind {
            return Err(PackError::Changed { path: path.clone() });
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty()).map_err(failed)?;
        let now = facts_of_open(file.as_fd()).map_err(failed)?;
        if (now.id, now.kind) != (facts.id, facts.kind) || (self.frozen && now.size != facts.size) {
            return Err(PackError::Changed { path: path.clone() });
        }
        let of = attributes::File::Open(file.as_fd());
        let (extended, marks) = read_extended(self.kind, of, path, &mut self.scratch)?;
        if marks.whiteout {
            archive::remove(&mut self.stream, path);
            return Ok(());
        }
        let whole = how != How::Update;
        archive::node(&mut self.stream, path, !whole, &Shape::File { size: now.size }, &with(&now, extended));
        let known = tree.take_blocks(id).filter(|_| !whole);
        self.reading = Some(Reading {
            id,
            path: path.clone(),
            file,
            size: now.size,
            at: 0,
            // Of one block it is not worth asking.
            data: if now.size <= BLOCK as u64 { (0, now.size) } else { (0, 0) },
            known,
            whole,
            blocks: Vec::with_capacity(usize::try_from(now.size.div_ceil(BLOCK as u64)).unwrap_or_default()),
        });
        Ok(())
    }
}

impl Reading {
    /// Writes the next block if the target has not got it. Returns itself until the file is read.
    fn next_block(
        mut self,
        tree: &mut Tree,
        stream: &mut Vec<u8>,
        buffer: &mut [u8],
        frozen: bool,
    ) -> Result<Option<Self>, PackError> {
        if self.at >= self.size {
            tree.keep_blocks(self.id, std::mem::take(&mut self.blocks).into());
            return Ok(None);
        }
        let length = usize::try_from(self.size - self.at).map_or(BLOCK, |left| left.min(BLOCK));
        let digest = if self.is_hole(length as u64)? {
            ZEROS
        } else {
            let read = self.read(&mut buffer[..length])?;
            if read < length {
                if frozen {
                    return Err(PackError::Changed { path: self.path });
                }
                // It has become shorter, which its ctime shows.
                buffer[read..length].fill(0);
            }
            digest(&buffer[..length])
        };
        // What the target has beyond the end of what was sent is zeros, once it has the new length.
        let has = match &self.known {
            Some(known) => Some(known.get(self.blocks.len()).copied().unwrap_or(ZEROS)),
            None => self.whole.then_some(ZEROS),
        };
        if has != Some(digest) {
            if digest == ZEROS {
                archive::zeros(stream, self.at, length as u64);
            } else {
                archive::data(stream, self.at, &buffer[..length]);
            }
        }
        self.blocks.push(digest);
        self.at += length as u64;
        Ok(Some(self))
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

/// Digest of a block.
fn digest(block: &[u8]) -> Digest {
    let (words, rest) = block.as_chunks::<16>();
    let zero = words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0);
    if zero { ZEROS } else { *blake3::hash(block).as_bytes() }
}

fn read_extended(
    kind: TreeKind,
    file: attributes::File<'_>,
    path: &TreePath,
    scratch: &mut Scratch,
) -> Result<(attributes::Extended, Marks), PackError> {
    let mut extended = file.read(scratch).map_err(|source| PackError::Read { path: path.clone(), source })?;
    let marks = attributes::take_marks(kind, &mut extended);
    let marks = marks.map_err(|name| PackError::OverlayFeature { path: path.clone(), name })?;
    Ok((extended, marks))
}

fn with(facts: &Facts, extended: attributes::Extended) -> Attributes {
    Attributes { mode: facts.mode, uid: facts.uid, gid: facts.gid, modified: facts.modified, extended }
}

impl Read for Packing {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.given == self.stream.len() && !self.fill().map_err(Error::other)? {
            return Ok(0);
        }
        let length = buffer.len().min(self.stream.len() - self.given);
        buffer[..length].copy_from_slice(&self.stream[self.given..self.given + length]);
        self.given += length;
        Ok(length)
    }
}
