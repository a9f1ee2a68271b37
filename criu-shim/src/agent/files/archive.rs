//! The archive of one tree in one round: records one after the other, bounded before they are decoded.
//!
//! It begins with [`MAGIC`], the tree's kind and whether it is all of the tree; then names that are gone, then nodes,
//! directories before what is in them, each file followed by its data; then an end. Numbers are little endian. What is not
//! mentioned stays as it is. `docs/decisions/0005-files-before-the-freeze.md` has the reasons.

use crate::agent::files::TreeKind;
use crate::agent::files::attributes::{Extended, MAX_VALUE};
use crate::agent::files::listing::{BLOCK, Stamp, TreePath};
use std::io::Read;
use thiserror::Error;

/// First bytes; the last of them is the version.
const MAGIC: [u8; 8] = *b"TREEROU\x01";
/// Longest path or target of a link, bytes.
const MAX_PATH: usize = 16 << 10;
/// Most extended attributes of one file: their names fit into 64 KiB.
const MAX_EXTENDED: u16 = 16 << 10;
/// Longest data record, bytes.
pub const MAX_DATA: usize = BLOCK;

const REMOVE: u8 = 1;
const NODE: u8 = 2;
const LINK: u8 = 3;
const DATA: u8 = 4;
const ZERO: u8 = 5;
const END: u8 = 6;

/// Owner, mode, times and extended attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permissions with setuid, setgid and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub modified: Stamp,
    /// Extended attributes.
    pub extended: Extended,
}

/// What a node is, beside its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A directory. One that is there stays; what is in it goes if `clear` says so.
    Directory {
        /// Nothing that is in it may stay.
        clear: bool,
    },
    /// A regular file, of this length once the data records after it are written.
    File {
        /// Length, bytes.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Where it leads.
        target: Vec<u8>,
    },
    /// A FIFO.
    Fifo,
    /// The name of a socket.
    Socket,
    /// A character device.
    Character {
        /// Major and minor number.
        device: (u32, u32),
    },
    /// A block device.
    Block {
        /// Major and minor number.
        device: (u32, u32),
    },
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The name is gone, with all below it.
    Remove {
        /// Where.
        path: TreePath,
    },
    /// A node.
    Node {
        /// Where.
        path: TreePath,
        /// The tree has it: only its attributes are set, and of a file what follows. Otherwise it is made anew.
        keep: bool,
        /// What it is.
        shape: Shape,
        /// Its attributes.
        attributes: Attributes,
    },
    /// Another name of a file that is no directory.
    Link {
        /// Where.
        path: TreePath,
        /// A name that it has.
        to: TreePath,
    },
    /// Bytes of the file that was named last. They are in the decoder.
    Data {
        /// Where they begin, bytes.
        offset: u64,
        /// How many.
        length: usize,
    },
    /// Zeros of the file that was named last.
    Zeros {
        /// Where they begin, bytes.
        offset: u64,
        /// How many.
        length: u64,
    },
}

/// Why bytes are no archive.
#[derive(Debug, Error)]
pub enum DecodeError {
    /// They can't be read, or end too early.
    #[error("read the archive")]
    Read(#[source] std::io::Error),
    /// They begin with something else.
    #[error("it does not begin as an archive of this version does")]
    Magic,
    /// A record that there is not.
    #[error("it has a record of unknown kind {0}")]
    Record(u8),
    /// A path that leaves the tree, or is too long.
    #[error("it names a path that is none in a tree")]
    Path,
    /// A value that can't be.
    #[error("it has a record with a value that can't be")]
    Value,
    /// Bytes after its end.
    #[error("it goes on after its end")]
    Trailing,
}

/// Writes the beginning of an archive.
pub fn begin(out: &mut Vec<u8>, kind: TreeKind, base: bool) {
    out.extend_from_slice(&MAGIC);
    out.extend([u8::from(kind == TreeKind::Volume), u8::from(base)]);
}

/// Writes its end.
pub fn end(out: &mut Vec<u8>) {
    out.push(END);
}

/// Writes that a name is gone.
pub fn remove(out: &mut Vec<u8>, path: &TreePath) {
    out.push(REMOVE);
    bytes(out, path.bytes());
}

/// Writes a node.
pub fn node(out: &mut Vec<u8>, path: &TreePath, keep: bool, shape: &Shape, attributes: &Attributes) {
    out.push(NODE);
    bytes(out, path.bytes());
    out.push(u8::from(keep));
    match shape {
        Shape::Directory { clear } => out.extend([0, u8::from(*clear)]),
        Shape::File { size } => {
            out.push(1);
            out.extend(size.to_le_bytes());
        }
        Shape::Symlink { target } => {
            out.push(2);
            bytes(out, target);
        }
        Shape::Fifo => out.push(3),
        Shape::Socket => out.push(4),
        Shape::Character { device } => numbers(out, 5, *device),
        Shape::Block { device } => numbers(out, 6, *device),
    }
    for number in [attributes.mode, attributes.uid, attributes.gid, attributes.modified.nanos] {
        out.extend(number.to_le_bytes());
    }
    out.extend(attributes.modified.seconds.to_le_bytes());
    out.extend((attributes.extended.len() as u32).to_le_bytes());
    for (name, value) in &attributes.extended {
        bytes(out, name);
        bytes(out, value);
    }
}

/// Writes that a file has another name.
pub fn link(out: &mut Vec<u8>, path: &TreePath, to: &TreePath) {
    out.push(LINK);
    bytes(out, path.bytes());
    bytes(out, to.bytes());
}

/// Writes bytes of the file that was named last, at most [`MAX_DATA`].
pub fn data(out: &mut Vec<u8>, offset: u64, content: &[u8]) {
    out.push(DATA);
    out.extend(offset.to_le_bytes());
    bytes(out, content);
}

/// Writes that the file that was named last has zeros there.
pub fn zeros(out: &mut Vec<u8>, offset: u64, length: u64) {
    out.push(ZERO);
    out.extend(offset.to_le_bytes());
    out.extend(length.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    out.extend((content.len() as u32).to_le_bytes());
    out.extend_from_slice(content);
}

fn numbers(out: &mut Vec<u8>, kind: u8, (major, minor): (u32, u32)) {
    out.push(kind);
    out.extend(major.to_le_bytes());
    out.extend(minor.to_le_bytes());
}

/// Reads an archive.
#[derive(Debug)]
pub struct Decoder<R> {
    input: R,
    /// What it is an archive of.
    pub kind: TreeKind,
    /// Whether it is all of the tree.
    pub base: bool,
    data: Vec<u8>,
}

impl<R: Read> Decoder<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// Where it is another.
    pub fn open(mut input: R) -> Result<Self, DecodeError> {
        let mut head = [0; MAGIC.len() + 2];
        input.read_exact(&mut head).map_err(DecodeError::Read)?;
        let kind = match head[MAGIC.len()] {
            _ if head[..MAGIC.len()] != MAGIC => return Err(DecodeError::Magic),
            0 => TreeKind::Layer,
            1 => TreeKind::Volume,
            _ => return Err(DecodeError::Value),
        };
        let base = flag(head[MAGIC.len() + 1])?;
        Ok(Self { input, kind, base, data: Vec::new() })
    }

    /// Bytes of the data record that was read last.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The next record; none at the end, after which there may be nothing.
    ///
    /// # Errors
    /// Where it is not one that is written here.
    pub fn record(&mut self) -> Result<Option<Record>, DecodeError> {
        Ok(Some(match self.byte()? {
            REMOVE => Record::Remove { path: self.path()? },
            NODE => self.node()?,
            LINK => Record::Link { path: self.path()?, to: self.path()? },
            DATA => {
                let offset = self.long()?;
                let mut data = std::mem::take(&mut self.data);
                self.bytes_into(MAX_DATA, &mut data)?;
                self.data = data;
                offset.checked_add(self.data.len() as u64).ok_or(DecodeError::Value)?;
                Record::Data { offset, length: self.data.len() }
            }
            ZERO => {
                let (offset, length) = (self.long()?, self.long()?);
                offset.checked_add(length).ok_or(DecodeError::Value)?;
                Record::Zeros { offset, length }
            }
            END => {
                let mut more = [0];
                return match self.input.read(&mut more) {
                    Ok(0) => Ok(None),
                    Ok(_) => Err(DecodeError::Trailing),
                    Err(error) => Err(DecodeError::Read(error)),
                };
            }
            other => return Err(DecodeError::Record(other)),
        }))
    }

    fn node(&mut self) -> Result<Record, DecodeError> {
        let path = self.path()?;
        let keep = flag(self.byte()?)?;
        let shape = match self.byte()? {
            0 => Shape::Directory { clear: flag(self.byte()?)? },
            1 => Shape::File { size: self.long()? },
            2 => Shape::Symlink { target: self.link_target()? },
            3 => Shape::Fifo,
            4 => Shape::Socket,
            5 => Shape::Character { device: (self.number()?, self.number()?) },
            6 => Shape::Block { device: (self.number()?, self.number()?) },
            _ => return Err(DecodeError::Value),
        };
        let (mode, uid, gid, nanos) = (self.number()?, self.number()?, self.number()?, self.number()?);
        let seconds = self.long()?.cast_signed();
        if mode > 0o7777 || nanos >= 1_000_000_000 {
            return Err(DecodeError::Value);
        }
        let count = self.number()?;
        if count > u32::from(MAX_EXTENDED) {
            return Err(DecodeError::Value);
        }
        let mut extended = Extended::new();
        for _ in 0..count {
            let name = self.bytes(255)?;
            if name.is_empty() || name.contains(&0) {
                return Err(DecodeError::Value);
            }
            extended.push((name, self.bytes(MAX_VALUE)?));
        }
        let attributes = Attributes { mode, uid, gid, modified: Stamp { seconds, nanos }, extended };
        Ok(Record::Node { path, keep, shape, attributes })
    }

    fn path(&mut self) -> Result<TreePath, DecodeError> {
        TreePath::parse(self.bytes(MAX_PATH)?).ok_or(DecodeError::Path)
    }

    fn link_target(&mut self) -> Result<Vec<u8>, DecodeError> {
        let target = self.bytes(MAX_PATH)?;
        if target.is_empty() || target.contains(&0) { Err(DecodeError::Value) } else { Ok(target) }
    }

    fn bytes(&mut self, most: usize) -> Result<Vec<u8>, DecodeError> {
        let mut content = Vec::new();
        self.bytes_into(most, &mut content)?;
        Ok(content)
    }

    fn bytes_into(&mut self, most: usize, content: &mut Vec<u8>) -> Result<(), DecodeError> {
        let length = self.number()? as usize;
        if length > most {
            return Err(DecodeError::Value);
        }
        content.resize(length, 0);
        self.input.read_exact(content).map_err(DecodeError::Read)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).map_err(DecodeError::Read)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> Result<u32, DecodeError> {
        let mut number = [0; 4];
        self.input.read_exact(&mut number).map_err(DecodeError::Read)?;
        Ok(u32::from_le_bytes(number))
    }

    fn long(&mut self) -> Result<u64, DecodeError> {
        let mut number = [0; 8];
        self.input.read_exact(&mut number).map_err(DecodeError::Read)?;
        Ok(u64::from_le_bytes(number))
    }
}

fn flag(byte: u8) -> Result<bool, DecodeError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> TreePath {
        TreePath::parse(text.as_bytes().to_vec()).expect("a path")
    }

    fn written() -> Vec<u8> {
        let mut out = Vec::new();
        begin(&mut out, TreeKind::Volume, true);
        remove(&mut out, &path("gone"));
        let attributes = Attributes {
            mode: 0o4751,
            uid: 3_000_000_000,
            gid: 7,
            modified: Stamp { seconds: -1, nanos: 5 },
            extended: vec![(b"user.a".to_vec(), b"\0=\n".to_vec())],
        };
        node(&mut out, &path(""), true, &Shape::Directory { clear: false }, &attributes);
        node(&mut out, &path("f"), false, &Shape::File { size: 9 }, &attributes);
        data(&mut out, 3, b"abc");
        zeros(&mut out, 6, 3);
        link(&mut out, &path("g"), &path("f"));
        end(&mut out);
        out
    }

    fn read(bytes: &[u8]) -> Result<Vec<Record>, DecodeError> {
        let mut decoder = Decoder::open(bytes)?;
        let mut records = Vec::new();
        while let Some(record) = decoder.record()? {
            records.push(record);
        }
        Ok(records)
    }

    #[test]
    fn what_is_written_is_read() {
        let records = read(&written()).expect("an archive");
        assert_eq!(records.len(), 6);
        assert!(matches!(&records[2], Record::Node { attributes, keep: false, shape: Shape::File { size: 9 }, .. }
            if attributes.modified == Stamp { seconds: -1, nanos: 5 } && attributes.mode == 0o4751));
        assert_eq!(records[3], Record::Data { offset: 3, length: 3 });
        assert_eq!(records[5], Record::Link { path: path("g"), to: path("f") });
    }

    #[test]
    fn paths_that_leave_the_tree_are_none() {
        for bytes in [&b".."[..], b"a/../b", b"/etc", b"a//b", b"a/", b".", b"a\0b", &[b'x'; 256], &[b'/'; 2]] {
            assert_eq!(TreePath::parse(bytes.to_vec()), None, "{bytes:?}");
        }
        assert!(TreePath::parse(b"a/b \xff".to_vec()).is_some());
    }

    #[test]
    fn an_archive_that_is_cut_or_goes_on_is_refused() {
        let whole = written();
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length} bytes");
        }
        assert!(matches!(read(&[&whole[..], b"x"].concat()), Err(DecodeError::Trailing)));
    }

    proptest! {
        #[test]
        fn damage_never_panics(position in 0_usize..200, byte: u8) {
            let mut bytes = written();
            let length = bytes.len();
            bytes[position % length] = byte;
            read(&bytes).ok();
        }
    }
}
