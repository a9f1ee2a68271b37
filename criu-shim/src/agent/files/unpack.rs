//! Brings a tree up to an archive.
//!
//! The archive counts as hostile: its decoder takes only what [`archive`](super::archive) writes, no name passes through a
//! link or into another mount, and the bytes are bounded. Directories that are there stay, and so does a file that has one
//! name only: a volume's may be mounted somewhere. Archives of one tree are applied in the order of their rounds; to begin
//! again with the first gives the same tree, whatever was there.

use crate::agent::files::archive::{Attributes, DecodeError, Decoder, Record, Shape};
use crate::agent::files::attributes;
use crate::agent::files::beneath::{Beneath, open_directory, way_to};
use crate::agent::files::dress::{Dressing, Failed, Undressed, dress, dress_all, times};
use crate::agent::files::listing::{Facts, Kind, MAX_DEPTH, Stamp, TreePath};
use crate::agent::files::walk::{WalkError, facts_at, facts_of_open, walk};
use crate::agent::files::{TreeKind, threads};
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, Uid, chmodat, chownat, fallocate, ftruncate,
    futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use thiserror::Error;

/// Why an archive can't be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The tree can't be opened.
    #[error("open the tree {root:?}")]
    Open {
        /// Its root.
        root: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It is no archive.
    #[error("understand the archive")]
    Decode(#[from] DecodeError),
    /// It is one of a tree of another kind.
    #[error("the archive is of a tree of another kind")]
    OtherKind,
    /// What is in the tree can't be listed.
    #[error("list what is in the tree")]
    List(#[from] WalkError),
    /// Something can't be made as it should be.
    #[error("make {path:?}")]
    Make {
        /// Path in the tree.
        path: TreePath,
        /// Why.
        #[source]
        source: Errno,
    },
    /// An entry that no archive of ours has.
    #[error("refuse the entry {path:?}: {reason}")]
    Refused {
        /// Path in the tree.
        path: TreePath,
        /// What is wrong.
        reason: Refusal,
    },
    /// Too many bytes.
    #[error("the archive unpacks to more than {0} bytes")]
    TooMuch(u64),
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It is the root, and no directory.
    #[error("the root of a tree is a directory")]
    Root,
    /// A device that a tree of this kind can't have.
    #[error("a device is not moved there")]
    Device,
    /// It should be there and is not, or is something else.
    #[error("what it changes is not there")]
    Missing,
    /// Bytes without a file, or beyond its end.
    #[error("it has bytes that belong to no file")]
    Bytes,
}

/// Brings the tree at `root` up to the archive `input`. At most `limit` bytes of content.
///
/// # Errors
/// Where the archive is not acceptable or something can't be written. The tree is half done then.
pub fn unpack<R: Read>(root: &Path, kind: TreeKind, input: R, limit: u64) -> Result<(), UnpackError> {
    let mut archive = Decoder::open(input)?;
    if archive.kind != kind {
        return Err(UnpackError::OtherKind);
    }
    let tree = Beneath::open(root).map_err(|source| UnpackError::Open { root: root.to_owned(), source })?;
    let mut unpacker = Unpacker {
        tree,
        kind,
        before: HashSet::new(),
        times: HashMap::new(),
        writing: None,
        dressing: None,
        room: limit,
        limit,
        scratch: attributes::Scratch::default(),
    };
    std::thread::scope(|scope| {
        let (files, queue) = mpsc::sync_channel(1);
        unpacker.dressing = Some(Dressing::new(files));
        let dressing = scope.spawn(move || dress_all(&queue));
        let made = unpacker.all(&mut archive);
        unpacker.dressing = None;
        let dressed = dressing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Where that has failed, this could not go on.
        dressed.map_err(not_made).and(made)?;
        unpacker.finish()
    })
}

struct Unpacker {
    tree: Beneath,
    kind: TreeKind,
    /// What was there and the archive has not brought.
    before: HashSet<TreePath>,
    /// Times of directories, which are set last, because what happens in them changes them.
    times: HashMap<TreePath, Stamp>,
    writing: Option<Writing>,
    /// Takes files that have all their content.
    dressing: Option<Dressing>,
    room: u64,
    limit: u64,
    scratch: attributes::Scratch,
}

/// A file that takes data.
struct Writing {
    file: Undressed,
    size: u64,
}

type Made = Result<(), UnpackError>;

impl Unpacker {
    fn all<R: Read>(&mut self, archive: &mut Decoder<R>) -> Made {
        if archive.base && self.kind == TreeKind::Volume {
            self.note_what_is_there()?;
        }
        while let Some(record) = archive.record()? {
            self.record(record, archive.data())?;
        }
        self.end_file()?;
        self.dressing.as_mut().map_or(Ok(()), Dressing::flush).map_err(not_made)
    }

    /// An archive of all of a volume leaves nothing there that it has not brought.
    fn note_what_is_there(&mut self) -> Made {
        let there = walk(&mut self.tree, threads(false), None)?;
        self.before = (1..there.nodes.len()).map(|id| there.path(id as u32)).collect();
        Ok(())
    }

    fn record(&mut self, record: Record, data: &[u8]) -> Made {
        match record {
            Record::Data { offset, length } => return self.data(offset, &data[..length]),
            Record::Zeros { offset, length } => return self.zeros(offset, length),
            _ => self.end_file()?,
        }
        match record {
            Record::Remove { path } => {
                let Some((parent, name)) = path.split() else { return Err(refused(&path, Refusal::Root)) };
                match self.touch(&parent) {
                    Ok(()) => self.remove(&parent, name).map_err(failed(&path)),
                    Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                    Err(errno) => Err(failed(&path)(errno)),
                }
            }
            Record::Link { path, to } => {
                self.before.remove(&path);
                self.link(&path, &to)
            }
            Record::Node { path, keep, shape, attributes } => {
                self.before.remove(&path);
                match shape {
                    Shape::Directory { clear } => self.directory(path, keep, clear, &attributes),
                    Shape::File { size } => self.file(path, keep, size, attributes),
                    other => self.other(&path, keep, other, &attributes),
                }
            }
            Record::Data { .. } | Record::Zeros { .. } => Ok(()),
        }
    }

    fn directory(&mut self, path: TreePath, keep: bool, clear: bool, attributes: &Attributes) -> Made {
        let failed = failed(&path);
        let directory = match path.split() {
            None => self.tree.directory(&path).and_then(|root| open_directory(root, b".")).map_err(&failed)?,
            Some((parent, name)) => {
                let facts = self.facts(&parent, name).map_err(&failed)?;
                let is_there = facts.is_some_and(|facts| facts.kind == Kind::Directory);
                if keep && !is_there {
                    return Err(refused(&path, Refusal::Missing));
                }
                if !is_there {
                    self.touch(&parent).map_err(&failed)?;
                    if facts.is_some() {
                        self.remove(&parent, name).map_err(&failed)?;
                    }
                    let parent = self.tree.directory(&parent).map_err(&failed)?;
                    mkdirat(parent, name, Mode::RWXU).map_err(&failed)?;
                }
                let parent = self.tree.directory(&parent).map_err(&failed)?;
                open_directory(parent, name).map_err(&failed)?
            }
        };
        if clear {
            self.tree.forget();
            clear_directory(directory.as_fd(), MAX_DEPTH).map_err(&failed)?;
        }
        let before = facts_of_open(directory.as_fd()).map_err(&failed)?;
        dress(directory.as_fd(), &before, attributes, &mut self.scratch).map_err(&failed)?;
        self.times.insert(path, attributes.modified);
        Ok(())
    }

    fn file(&mut self, path: TreePath, keep: bool, size: u64, attributes: Attributes) -> Made {
        let failed = failed(&path);
        let Some((parent, name)) = path.split() else { return Err(refused(&path, Refusal::Root)) };
        let there = self.facts(&parent, name).map_err(&failed)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let (file, before) = match there {
            Some(facts) if facts.kind == Kind::File && (keep || facts.links == 1) => {
                let parent = self.tree.directory(&parent).map_err(&failed)?;
                let file = openat(parent, name, flags, Mode::empty()).map_err(&failed)?;
                if !keep && facts.size > 0 {
                    ftruncate(&file, 0).map_err(&failed)?;
                }
                (file, facts)
            }
            _ if keep => return Err(refused(&path, Refusal::Missing)),
            there => {
                self.touch(&parent).map_err(&failed)?;
                if there.is_some() {
                    self.remove(&parent, name).map_err(&failed)?;
                }
                let parent = self.tree.directory(&parent).map_err(&failed)?;
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                let file = openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(&failed)?;
                let facts = facts_of_open(file.as_fd()).map_err(&failed)?;
                (file, facts)
            }
        };
        // Beyond what is there, it is a hole.
        if !keep || there.is_none_or(|facts| facts.size != size) {
            ftruncate(&file, size).map_err(&failed)?;
        }
        self.writing = Some(Writing { file: Undressed { path, file, before, attributes }, size });
        Ok(())
    }

    fn data(&mut self, offset: u64, data: &[u8]) -> Made {
        let length = data.len() as u64;
        let Some(writing) = self.writing.as_ref().filter(|writing| fits(writing, offset, length)) else {
            return Err(self.no_file());
        };
        self.room = self.room.checked_sub(length).ok_or(UnpackError::TooMuch(self.limit))?;
        let (mut rest, mut at) = (data, offset);
        while !rest.is_empty() {
            match pwrite(&writing.file.file, rest, at) {
                Ok(count) => {
                    rest = &rest[count..];
                    at += count as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(&writing.file.path)(errno)),
            }
        }
        Ok(())
    }

    fn zeros(&mut self, offset: u64, length: u64) -> Made {
        let Some(writing) = self.writing.as_ref().filter(|writing| fits(writing, offset, length)) else {
            return Err(self.no_file());
        };
        if length == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&writing.file.file, flags, offset, length) {
            Ok(()) => Ok(()),
            // A file system without holes.
            Err(Errno::OPNOTSUPP) => {
                let block = vec![0; 64 << 10];
                let (mut at, end) = (offset, offset + length);
                while at < end {
                    let piece = usize::try_from(end - at).map_or(block.len(), |left| left.min(block.len()));
                    self.data(at, &block[..piece])?;
                    at += piece as u64;
                }
                Ok(())
            }
            Err(errno) => Err(failed(&writing.file.path)(errno)),
        }
    }

    fn no_file(&self) -> UnpackError {
        let path = self.writing.as_ref().map(|writing| writing.file.path.clone()).unwrap_or_default();
        refused(&path, Refusal::Bytes)
    }

    /// All data of a file is there: it gets its attributes.
    fn end_file(&mut self) -> Made {
        let ended = self.writing.take().zip(self.dressing.as_mut());
        ended.map_or(Ok(()), |(writing, dressing)| dressing.add(writing.file)).map_err(not_made)
    }

    fn link(&mut self, path: &TreePath, to: &TreePath) -> Made {
        let failed = failed(path);
        let (Some((parent, name)), Some((to_parent, to_name))) = (path.split(), to.split()) else {
            return Err(refused(path, Refusal::Root));
        };
        let file = self.facts(&to_parent, to_name).map_err(&failed)?;
        let Some(file) = file.filter(|file| file.kind != Kind::Directory) else {
            return Err(refused(path, Refusal::Missing));
        };
        if let Some(there) = self.facts(&parent, name).map_err(&failed)? {
            if there.id == file.id {
                return Ok(());
            }
            self.touch(&parent).map_err(&failed)?;
            self.remove(&parent, name).map_err(&failed)?;
        }
        self.touch(&parent).map_err(&failed)?;
        let from = self.tree.directory(&to_parent).and_then(|from| open_directory(from, b".")).map_err(&failed)?;
        let parent = self.tree.directory(&parent).map_err(&failed)?;
        linkat(&from, to_name, parent, name, AtFlags::empty()).map_err(&failed)
    }

    /// What is neither a directory nor a regular file.
    fn other(&mut self, path: &TreePath, keep: bool, shape: Shape, attributes: &Attributes) -> Made {
        let failed = failed(path);
        let Some((parent, name)) = path.split() else { return Err(refused(path, Refusal::Root)) };
        let wanted = match shape {
            Shape::Symlink { .. } => Kind::Symlink,
            Shape::Fifo => Kind::Fifo,
            Shape::Socket => Kind::Socket,
            Shape::Character { .. } => Kind::Character,
            Shape::Block { .. } => Kind::Block,
            Shape::Directory { .. } | Shape::File { .. } => return Err(refused(path, Refusal::Missing)),
        };
        let there = self.facts(&parent, name).map_err(&failed)?;
        if keep {
            if there.is_none_or(|facts| facts.kind != wanted) {
                return Err(refused(path, Refusal::Missing));
            }
        } else {
            self.touch(&parent).map_err(&failed)?;
            if there.is_some() {
                self.remove(&parent, name).map_err(&failed)?;
            }
            let kind = self.kind;
            let parent = self.tree.directory(&parent).map_err(&failed)?;
            make(parent, name, kind, &shape).map_err(|refusal| match refusal {
                Ok(reason) => refused(path, reason),
                Err(errno) => failed(errno),
            })?;
        }
        let parent = self.tree.directory(&parent).map_err(&failed)?;
        let way = way_to(parent, name);
        let owner = (Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)));
        chownat(parent, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)?;
        if wanted != Kind::Symlink {
            // What is there is no link, and nobody else is at work here.
            chmodat(parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty()).map_err(&failed)?;
        }
        attributes::File::At(&way).write(&attributes.extended, &mut self.scratch).map_err(&failed)?;
        utimensat(parent, name, &times(attributes.modified), AtFlags::SYMLINK_NOFOLLOW).map_err(&failed)
    }

    /// What is there under a name; none where nothing is.
    fn facts(&mut self, parent: &TreePath, name: &[u8]) -> Result<Option<Facts>, Errno> {
        match facts_at(self.tree.directory(parent)?, name) {
            Ok(facts) => Ok(Some(facts)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// A directory is about to be changed: its time is to be what it was, unless the archive says otherwise.
    fn touch(&mut self, directory: &TreePath) -> Result<(), Errno> {
        if !self.times.contains_key(directory) {
            let facts = facts_of_open(self.tree.directory(directory)?)?;
            self.times.insert(directory.clone(), facts.modified);
        }
        Ok(())
    }

    /// Removes what is there under this name, if anything, with all that is in it.
    fn remove(&mut self, parent: &TreePath, name: &[u8]) -> Result<(), Errno> {
        let directory = self.tree.directory(parent)?;
        match unlinkat(directory, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        let gone = open_directory(directory, name)?;
        clear_directory(gone.as_fd(), MAX_DEPTH)?;
        unlinkat(directory, name, AtFlags::REMOVEDIR)?;
        self.tree.forget();
        Ok(())
    }

    fn finish(mut self) -> Made {
        let mut leftovers: Vec<TreePath> = self.before.drain().collect();
        // Directories come before what is in them, which goes with them.
        leftovers.sort_unstable();
        for path in leftovers {
            let Some((parent, name)) = path.split() else { continue };
            match self.touch(&parent).and_then(|()| self.remove(&parent, name)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(&path)(errno)),
            }
        }
        for (path, modified) in std::mem::take(&mut self.times) {
            match self.tree.directory(&path).and_then(|directory| futimens(directory, &times(modified))) {
                // It was removed after something in it had been.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(failed(&path)(errno)),
            }
        }
        Ok(())
    }
}

fn fits(writing: &Writing, offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= writing.size)
}

/// Makes what is neither a directory nor a regular file.
fn make(parent: BorrowedFd<'_>, name: &[u8], kind: TreeKind, shape: &Shape) -> Result<(), Result<Refusal, Errno>> {
    let node = |kind, device| mknodat(parent, name, kind, Mode::RUSR, device).map_err(Err);
    match shape {
        Shape::Symlink { target } => symlinkat(target.as_slice(), parent, name).map_err(Err),
        Shape::Fifo => node(FileType::Fifo, 0),
        Shape::Socket => node(FileType::Socket, 0),
        // Character device 0:0 is a whiteout of overlayfs.
        Shape::Character { device } if kind == TreeKind::Layer && *device != (0, 0) => {
            node(FileType::CharacterDevice, makedev(device.0, device.1))
        }
        Shape::Block { device } if kind == TreeKind::Layer => node(FileType::BlockDevice, makedev(device.0, device.1)),
        _ => Err(Ok(Refusal::Device)),
    }
}

/// Removes all that is in a directory. Other mounts are an error, and more than so many directories in each other.
fn clear_directory(directory: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    let depth = depth.checked_sub(1).ok_or(Errno::NAMETOOLONG)?;
    let own = open_directory(directory, b".")?;
    let mut buffer: Vec<u8> = Vec::with_capacity(8 << 10);
    let mut names = Vec::new();
    let mut entries = RawDir::new(&own, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    for (name, kind) in names {
        if kind == FileType::Directory {
            let below = open_directory(directory, name.to_bytes())?;
            clear_directory(below.as_fd(), depth)?;
            unlinkat(directory, &name, AtFlags::REMOVEDIR)?;
        } else {
            match unlinkat(directory, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

fn refused(path: &TreePath, reason: Refusal) -> UnpackError {
    UnpackError::Refused { path: path.clone(), reason }
}

fn not_made((path, source): Failed) -> UnpackError {
    UnpackError::Make { path, source }
}

fn failed(path: &TreePath) -> impl Fn(Errno) -> UnpackError + use<> {
    let path = path.clone();
    move |source| UnpackError::Make { path: path.clone(), source }
}
