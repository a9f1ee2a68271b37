//! A tar becomes a tree again, equal to the one it was made of.
//!
//! The archive counts as hostile: only kinds and names that [`pack`](super::pack) writes are taken, each name once, no
//! name passes through a link, and count and size are bounded. Directories that are there stay (a volume's
//! subdirectory may be mounted somewhere); files of a volume are rewritten in place for the same reason.

use crate::agent::files::{OPAQUE, PAX_MTIME, PAX_XATTR, TreeKind, WHITEOUT, from_hex};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, UTIME_OMIT};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, Entry, EntryType};
use thiserror::Error;

/// Most entries of one archive.
const MAX_ENTRIES: usize = 1_000_000;
/// Longest name, bytes; PATH_MAX.
const MAX_PATH: usize = 4096;

/// Why an archive can't be unpacked.
#[derive(Debug, Error)]
pub enum UnpackError {
    /// The archive can't be read.
    #[error("read the archive")]
    Read(#[source] std::io::Error),
    /// A file can't be written.
    #[error("write {path:?}")]
    Write {
        /// Path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An entry that no archive of ours has.
    #[error("refuse the entry {path:?}: {reason}")]
    Refused {
        /// Path in the tree.
        path: PathBuf,
        /// What is wrong.
        reason: Refusal,
    },
    /// Too many entries.
    #[error("the archive has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// Too many bytes.
    #[error("the archive unpacks to more than {0} bytes")]
    TooMuch(u64),
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Absolute, has `..`, is too long or empty.
    #[error("its name leaves the tree")]
    Name,
    /// The name was there before.
    #[error("its name comes twice")]
    Twice,
    /// A kind that is never packed.
    #[error("it is of a kind that is not moved")]
    Kind,
    /// A PAX record that is never written.
    #[error("it has a PAX record that is not known")]
    Pax,
    /// Its parent is no directory.
    #[error("its parent is not a directory")]
    Parent,
    /// A hard link to something that the archive has not brought.
    #[error("it is a hard link to what the archive did not bring")]
    Link,
}

/// Makes the tree at `root` equal to the one that was packed (for a layer: applies it). At most `limit` bytes of content.
///
/// # Errors
/// Where the archive is not acceptable or something can't be written. The tree is half done then.
pub fn unpack<R: Read>(root: &Path, kind: TreeKind, input: R, limit: u64) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker { root, kind, seen: HashSet::new(), directories: Vec::new(), room: limit, limit };
    let mut archive = Archive::new(input);
    for (count, entry) in archive.entries().map_err(UnpackError::Read)?.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(UnpackError::TooMany);
        }
        unpacker.entry(entry.map_err(UnpackError::Read)?)?;
    }
    if kind == TreeKind::Volume {
        unpacker.remove_unseen(Path::new(""))?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root: &'a Path,
    kind: TreeKind,
    seen: HashSet<PathBuf>,
    /// Directories whose times are set last, because their content changes them.
    directories: Vec<(PathBuf, Timespec)>,
    room: u64,
    limit: u64,
}

struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timespec,
    extended: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), UnpackError> {
        let raw = entry.path_bytes().into_owned();
        let relative = relative_path(&raw)?;
        let refuse = |reason| UnpackError::Refused { path: relative.clone(), reason };
        if !self.seen.insert(relative.clone()) {
            return Err(refuse(Refusal::Twice));
        }
        self.check_parent(&relative)?;
        if self.kind == TreeKind::Layer && self.marker(&relative)? {
            return Ok(());
        }
        let attributes = attributes(&mut entry, &relative)?;
        let path = self.root.join(&relative);
        match entry.header().entry_type() {
            EntryType::Directory => {
                self.directory(&relative)?;
                self.apply(&relative, &attributes)?;
                self.directories.push((relative, attributes.mtime));
                return Ok(());
            }
            EntryType::Regular => {
                self.file(&relative, &mut entry)?;
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| refuse(Refusal::Link))?.into_owned();
                self.remove(&relative)?;
                std::os::unix::fs::symlink(OsStr::from_bytes(&target), &path).map_err(failed(&relative))?;
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| refuse(Refusal::Link))?.into_owned();
                let target = relative_path(&target)?;
                if !self.seen.contains(&target) || target == relative {
                    return Err(refuse(Refusal::Link));
                }
                self.remove(&relative)?;
                return std::fs::hard_link(self.root.join(&target), &path).map_err(failed(&relative));
            }
            kind @ (EntryType::Fifo | EntryType::Char | EntryType::Block) => {
                let (kind, device) = match kind {
                    EntryType::Fifo => (FileType::Fifo, 0),
                    _ if self.kind == TreeKind::Volume => return Err(refuse(Refusal::Kind)),
                    kind => {
                        let number = |number: std::io::Result<Option<u32>>| number.ok().flatten().unwrap_or(0);
                        let major = number(entry.header().device_major());
                        let device = rustix::fs::makedev(major, number(entry.header().device_minor()));
                        // Character device 0:0 is a whiteout of overlayfs.
                        if device == 0 {
                            return Err(refuse(Refusal::Kind));
                        }
                        let kind =
                            if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
                        (kind, device)
                    }
                };
                self.remove(&relative)?;
                rustix::fs::mknodat(CWD, &path, kind, Mode::RUSR, device)
                    .map_err(|errno| failed(&relative)(errno.into()))?;
            }
            _ => return Err(refuse(Refusal::Kind)),
        }
        self.apply(&relative, &attributes)?;
        self.set_time(&relative, attributes.mtime)
    }

    /// Every directory on the way is a real one.
    fn check_parent(&self, relative: &Path) -> Result<(), UnpackError> {
        let mut path = self.root.to_owned();
        for component in relative.parent().into_iter().flat_map(Path::components) {
            path.push(component);
            if !path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
                return Err(UnpackError::Refused { path: relative.to_owned(), reason: Refusal::Parent });
            }
        }
        Ok(())
    }

    /// Carries a deletion out; false where the entry is something else.
    fn marker(&mut self, relative: &Path) -> Result<bool, UnpackError> {
        let Some(name) = relative.file_name().map(OsStr::as_bytes) else { return Ok(false) };
        let parent = relative.parent().unwrap_or(Path::new(""));
        if name == OPAQUE.as_bytes() {
            self.remove_unseen(parent)?;
            return Ok(true);
        }
        match name.strip_prefix(WHITEOUT.as_bytes()) {
            None => Ok(false),
            Some(b"" | b"." | b"..") => Err(UnpackError::Refused { path: relative.to_owned(), reason: Refusal::Name }),
            Some(hidden) => self.remove(&parent.join(OsStr::from_bytes(hidden))).map(|()| true),
        }
    }

    fn directory(&self, relative: &Path) -> Result<(), UnpackError> {
        let path = self.root.join(relative);
        if relative.as_os_str().is_empty() || path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(());
        }
        self.remove(relative)?;
        std::fs::create_dir(&path).map_err(failed(relative))
    }

    fn file<R: Read>(&mut self, relative: &Path, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let size = entry.size();
        self.room = self.room.checked_sub(size).ok_or(UnpackError::TooMuch(self.limit))?;
        let path = self.root.join(relative);
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).mode(0o600);
        let in_place = self.kind == TreeKind::Volume
            && path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1);
        if in_place {
            options.truncate(true);
        } else {
            self.remove(relative)?;
            options.create_new(true);
        }
        let mut file = options.open(&path).map_err(failed(relative))?;
        let copied = copy_with_holes(entry, &mut file).map_err(failed(relative))?;
        if copied != size {
            return Err(UnpackError::Read(ErrorKind::UnexpectedEof.into()));
        }
        file.set_len(size).map_err(failed(relative))
    }

    /// Owner, mode and extended attributes; the mode last, because a change of owner clears setuid.
    fn apply(&self, relative: &Path, attributes: &Attributes) -> Result<(), UnpackError> {
        let path = self.root.join(relative);
        std::os::unix::fs::lchown(&path, Some(attributes.uid), Some(attributes.gid)).map_err(failed(relative))?;
        let metadata = path.symlink_metadata().map_err(failed(relative))?;
        if metadata.is_symlink() {
            return Ok(());
        }
        for name in xattr::list(&path).into_iter().flatten() {
            let ours = name.as_bytes().starts_with(b"user.");
            if ours && !attributes.extended.iter().any(|(wanted, _)| wanted == name.as_bytes()) {
                xattr::remove(&path, &name).map_err(failed(relative))?;
            }
        }
        std::fs::set_permissions(&path, Permissions::from_mode(attributes.mode)).map_err(failed(relative))?;
        for (name, value) in &attributes.extended {
            xattr::set(&path, OsStr::from_bytes(name), value).map_err(failed(relative))?;
        }
        Ok(())
    }

    fn set_time(&self, relative: &Path, mtime: Timespec) -> Result<(), UnpackError> {
        let times = Timestamps { last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }, last_modification: mtime };
        rustix::fs::utimensat(CWD, self.root.join(relative), &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed(relative)(errno.into()))
    }

    /// Removes what is there under this name, if anything, with all that is in it.
    fn remove(&self, relative: &Path) -> Result<(), UnpackError> {
        if relative.as_os_str().is_empty() {
            return Err(UnpackError::Refused { path: relative.to_owned(), reason: Refusal::Name });
        }
        let path = self.root.join(relative);
        let removed = match path.symlink_metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(&path),
            Ok(_) => std::fs::remove_file(&path),
        };
        removed.map_err(failed(relative))
    }

    /// Removes everything below `relative` that the archive has not brought (so far).
    fn remove_unseen(&self, relative: &Path) -> Result<(), UnpackError> {
        let mut stack = vec![relative.to_owned()];
        while let Some(directory) = stack.pop() {
            let entries = match self.root.join(&directory).read_dir() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries.map_err(failed(&directory))?,
            };
            for entry in entries {
                let entry = entry.map_err(failed(&directory))?;
                let child = directory.join(entry.file_name());
                if !self.seen.contains(&child) {
                    self.remove(&child)?;
                } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    stack.push(child);
                }
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<(), UnpackError> {
        for (relative, mtime) in self.directories.iter().rev() {
            self.set_time(relative, *mtime)?;
        }
        Ok(())
    }
}

fn failed(relative: &Path) -> impl Fn(std::io::Error) -> UnpackError + use<> {
    let path = relative.to_owned();
    move |source| UnpackError::Write { path: path.clone(), source }
}

/// The name as a path below the root; the root itself is empty.
fn relative_path(raw: &[u8]) -> Result<PathBuf, UnpackError> {
    let path = Path::new(OsStr::from_bytes(raw));
    let refused = || UnpackError::Refused { path: path.to_owned(), reason: Refusal::Name };
    if raw.is_empty() || raw.len() > MAX_PATH || raw.contains(&0) {
        return Err(refused());
    }
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => relative.push(name),
            _ => return Err(refused()),
        }
    }
    Ok(relative)
}

fn attributes<R: Read>(entry: &mut Entry<'_, R>, relative: &Path) -> Result<Attributes, UnpackError> {
    let refused = || UnpackError::Refused { path: relative.to_owned(), reason: Refusal::Pax };
    let header = entry.header();
    let mode = header.mode().map_err(UnpackError::Read)? & 0o7777;
    let id = |id: std::io::Result<u64>| u32::try_from(id.map_err(UnpackError::Read)?).map_err(|_| refused());
    let (uid, gid) = (id(header.uid())?, id(header.gid())?);
    let seconds = i64::try_from(header.mtime().map_err(UnpackError::Read)?).map_err(|_| refused())?;
    let mut mtime = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let mut extended = Vec::new();
    if let Some(records) = entry.pax_extensions().map_err(UnpackError::Read)? {
        for record in records {
            let record = record.map_err(UnpackError::Read)?;
            let key = record.key_bytes();
            if key == PAX_MTIME.as_bytes() {
                mtime = record.value().ok().and_then(timestamp).ok_or_else(refused)?;
            } else if let Some(name) = key.strip_prefix(PAX_XATTR.as_bytes()) {
                let (name, value) = (from_hex(name), from_hex(record.value_bytes()));
                extended.push((name.ok_or_else(refused)?, value.ok_or_else(refused)?));
            } else {
                return Err(refused());
            }
        }
    }
    Ok(Attributes { mode, uid, gid, mtime, extended })
}

/// Reads `seconds.nanoseconds`.
fn timestamp(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos })
}

/// Copies; blocks of zeros become holes, so that a sparse file does not grow by being moved.
fn copy_with_holes<R: Read>(reader: &mut R, file: &mut File) -> std::io::Result<u64> {
    let mut buffer = vec![0; 64 << 10];
    let mut copied = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match reader.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return Ok(copied);
        }
        let block = &buffer[..filled];
        if block.iter().all(|byte| *byte == 0) {
            file.seek(SeekFrom::Current(filled as i64))?;
        } else {
            file.write_all(block)?;
        }
        copied += filled as u64;
    }
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
