//! What has landed, as it lies on the disk: the manifest beside the files, and whether they still are what it says.
//!
//! A digest that was right when the bytes came in says nothing about what CRIU will read. So what is about to be relied on is
//! read back and compared, every time: before a commit that is made on it alone, and before CRIU sees them. It is
//! the one place where the target computes digests of files that were sent, because a second time would lengthen the freeze.
//!
//! Memory that goes into a page store has no entry, nor has the pages file of shared memory, which is one too: reading a gigabyte back
//! would take longer than the whole freeze. A store knows by itself whether a page is missing. Where it is to be the only copy of a
//! state, it has sums of its pages, by which what is given out of it is compared, and the manifest has the digests of those.

use crate::agent::transfer::digest::{Whole, digests};
use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::manifest::{Landed, Manifest};
use crate::agent::transfer::message::{FILES, IMAGES, MAX_PARTS, MEMORY, NameError, Part};
use crate::criu::image::INVENTORY;
use crate::pages::store::{NamedSums, StoreError, is_shared, is_shared_name};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Error, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the manifest in an attempt's directory.
pub const MANIFEST: &str = "manifest.json";
/// Version of its format. What was committed may lie there through an upgrade of the agent: should it change, the version before is still read.
const VERSION: u32 = 2;
/// Largest manifest that is read, bytes: a part takes less than 400, its name 200 of them.
const MAX_BYTES: u64 = 400 * MAX_PARTS as u64;

/// Why what lies on the disk may not be used.
#[derive(Debug, Error)]
pub enum StoredError {
    /// The manifest can't be read; it may never have been written.
    #[error("read the manifest {path:?} on the target's disk")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// Why.
        #[source]
        source: Error,
    },
    /// Longer than any that is written.
    #[error("the manifest {path:?} on the target's disk has more than {MAX_BYTES} bytes")]
    TooLarge {
        /// The manifest.
        path: PathBuf,
    },
    /// It is no manifest.
    #[error("understand the manifest {path:?} on the target's disk")]
    Parse {
        /// The manifest.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It is one of another version.
    #[error("the manifest {path:?} on the target's disk has version {version}, this agent knows {VERSION}")]
    Version {
        /// The manifest.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It names what can't have landed.
    #[error("the manifest on the target's disk names a part that can't be")]
    Name(#[from] NameError),
    /// It has a digest that is none, or a part twice.
    #[error("the manifest on the target's disk has no usable entry for {part}")]
    Entry {
        /// Which part.
        part: Part,
    },
    /// A directory can't be listed, or a file can't be read.
    #[error("read {path:?} on the target's disk")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Error,
    },
    /// A file that landed is not there.
    #[error("{file} is missing on the target's disk")]
    Missing {
        /// The file, in the attempt's directory.
        file: String,
    },
    /// Something is there that never landed. CRIU would take it for a part of the image.
    #[error("{file} is on the target's disk and was never sent")]
    Extra {
        /// The file, in the attempt's directory.
        file: String,
    },
    /// Another length.
    #[error("{file} is corrupted on the target's disk: it has {found} bytes and {sent} were sent")]
    Length {
        /// The file, in the attempt's directory.
        file: String,
        /// Bytes that are there.
        found: u64,
        /// Bytes that were sent.
        sent: u64,
    },
    /// Memory is not what landed.
    #[error("compare memory on the target's disk")]
    Memory(#[from] StoreError),
    /// The same length and other bytes.
    #[error("{file} is corrupted on the target's disk: its bytes are not those that were sent")]
    Digest {
        /// The file, in the attempt's directory.
        file: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    version: u32,
    parts: Vec<Entry>,
    /// Sums of the page stores that last. A manifest of a former agent has none.
    #[serde(default)]
    sums: Vec<NamedSums>,
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    part: Part,
    bytes: u64,
    /// BLAKE3, hexadecimal.
    digest: String,
}

/// Writes `manifest`, and the `sums` of page stores that last, in place of what is in the attempt's `directory` (0600), whole or not at
/// all for who reads it; after a power cut only where it was synced. Blocking.
///
/// # Errors
/// Where it can't be written; the one before stands then.
pub fn store(directory: &Path, manifest: &Manifest, sums: Vec<NamedSums>) -> std::io::Result<()> {
    let files = manifest.parts().filter(|(part, _)| !part.is_memory());
    let parts = files.map(|(part, landed)| Entry {
        part: part.clone(),
        bytes: landed.bytes,
        digest: landed.digest.to_string(),
    });
    let document = serde_json::to_vec(&Document { version: VERSION, parts: parts.collect(), sums })?;
    let (path, new) = (directory.join(MANIFEST), directory.join("manifest.new"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&document)?;
    match renameat_with(CWD, &new, CWD, &path, RenameFlags::EXCHANGE) {
        // Where a file takes the place of another, ext4 writes it to the disk at once (`auto_da_alloc`, ext4(5)), in the freeze. What has
        // to be on the disk before it counts is synced where that is decided.
        // The one before. What is left of it does no harm, and the next one is written over it.
        Ok(()) => {
            std::fs::remove_file(&new).ok();
            Ok(())
        }
        // The first of all; or a file system that can't.
        Err(_) => std::fs::rename(&new, &path),
    }
}

/// Compares everything that lies in the attempt's `directory` with its manifest: the same files, of the same lengths, with the
/// same bytes. Blocking.
///
/// # Errors
/// With the first thing that is not as it was sent; nothing of the attempt may be used then.
pub fn verify(directory: &Path) -> Result<(), StoredError> {
    verify_in(directory, &[IMAGES, FILES])
}

/// The same of CRIU's images alone: archives of files are compared while they are unpacked. Blocking.
///
/// # Errors
/// As [`verify`].
pub fn verify_images(directory: &Path) -> Result<(), StoredError> {
    verify_in(directory, &[IMAGES])
}

/// The same of CRIU's images, and of the archives among `parts`: of what one round has brought. Blocking.
///
/// # Errors
/// As [`verify`].
pub fn verify_round(directory: &Path, parts: &Manifest) -> Result<(), StoredError> {
    let mut brought = BTreeSet::new();
    for (part, _) in parts.parts() {
        brought.extend(part.place()?.map(|(place, name)| format!("{place}/{name}")));
    }
    let mut expected = expected_in(directory, &read(directory)?, &[IMAGES, FILES])?;
    expected.retain(|file, _| file.starts_with(&format!("{IMAGES}/")) || brought.contains(file));
    compare(directory, &expected)
}

/// Which pages are read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// Those that CRIU reads. The page daemon compares all others as it gives them out.
    OfImages,
    /// All, because the disk may have forgotten what it was told to keep.
    All,
}

/// [`verify_images`], and sees to it that memory of a state of which this may be the only copy can be relied on: that the sums of its
/// pages are there and those that were written, and that these are the pages. Nothing of memory that is not to last. Blocking.
///
/// # Errors
/// As [`verify`], and [`StoredError::Memory`] where it is not so.
pub fn verify_for_restore(directory: &Path, pages: Pages) -> Result<(), StoredError> {
    let document = read(directory)?;
    compare(directory, &expected_in(directory, &document, &[IMAGES])?)?;
    let memory = directory.join(MEMORY);
    for sums in document.sums {
        sums.check(&memory)?;
        if pages == Pages::All || is_shared_name(sums.store.as_ref()) {
            sums.compare(&memory)?;
        }
    }
    Ok(())
}

/// The archives of files that have landed, by their names in order. Their bytes are still to be compared: by whoever reads
/// them, so that what is compared is what is used. Others may lie beside them, which are still being received. Blocking.
///
/// # Errors
/// As [`verify`].
pub fn archives(directory: &Path) -> Result<BTreeMap<String, Landed>, StoredError> {
    let mut expected = expected(&read(directory)?)?;
    expected.retain(|file, _| file.starts_with(&format!("{FILES}/")));
    lengths(directory, &expected)?;
    let name = |file: String| file.rsplit('/').next().unwrap_or_default().to_owned();
    Ok(expected.into_iter().map(|(file, landed)| (name(file), landed)).collect())
}

fn verify_in(directory: &Path, places: &[&str]) -> Result<(), StoredError> {
    compare(directory, &expected_in(directory, &read(directory)?, places)?)
}

/// Compares what lies in `directory` with what must be there.
fn compare(directory: &Path, expected: &BTreeMap<String, Landed>) -> Result<(), StoredError> {
    let files = lengths(directory, expected)?;
    for ((file, landed), (whole, digest)) in expected.iter().zip(files.iter().zip(digests(&files))) {
        let digest = digest.map_err(|source| StoredError::Read { path: whole.path.clone(), source })?;
        if Digest::from(digest) != landed.digest {
            return Err(StoredError::Digest { file: file.clone() });
        }
    }
    Ok(())
}

/// What the manifest says must be in these places, where nothing else may be.
fn expected_in(
    directory: &Path,
    document: &Document,
    places: &[&str],
) -> Result<BTreeMap<String, Landed>, StoredError> {
    let (mut expected, memory) = (expected(document)?, directory.join(MEMORY));
    expected.retain(|file, _| places.iter().any(|place| file.starts_with(&format!("{place}/"))));
    for place in places {
        let path = directory.join(place);
        let failed = |source| StoredError::Read { path: path.clone(), source };
        for entry in path.read_dir().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = format!("{place}/{}", entry.file_name().to_string_lossy());
            // What a CRIU is about to wait at, until the image itself comes (`relay/ahead.rs`).
            let waits = entry.file_name() == INVENTORY && entry.file_type().is_ok_and(|kind| kind.is_fifo());
            if !waits && !expected.contains_key(&file) && !is_shared(&memory, &entry.path()).map_err(failed)? {
                return Err(StoredError::Extra { file });
            }
        }
    }
    Ok(expected)
}

/// The files, which are there and as long as they were sent.
fn lengths(directory: &Path, expected: &BTreeMap<String, Landed>) -> Result<Vec<Whole>, StoredError> {
    let mut files = Vec::with_capacity(expected.len());
    for (file, landed) in expected {
        let path = directory.join(file);
        let found = match path.symlink_metadata() {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Err(StoredError::Extra { file: file.clone() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoredError::Missing { file: file.clone() });
            }
            Err(source) => return Err(StoredError::Read { path, source }),
        };
        if found != landed.bytes {
            return Err(StoredError::Length { file: file.clone(), found, sent: landed.bytes });
        }
        files.push(Whole { path, bytes: found });
    }
    Ok(files)
}

/// What the manifest says must be there, by path in the attempt's directory.
fn expected(document: &Document) -> Result<BTreeMap<String, Landed>, StoredError> {
    let mut expected = BTreeMap::new();
    for Entry { part, bytes, digest } in &document.parts {
        let unusable = || StoredError::Entry { part: part.clone() };
        let (place, name) = part.place()?.ok_or_else(unusable)?;
        let landed = Landed { bytes: *bytes, digest: Digest::parse(part, digest).ok_or_else(unusable)? };
        if expected.insert(format!("{place}/{name}"), landed).is_some() {
            return Err(unusable());
        }
    }
    Ok(expected)
}

/// The manifest in an attempt's directory.
fn read(directory: &Path) -> Result<Document, StoredError> {
    let path = directory.join(MANIFEST);
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text))
        .map_err(|source| StoredError::Manifest { path: path.clone(), source })?;
    if text.len() as u64 > MAX_BYTES {
        return Err(StoredError::TooLarge { path });
    }
    let parse = |source| StoredError::Parse { path: path.clone(), source };
    match serde_json::from_slice::<Document>(&text) {
        Ok(document) if document.version == VERSION => Ok(document),
        // One of another version need not be understood.
        parsed => match serde_json::from_slice(&text).map_err(parse)? {
            VersionOnly { version } if version != VERSION => Err(StoredError::Version { path, version }),
            VersionOnly { .. } => parsed.map_err(parse),
        },
    }
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
