//! Lists a tree, while somebody may be changing it.
//!
//! What is gone when it is looked at was never there: whoever took it away has changed its directory, which the next look
//! sees. Other mounts in the tree are listed as the directories they cover, without what is in them.

use crate::agent::files::beneath::Beneath;
use crate::agent::files::listing::{Facts, FileId, Kind, Listing, MAX_DEPTH, Node, NodeId, Stamp, TreePath};
use crate::agent::files::watched::Watched;
use rustix::fs::{
    AtFlags, FileType, RawDir, SeekFrom, Statx, StatxAttributes, StatxFlags, StatxTimestamp, seek, statx,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use thiserror::Error;

/// Most names of a tree. One that has more is no state of an application, and their list would not fit into the agent.
const MAX_NODES: usize = 4_000_000;
/// Bytes of directory entries that are read at once.
const ENTRIES: usize = 32 << 10;
/// For how many directories another thread is worth it.
const WORTH_A_THREAD: usize = 8;
/// What is asked of each file.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// Why a tree can't be listed.
#[derive(Debug, Error)]
pub enum WalkError {
    /// A directory can't be listed, or a name can't be looked at.
    #[error("look at {path:?}")]
    Look {
        /// Path in the tree.
        path: TreePath,
        /// Why.
        #[source]
        source: Errno,
    },
    /// Too many names.
    #[error("the tree has more than {MAX_NODES} names")]
    TooMany,
    /// Directories in directories, too many of them.
    #[error("the tree is more than {MAX_DEPTH} directories deep, at {path:?}")]
    TooDeep {
        /// Path of one in the tree.
        path: TreePath,
    },
}

/// Lists the tree, by at most so many threads. Every directory is `watched` from before it is listed.
///
/// # Errors
/// Where something that is there can't be looked at.
pub fn walk(tree: &mut Beneath, threads: usize, watched: Option<&Watched>) -> Result<Listing, WalkError> {
    let root = tree.directory(&TreePath::default()).and_then(found_of);
    let root = root.map_err(|source| WalkError::Look { path: TreePath::default(), source })?;
    let mut listing = Listing { nodes: vec![Node::new(0, Box::default(), root.facts)] };
    let (mut level, mut depth) = (0..1, 0);
    while !level.is_empty() {
        if depth > MAX_DEPTH {
            return Err(WalkError::TooDeep { path: listing.path(level.start as NodeId) });
        }
        depth += 1;
        let end = listing.nodes.len();
        let directories: Vec<Directory> = level
            .filter(|at| {
                let node = &listing.nodes[*at];
                // The mark says that it is another mount.
                node.facts.kind == Kind::Directory && !(*at > 0 && node.doubtful)
            })
            .map(|at| Directory { id: at as NodeId, path: listing.path(at as NodeId) })
            .collect();
        for (id, names) in look_into(tree, &directories, threads, watched)? {
            let begin = listing.nodes.len();
            listing.nodes.extend(names);
            if listing.nodes.len() > MAX_NODES {
                return Err(WalkError::TooMany);
            }
            let children = begin as NodeId..listing.nodes.len() as NodeId;
            listing.node_mut(id).into_iter().for_each(|node| node.children = children.clone());
        }
        level = end..listing.nodes.len();
    }
    listing.nodes.iter_mut().for_each(|node| node.doubtful = false);
    Ok(listing)
}

/// A directory that is to be looked into.
#[derive(Debug)]
pub(super) struct Directory {
    /// Its number.
    pub(super) id: NodeId,
    /// Where it is.
    pub(super) path: TreePath,
}

/// The names in each directory, in order.
pub(super) type Names = Vec<(NodeId, Vec<Node>)>;

/// Looks into directories, in their order. Where there are many, several threads do: it is part of the freeze, where a system
/// call for each file is what takes the time.
pub(super) fn look_into(
    tree: &mut Beneath,
    directories: &[Directory],
    threads: usize,
    watched: Option<&Watched>,
) -> Result<Names, WalkError> {
    let threads = threads.min(directories.len() / WORTH_A_THREAD);
    if threads < 2 {
        return look_into_some(tree, directories, watched);
    }
    let failed = |source| WalkError::Look { path: TreePath::default(), source };
    let mut shares = directories.chunks(directories.len().div_ceil(threads));
    let first = shares.next().unwrap_or_default();
    std::thread::scope(|scope| {
        let mut others = Vec::with_capacity(threads);
        for share in shares {
            let mut again = tree.again().map_err(failed)?;
            others.push(scope.spawn(move || look_into_some(&mut again, share, watched)));
        }
        let mut names = look_into_some(tree, first, watched)?;
        for other in others {
            names.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(names)
    })
}

fn look_into_some(
    tree: &mut Beneath,
    directories: &[Directory],
    watched: Option<&Watched>,
) -> Result<Names, WalkError> {
    let mut buffer = Vec::with_capacity(ENTRIES);
    let mut all = Names::with_capacity(directories.len());
    for Directory { id, path } in directories {
        let mut names = Vec::new();
        let listed = tree.directory(path).and_then(|directory| {
            if let Some(watched) = watched {
                watched.mark(directory, facts_of_open(directory)?.id);
            }
            list(directory, *id, &mut names, &mut buffer)
        });
        match listed {
            Ok(()) => {
                names.sort_unstable_by(|one, other| one.name.cmp(&other.name));
                all.push((*id, names));
            }
            Err(errno) if is_gone(errno) => {}
            Err(source) => return Err(WalkError::Look { path: path.clone(), source }),
        }
    }
    Ok(all)
}

/// What was looked at is no longer there, or something else is.
pub fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::STALE)
}

fn list(directory: BorrowedFd<'_>, parent: NodeId, nodes: &mut Vec<Node>, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    // Whoever has listed it before by the same descriptor has left it at its end.
    seek(directory, SeekFrom::Start(0))?;
    let space: &mut [MaybeUninit<u8>] = buffer.spare_capacity_mut();
    let mut entries = RawDir::new(directory, space);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match facts_of(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(Found { facts, is_mount }) => {
                let mut node = Node::new(parent, name.to_bytes().into(), facts);
                node.doubtful = is_mount;
                nodes.push(node);
            }
            Err(errno) if is_gone(errno) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// What there is under a name.
#[derive(Debug)]
pub(super) struct Found {
    /// What the kernel says of it.
    pub(super) facts: Facts,
    /// It is the root of another mount.
    pub(super) is_mount: bool,
}

/// What an open directory is.
pub(super) fn found_of(directory: BorrowedFd<'_>) -> Result<Found, Errno> {
    facts_of(directory, c"", AtFlags::EMPTY_PATH)
}

/// What a name in an open directory is.
pub(super) fn found_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Found, Errno> {
    facts_of(directory, &crate::agent::files::beneath::c_name(name)?, AtFlags::SYMLINK_NOFOLLOW)
}

fn facts_of(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<Found, Errno> {
    let found = statx(directory, name, flags | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC, WANTED)?;
    let is_mount = found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(Found { facts: facts(&found), is_mount })
}

/// What an open file is.
///
/// # Errors
/// Where the kernel does not say.
pub fn facts_of_open(file: BorrowedFd<'_>) -> Result<Facts, Errno> {
    Ok(found_of(file)?.facts)
}

/// What a name in an open directory is.
///
/// # Errors
/// Where nothing is there.
pub fn facts_at(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Facts, Errno> {
    Ok(found_at(directory, name)?.facts)
}

fn facts(found: &Statx) -> Facts {
    let kind = match FileType::from_raw_mode(u32::from(found.stx_mode)) {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice => Kind::Character,
        FileType::BlockDevice => Kind::Block,
        _ => Kind::File,
    };
    let stamp = |time: &StatxTimestamp| Stamp { seconds: time.tv_sec, nanos: time.tv_nsec };
    Facts {
        kind,
        mode: u32::from(found.stx_mode) & 0o7777,
        uid: found.stx_uid,
        gid: found.stx_gid,
        links: found.stx_nlink,
        size: found.stx_size,
        device: (found.stx_rdev_major, found.stx_rdev_minor),
        id: FileId { device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor), inode: found.stx_ino },
        modified: stamp(&found.stx_mtime),
        changed: stamp(&found.stx_ctime),
        born: (found.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| stamp(&found.stx_btime)),
    }
}
