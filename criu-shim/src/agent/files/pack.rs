//! A tree becomes a tar: owners, modes, times, extended attributes, links, fifos and devices; sockets are skipped.

use crate::agent::files::{HOST_XATTRS, OPAQUE, PAX_MTIME, PAX_XATTR, TreeKind, WHITEOUT, to_hex};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tar::{Builder, EntryType, Header};
use thiserror::Error;

/// Why a tree can't be packed.
#[derive(Debug, Error)]
pub enum PackError {
    /// A file can't be read.
    #[error("read {path:?}")]
    Read {
        /// Path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The archive can't be written.
    #[error("write the archive at {path:?}")]
    Write {
        /// Path in the tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Overlayfs keeps this entry in a way that means nothing without the layers below.
    #[error("{path:?} has the overlay attribute {name}, which can't be carried to another node")]
    OverlayFeature {
        /// Path in the tree.
        path: PathBuf,
        /// The attribute.
        name: String,
    },
    /// A name that a layer uses for deletions.
    #[error("{0:?} has a name that begins with {WHITEOUT}, which stands for a deletion in an image layer")]
    Reserved(PathBuf),
    /// A device in a volume.
    #[error("{0:?} is a device: a volume with devices can't be moved")]
    Device(PathBuf),
}

/// Writes the tree at `root` to `output` as a tar, directories before what is in them, names in order.
///
/// # Errors
/// Where something can't be read, or could not be put back as it is. The output is worthless then.
pub fn pack<W: Write>(root: &Path, kind: TreeKind, output: W) -> Result<W, PackError> {
    let mut packer = Packer { root, kind, tar: Builder::new(output), links: HashMap::new() };
    packer.tar.sparse(false);
    let mut stack = vec![PathBuf::new()];
    while let Some(relative) = stack.pop() {
        let path = root.join(&relative);
        let metadata = path.symlink_metadata().map_err(|source| read_failed(&relative, source))?;
        packer.entry(&relative, &metadata)?;
        if metadata.is_dir() {
            let mut names = names_in(&path).map_err(|source| read_failed(&relative, source))?;
            names.sort_unstable_by(|left, right| right.cmp(left));
            stack.extend(names.into_iter().map(|name| relative.join(name)));
        }
    }
    packer.tar.into_inner().map_err(|source| PackError::Write { path: PathBuf::new(), source })
}

struct Packer<'a, W: Write> {
    root: &'a Path,
    kind: TreeKind,
    tar: Builder<W>,
    /// First name of each file with several.
    links: HashMap<(u64, u64), PathBuf>,
}

/// Extended attributes, by name.
type Attributes = Vec<(String, Vec<u8>)>;

/// What an overlay says about an entry of its upper directory.
#[derive(Default)]
struct OverlayMarks {
    whiteout: bool,
    opaque: bool,
}

impl<W: Write> Packer<'_, W> {
    fn entry(&mut self, relative: &Path, metadata: &Metadata) -> Result<(), PackError> {
        let kind = metadata.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        let (attributes, marks) = self.attributes(relative)?;
        if self.kind == TreeKind::Layer {
            if relative.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT.as_bytes())) {
                return Err(PackError::Reserved(relative.to_owned()));
            }
            if marks.whiteout || (kind.is_char_device() && metadata.rdev() == 0) {
                return self.whiteout(relative);
            }
        }
        if self.kind == TreeKind::Volume && (kind.is_char_device() || kind.is_block_device()) {
            return Err(PackError::Device(relative.to_owned()));
        }
        if metadata.nlink() > 1 && !kind.is_dir() {
            let first = self.links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| relative.to_owned());
            if first != relative {
                let first = first.clone();
                return self.link(relative, EntryType::Link, &first, metadata);
            }
        }
        self.extensions(relative, metadata, &attributes)?;
        if kind.is_symlink() {
            let target = self.root.join(relative).read_link().map_err(|source| read_failed(relative, source))?;
            self.link(relative, EntryType::Symlink, &target, metadata)
        } else if kind.is_dir() {
            self.node(relative, EntryType::Directory, metadata)?;
            if marks.opaque { self.marker(&relative.join(OPAQUE)) } else { Ok(()) }
        } else if kind.is_file() {
            self.file(relative, metadata)
        } else if kind.is_fifo() {
            self.node(relative, EntryType::Fifo, metadata)
        } else if kind.is_char_device() {
            self.node(relative, EntryType::Char, metadata)
        } else {
            self.node(relative, EntryType::Block, metadata)
        }
    }

    /// Extended attributes that travel, and those that the overlay set.
    fn attributes(&self, relative: &Path) -> Result<(Attributes, OverlayMarks), PackError> {
        let path = self.root.join(relative);
        let names = match xattr::list(&path) {
            Ok(names) => names,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Default::default()),
            Err(source) => return Err(read_failed(relative, source)),
        };
        let mut attributes = Attributes::new();
        let mut marks = OverlayMarks::default();
        for name in names {
            let Some(name) = name.to_str().map(str::to_owned) else {
                let source = std::io::Error::from(std::io::ErrorKind::InvalidData);
                return Err(read_failed(relative, source));
            };
            if HOST_XATTRS.contains(&name.as_str()) {
                continue;
            }
            let value = xattr::get(&path, &name).map_err(|source| read_failed(relative, source))?.unwrap_or_default();
            let overlay = name.strip_prefix("trusted.overlay.").or_else(|| name.strip_prefix("user.overlay."));
            match overlay {
                Some(mark) if self.kind == TreeKind::Layer => match mark {
                    "opaque" => marks.opaque |= value == b"y" || value == b"x",
                    "whiteout" => marks.whiteout = true,
                    "redirect" | "metacopy" => {
                        return Err(PackError::OverlayFeature { path: relative.to_owned(), name });
                    }
                    // Bookkeeping of the mount: which lower file it was copied from, and the like.
                    _ => {}
                },
                _ => attributes.push((name, value)),
            }
        }
        attributes.sort();
        Ok((attributes, marks))
    }

    fn extensions(
        &mut self,
        relative: &Path,
        metadata: &Metadata,
        attributes: &[(String, Vec<u8>)],
    ) -> Result<(), PackError> {
        let mtime = format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec());
        let extended: Vec<(String, String)> = attributes
            .iter()
            .map(|(name, value)| (format!("{PAX_XATTR}{}", to_hex(name.as_bytes())), to_hex(value)))
            .collect();
        let records = extended.iter().map(|(key, value)| (key.as_str(), value.as_bytes()));
        let records = records.chain([(PAX_MTIME, mtime.as_bytes())]);
        self.tar.append_pax_extensions(records).map_err(|source| write_failed(relative, source))
    }

    fn file(&mut self, relative: &Path, metadata: &Metadata) -> Result<(), PackError> {
        let path = self.root.join(relative);
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NOATIME);
        let file = options.open(&path).map_err(|source| read_failed(relative, source))?;
        let mut header = header(EntryType::Regular, metadata);
        header.set_size(metadata.len());
        let exact = Exact { file, left: metadata.len() };
        let name = archive_name(relative);
        self.tar.append_data(&mut header, name, exact).map_err(|source| write_failed(relative, source))
    }

    fn node(&mut self, relative: &Path, kind: EntryType, metadata: &Metadata) -> Result<(), PackError> {
        let mut header = header(kind, metadata);
        if matches!(kind, EntryType::Char | EntryType::Block) {
            let device = metadata.rdev();
            header
                .set_device_major(libc::major(device))
                .and_then(|()| header.set_device_minor(libc::minor(device)))
                .map_err(|source| write_failed(relative, source))?;
        }
        let name = archive_name(relative);
        self.tar.append_data(&mut header, name, std::io::empty()).map_err(|source| write_failed(relative, source))
    }

    fn link(&mut self, relative: &Path, kind: EntryType, target: &Path, metadata: &Metadata) -> Result<(), PackError> {
        let mut header = header(kind, metadata);
        let name = archive_name(relative);
        self.tar.append_link(&mut header, name, target).map_err(|source| write_failed(relative, source))
    }

    fn whiteout(&mut self, relative: &Path) -> Result<(), PackError> {
        let mut name = OsString::from(WHITEOUT);
        name.push(relative.file_name().unwrap_or_default());
        self.marker(&relative.with_file_name(name))
    }

    fn marker(&mut self, relative: &Path) -> Result<(), PackError> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0);
        header.set_size(0);
        self.tar.append_data(&mut header, relative, std::io::empty()).map_err(|source| write_failed(relative, source))
    }
}

fn header(kind: EntryType, metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(u64::from(metadata.uid()));
    header.set_gid(u64::from(metadata.gid()));
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    header
}

/// The root itself is `.`: an empty name is none.
fn archive_name(relative: &Path) -> &Path {
    if relative.as_os_str().is_empty() { Path::new(".") } else { relative }
}

fn names_in(directory: &Path) -> std::io::Result<Vec<OsString>> {
    directory.read_dir()?.map(|entry| entry.map(|entry| OsString::from_vec(entry.file_name().into_vec()))).collect()
}

fn read_failed(relative: &Path, source: std::io::Error) -> PackError {
    PackError::Read { path: relative.to_owned(), source }
}

fn write_failed(relative: &Path, source: std::io::Error) -> PackError {
    PackError::Write { path: relative.to_owned(), source }
}

/// Reads exactly the length that the header announces: a file that has become shorter is an error and not a gap in
/// the archive.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.file.read(&mut buffer[..want])?;
        if got == 0 && want > 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        self.left -= got as u64;
        Ok(got)
    }
}
