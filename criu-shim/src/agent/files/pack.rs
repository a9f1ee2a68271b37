//! What has changed in a tree, as the archive that crosses, read while the tree is used or while nobody runs.
//!
//! While the application runs, what is gone when it is read is left out and marked: the next look sends what is there then.
//! A file that changes while it is read crosses as a mixture, and its ctime says so at the next look. While nothing runs,
//! everything must be read as it was listed; it is part of the freeze, so several threads read, and as nothing comes after it,
//! what was sent is not kept.

use crate::agent::files::archive::{self, Attributes, Shape};
use crate::agent::files::attributes::{self, Marks, Scratch};
use crate::agent::files::beneath::{Beneath, way_to};
use crate::agent::files::changes::{Changes, How};
use crate::agent::files::content::{PIECE, Reading};
use crate::agent::files::listing::{BLOCK, Blocks, Facts, Kind, NodeId, TreePath};
use crate::agent::files::tree::Tree;
use crate::agent::files::walk::{facts_of_open, is_gone};
use crate::agent::files::watched::OWN_EVENTS;
use crate::agent::files::{TreeKind, threads};
use rustix::fs::{Mode, OFlags, open, openat, readlinkat};
use rustix::io::Errno;
use std::io::{Error, Read};
use std::os::fd::{AsFd, AsRawFd};
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

/// Bytes that are read for the freeze before anything of them is sent on.
const BATCH: u64 = 16 << 20;
/// Bytes of one file that one thread reads of a batch.
const SLICE: u64 = 4 << 20;
/// What opening a file costs, as the bytes that are read meanwhile.
const OPENING: u64 = 32 << 10;

/// The archive of what has changed in a tree. Keeps in the tree what was sent.
#[derive(Debug)]
pub struct Packing {
    tree: Arc<Mutex<Tree>>,
    kind: TreeKind,
    frozen: bool,
    /// One that reads while the application runs; several while nobody does.
    readers: Vec<Reader>,
    /// What is still to be written, but for the file that is being read.
    begin: Option<bool>,
    removed: IntoIter<TreePath>,
    sent: IntoIter<(NodeId, How)>,
    /// While the application runs.
    reading: Option<Reading>,
    /// The rest of a file, while nobody runs.
    rest: Option<Task>,
    ended: bool,
    stream: Vec<u8>,
    given: usize,
}

/// Part of the work while nobody runs: a name, or some bytes of a file.
#[derive(Clone, Copy, Debug)]
struct Task {
    id: NodeId,
    how: How,
    /// Where the bytes begin. The file itself is written with the first.
    from: u64,
    /// Where they end.
    to: u64,
}

impl Task {
    fn weight(&self) -> u64 {
        OPENING + (self.to - self.from)
    }
}

/// One thread's way into the tree.
#[derive(Debug)]
struct Reader {
    root: Beneath,
    kind: TreeKind,
    frozen: bool,
    scratch: Scratch,
    piece: Box<[u8]>,
}

/// What came of a name that was to be written.
enum Wrote {
    /// All of it.
    All,
    /// Nothing: what it needs could not be sent.
    Nothing,
    /// A file, whose content follows.
    File(Reading),
}

impl Packing {
    /// The archive of `changes`, which [`Tree::look`] has found.
    pub fn new(tree: Arc<Mutex<Tree>>, root: Beneath, kind: TreeKind, changes: Changes, frozen: bool) -> Self {
        Self {
            tree,
            kind,
            frozen,
            readers: vec![Reader::new(root, kind, frozen)],
            begin: Some(changes.base),
            removed: changes.removed.into_iter(),
            sent: changes.sent.into_iter(),
            reading: None,
            rest: None,
            ended: false,
            stream: Vec::with_capacity(2 * BLOCK),
            given: 0,
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
            } else if !(if self.frozen { self.batch(&tree)? } else { self.next(&mut tree)? }) {
                archive::end(&mut self.stream);
                self.ended = true;
            }
        }
        tree.add_sent(self.stream.len());
        Ok(!self.stream.is_empty())
    }

    /// Writes the next name, or the next piece of a file. False where there is none.
    fn next(&mut self, tree: &mut Tree) -> Result<bool, PackError> {
        let Some(reader) = self.readers.first_mut() else { return Ok(false) };
        if let Some(mut reading) = self.reading.take() {
            if reading.next_piece(&mut self.stream, &mut reader.piece, false)? {
                self.reading = Some(reading);
            } else {
                tree.keep_blocks(reading.id, Blocks { length: reading.length, digests: reading.read.into() });
            }
            return Ok(true);
        }
        let Some((id, how)) = self.sent.next() else { return Ok(false) };
        if self.sent.len().is_multiple_of(OWN_EVENTS) {
            tree.make_room_for_events();
        }
        if tree.is_lost(id) {
            // What is in it would have no place to go.
            tree.mark_unsent(id);
            return Ok(true);
        }
        match reader.node(tree, id, how, &mut self.stream) {
            Ok(Wrote::All) => {}
            Ok(Wrote::File(reading)) => self.reading = Some(reading),
            Ok(Wrote::Nothing) => tree.mark_unsent(id),
            Err(error) if error.is_gone() => tree.mark_unsent(id),
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// Writes the next names and pieces, which several threads read. False where there are none.
    fn batch(&mut self, tree: &Tree) -> Result<bool, PackError> {
        let (mut tasks, mut weight) = (Vec::new(), 0);
        while weight < BATCH {
            let next = self.rest.take().or_else(|| {
                let (id, how) = self.sent.next()?;
                Some(Task { id, how, from: 0, to: tree.bytes_to_read(id, how) })
            });
            let Some(mut task) = next else { break };
            if task.to - task.from > SLICE {
                self.rest = Some(Task { from: task.from + SLICE, ..task });
                task.to = task.from + SLICE;
            }
            weight += task.weight();
            tasks.push(task);
        }
        let readers = usize::try_from(weight / SLICE).unwrap_or(usize::MAX).saturating_add(1).min(threads(true));
        self.have_readers(readers)?;
        let shares = shares(&tasks, readers.min(self.readers.len()));
        let written: Vec<Result<Vec<u8>, PackError>> = std::thread::scope(|scope| {
            let mut work = self.readers.iter_mut().zip(shares);
            let first = work.next();
            let others: Vec<_> = work.map(|(reader, tasks)| scope.spawn(move || reader.write(tree, tasks))).collect();
            let first = first.map(|(reader, tasks)| reader.write(tree, tasks));
            let others =
                others.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            first.into_iter().chain(others).collect()
        });
        for records in written {
            self.stream.append(&mut records?);
        }
        Ok(!tasks.is_empty())
    }

    fn have_readers(&mut self, wanted: usize) -> Result<(), PackError> {
        while self.readers.len() < wanted {
            let Some(first) = self.readers.first() else { break };
            let root = first.root.again().map_err(|source| PackError::Read { path: TreePath::default(), source })?;
            self.readers.push(Reader::new(root, self.kind, self.frozen));
        }
        Ok(())
    }
}

/// Splits the work into at most so many parts that follow each other and take about as long.
fn shares(tasks: &[Task], most: usize) -> Vec<&[Task]> {
    let all: u64 = tasks.iter().map(Task::weight).sum();
    let (mut shares, mut begin, mut weight) = (Vec::with_capacity(most), 0, 0);
    for (at, task) in tasks.iter().enumerate() {
        weight += task.weight();
        if weight * most as u64 >= all * (shares.len() as u64 + 1) {
            shares.push(&tasks[begin..=at]);
            begin = at + 1;
        }
    }
    shares
}

impl Reader {
    fn new(root: Beneath, kind: TreeKind, frozen: bool) -> Self {
        Self { root, kind, frozen, scratch: Scratch::default(), piece: vec![0; PIECE].into() }
    }

    /// The records of these tasks.
    fn write(&mut self, tree: &Tree, tasks: &[Task]) -> Result<Vec<u8>, PackError> {
        let mut stream = Vec::with_capacity(2 * BLOCK);
        for task in tasks {
            let written = stream.len();
            if let Wrote::File(mut reading) = self.node(tree, task.id, task.how, &mut stream)? {
                if task.from > 0 {
                    stream.truncate(written);
                }
                (reading.at, reading.end) = (task.from, task.to);
                while reading.next_piece(&mut stream, &mut self.piece, true)? {}
            }
        }
        Ok(stream)
    }

    fn node(&mut self, tree: &Tree, id: NodeId, how: How, stream: &mut Vec<u8>) -> Result<Wrote, PackError> {
        let Some((path, facts)) = tree.named(id) else { return Ok(Wrote::All) };
        let Some((parent, name)) = path.split() else { return self.directory(how, &path, &facts, stream) };
        let failed = |source| PackError::Read { path: path.clone(), source };
        if let How::Link(to) = how {
            let Some((to, _)) = tree.named(to).filter(|_| !tree.is_unsent(to)) else { return Ok(Wrote::Nothing) };
            archive::link(stream, &path, &to);
            return Ok(Wrote::All);
        }
        if self.kind == TreeKind::Layer && facts.kind == Kind::Character && facts.device == (0, 0) {
            archive::remove(stream, &path);
            return Ok(Wrote::All);
        }
        match facts.kind {
            Kind::Directory => return self.directory(how, &path, &facts, stream),
            Kind::File => return self.file(tree, (id, how), &path, &facts, stream),
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
        archive::node(stream, &path, how == How::Update, &shape, &with(&now, extended));
        Ok(Wrote::All)
    }

    fn directory(
        &mut self,
        how: How,
        path: &TreePath,
        facts: &Facts,
        stream: &mut Vec<u8>,
    ) -> Result<Wrote, PackError> {
        let failed = |source| PackError::Read { path: path.clone(), source };
        let directory = match path.split() {
            Some((parent, name)) => {
                let parent = self.root.directory(&parent).map_err(failed)?;
                // A mount on it is not entered, and says nothing of what it covers.
                match crate::agent::files::beneath::open_directory(parent, name) {
                    Ok(directory) => directory,
                    Err(Errno::XDEV) => {
                        let attributes = with(facts, Vec::new());
                        archive::node(stream, path, false, &Shape::Directory { clear: false }, &attributes);
                        return Ok(Wrote::All);
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
        archive::node(stream, path, keep, &Shape::Directory { clear }, &with(&now, extended));
        Ok(Wrote::All)
    }

    fn file(
        &mut self,
        tree: &Tree,
        (id, how): (NodeId, How),
        path: &TreePath,
        facts: &Facts,
        stream: &mut Vec<u8>,
    ) -> Result<Wrote, PackError> {
        let failed = |source| PackError::Read { path: path.clone(), source };
        let Some((parent, name)) = path.split() else { return Ok(Wrote::All) };
        let parent = self.root.directory(&parent).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = if self.frozen {
            openat(parent, name, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(failed)?
        } else {
            // First without opening it: it may have become a device, and opening one may do something to the machine.
            let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let place = openat(parent, name, place, Mode::empty()).map_err(failed)?;
            if facts_of_open(place.as_fd()).map_err(failed)?.kind != facts.kind {
                return Err(PackError::Changed { path: path.clone() });
            }
            open(format!("/proc/self/fd/{}", place.as_raw_fd()), flags, Mode::empty()).map_err(failed)?
        };
        let now = facts_of_open(file.as_fd()).map_err(failed)?;
        if (now.id, now.kind) != (facts.id, facts.kind) || (self.frozen && now.size != facts.size) {
            return Err(PackError::Changed { path: path.clone() });
        }
        let of = attributes::File::Open(file.as_fd());
        let (extended, marks) = read_extended(self.kind, of, path, &mut self.scratch)?;
        if marks.whiteout {
            archive::remove(stream, path);
            return Ok(Wrote::All);
        }
        let whole = how != How::Update;
        archive::node(stream, path, !whole, &Shape::File { size: now.size }, &with(&now, extended));
        let known = tree.blocks(id).filter(|blocks| !whole && blocks.suit(now.size));
        Ok(Wrote::File(Reading {
            id,
            path: path.clone(),
            file,
            at: 0,
            end: now.size,
            // Of one piece it is not worth asking.
            data: if now.size <= PIECE as u64 { (0, now.size) } else { (0, 0) },
            length: known.as_ref().map_or(Blocks::length_for(now.size), |known| known.length),
            known,
            whole,
            read: Vec::new(),
        }))
    }
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
