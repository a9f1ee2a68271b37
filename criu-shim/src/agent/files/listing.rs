//! What a tree has: every name, and what the kernel says of it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A time as file systems keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Seconds since 1970.
    pub seconds: i64,
    /// Nanoseconds of that second.
    pub nanos: u32,
}

/// A file, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Device of its file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A FIFO.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device.
    Character,
    /// A block device.
    Block,
}

/// What statx(2) says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Kind.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Length, bytes.
    pub size: u64,
    /// Major and minor number, of a device.
    pub device: (u32, u32),
    /// Which file.
    pub id: FileId,
    /// When its content changed last, or when somebody said so.
    pub modified: Stamp,
    /// When anything of it changed last. Nobody but the kernel sets it.
    pub changed: Stamp,
    /// When it was made, where the file system keeps that. An inode number alone may be that of one that was removed.
    pub born: Option<Stamp>,
}

/// BLAKE3 of a block of a file; all zero for a block of zeros, which need not be read where it is a hole.
pub type Digest = [u8; 32];
/// Digest of a block of zeros.
pub const ZEROS: Digest = [0; 32];
/// Length of the blocks by which large files are compared, bytes: 32 bytes of digest for each are 25 MB for 100 GiB, and a line
/// that is appended to a log sends no more than this.
pub const BLOCK: usize = 128 << 10;
/// The same of small files: a thousand of them with a few changed bytes each are 8 MB and not all of their content. Eight of
/// BLAKE3's chunks, which are what AVX2 takes at once.
pub const FINE: usize = 8 << 10;
/// Longest file that is compared by small blocks when it is sent first, bytes.
const SMALL: u64 = 8 << 20;
/// How long one may grow before it is compared by large blocks, for which it is sent once more, bytes.
const GROWN: u64 = 4 * SMALL;

/// What the target has of a regular file's content, block by block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// Length of a block, bytes; the last may be shorter.
    pub length: usize,
    /// Their digests.
    pub digests: Box<[Digest]>,
}

impl Blocks {
    /// Whether a file that is `size` bytes long now is still compared by them.
    pub fn suit(&self, size: u64) -> bool {
        self.length == BLOCK || size <= GROWN
    }

    /// Length of the blocks by which a file of `size` bytes is compared, bytes.
    pub fn length_for(size: u64) -> usize {
        if size <= SMALL { FINE } else { BLOCK }
    }
}

/// Number of a node in its listing. The root is 0.
pub type NodeId = u32;

/// One name of a tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// The directory it is in; the root is its own.
    pub parent: NodeId,
    /// The name there, no path; empty for the root.
    pub name: Box<[u8]>,
    /// What it is.
    pub facts: Facts,
    /// Names in it, in order.
    pub children: Range<NodeId>,
    /// It may have changed since, or may yet, without its facts showing it.
    pub doubtful: bool,
    /// It was made so recently that one made in its place may look the same.
    pub young: bool,
    /// It was gone when it was to be sent.
    pub unsent: bool,
    /// What the target has of a regular file's content, where that is known.
    pub blocks: Option<Arc<Blocks>>,
}

impl Node {
    /// A name of which nothing has been sent.
    pub fn new(parent: NodeId, name: Box<[u8]>, facts: Facts) -> Self {
        Self { parent, name, facts, children: 0..0, doubtful: false, young: false, unsent: false, blocks: None }
    }

    /// Whether overlayfs means by it that a name of the layers below is deleted.
    pub fn is_whiteout(&self) -> bool {
        self.facts.kind == Kind::Character && self.facts.device == (0, 0)
    }
}

/// A tree: directories before what is in them, and what is in one directory together, in order of names.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The nodes.
    pub nodes: Vec<Node>,
}

impl Listing {
    /// The node of this number.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id as usize)
    }

    /// The node of this number.
    pub fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize)
    }

    /// The nodes in a directory.
    pub fn children(&self, directory: &Node) -> &[Node] {
        self.nodes.get(directory.children.start as usize..directory.children.end as usize).unwrap_or(&[])
    }

    /// The path of a node: names with slashes between them, empty for the root.
    pub fn path(&self, id: NodeId) -> TreePath {
        let (mut names, mut at) = (Vec::new(), id);
        while at != 0 {
            let Some(node) = self.node(at) else { break };
            names.push(&*node.name);
            at = node.parent;
        }
        names.reverse();
        TreePath(names.join(&b'/'))
    }

    /// The node at a path.
    pub fn find(&self, path: &TreePath) -> Option<NodeId> {
        let mut at = 0;
        for name in path.names() {
            let directory = self.node(at)?;
            let place = self.children(directory).binary_search_by(|node| (*node.name).cmp(name)).ok()?;
            at = directory.children.start + NodeId::try_from(place).ok()?;
        }
        Some(at)
    }
}

/// A path in a tree: names with slashes between them. Empty for the root.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreePath(Vec<u8>);

/// Longest path, bytes. More than PATH_MAX, because names are used one by one.
const MAX_PATH: usize = 16 << 10;
/// Most names of a path: each directory on the way to what is used is open meanwhile.
pub const MAX_DEPTH: usize = 256;
/// Longest name, bytes.
const MAX_NAME: usize = 255;

impl TreePath {
    /// Takes bytes for a path; `None` where they could name anything but something below the root, or more than [`MAX_DEPTH`] deep.
    pub fn parse(bytes: Vec<u8>) -> Option<Self> {
        let good = |name: &[u8]| {
            !matches!(name, b"" | b"." | b"..")
                && name.len() <= MAX_NAME
                && !name.contains(&0)
                && bytes.len() <= MAX_PATH
        };
        let depth = bytes.iter().filter(|byte| **byte == b'/').count() + 1;
        let is_path = depth <= MAX_DEPTH && bytes.split(|byte| *byte == b'/').all(good);
        (bytes.is_empty() || is_path).then_some(Self(bytes))
    }

    /// Its names, from the root.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory that it is in, and its name there. The root has none.
    pub fn split(&self) -> Option<(TreePath, &[u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => Some((Self(self.0[..at].to_vec()), &self.0[at + 1..])),
            None => Some((Self::default(), &self.0)),
        }
    }

    /// A name in it. The caller has the name from a directory.
    pub fn join(&self, name: &[u8]) -> Self {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self(bytes)
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "\"{}\"", self.0.escape_ascii())
    }
}
