//! Files that moved are put in place: into the new container's root file system and the new pod's volumes.
//!
//! Archives are unpacked in the order of their rounds, as soon as there is a place for them, so that little is left for the
//! freeze. What is unpacked is compared with what was sent as it is read, so the bytes that are compared are those that are used;
//! one that differs fails the attempt, whose places then go with the replacement.

use crate::agent::context::Context;
use crate::agent::failure::retryable;
use crate::agent::files::TreeKind;
use crate::agent::files::places;
use crate::agent::files::unpack::unpack;
use crate::agent::journal::RestoreEntry;
use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::manifest::Landed;
use crate::agent::transfer::message::FILES;
use crate::agent::transfer::stored::{self, StoredError};
use crate::causes::chain;
use crate::criu::Bundle;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Error, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tideover_crds::{Failure, FailureReason};

/// Bytes of an archive that are read and hashed at once.
const AT_ONCE: usize = 256 << 10;

/// Which archives are in place, for one restore. Another restore has other places.
#[derive(Debug, Default)]
pub struct Placed {
    archives: BTreeSet<String>,
    off: Arc<AtomicBool>,
}

impl Placed {
    /// What ends the work when it is set: nobody wants it any more.
    pub fn off_switch(&self) -> Arc<AtomicBool> {
        self.off.clone()
    }
}

/// Puts every archive of the attempt in `directory` in place that is not there yet. Blocking.
///
/// # Errors
/// With the failure to report: an archive that is not as it was sent, a place that the new pod does not have, or an archive
/// that can't be unpacked.
pub fn place_files(
    context: &Context,
    directory: &Path,
    restore: &RestoreEntry,
    placed: &mut Placed,
) -> Result<(), Failure> {
    let corrupted = |error: StoredError| retryable(FailureReason::Corrupted, chain(&error));
    for (name, landed) in stored::archives(directory).map_err(corrupted)? {
        if placed.archives.contains(&name) {
            continue;
        }
        let (root, kind) = place(context, restore, &name)?;
        put(&directory.join(FILES).join(&name), &landed, &placed.off, |archive| {
            // What is replaced is not free yet, so that only the size of all of it is a bound.
            unpack(&root, kind, archive, all_bytes(&root)).map_err(|error| {
                retryable(FailureReason::RestoreFailed, format!("the tree {root:?}: {}", chain(&error)))
            })
        })?;
        placed.archives.insert(name);
    }
    Ok(())
}

/// Size of the file system that `path` is on, bytes.
fn all_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

/// Has `unpack` read the archive at `path`, and sees to it that what it has read is what has `landed`.
fn put(
    path: &Path,
    landed: &Landed,
    off: &AtomicBool,
    unpack: impl FnOnce(&mut BufReader<Hashing<'_>>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let unreadable = |source| {
        let error = StoredError::Read { path: path.to_owned(), source };
        retryable(FailureReason::Corrupted, chain(&error))
    };
    let file = File::open(path).map_err(unreadable)?;
    let hashing = Hashing { file, hasher: blake3::Hasher::new(), off };
    let mut archive = BufReader::with_capacity(AT_ONCE, hashing);
    let unpacked = unpack(&mut archive);
    // Also where it could not be unpacked: that it is another one is the better reason then.
    std::io::copy(&mut archive, &mut std::io::sink()).map_err(unreadable)?;
    if Digest::from(archive.into_inner().hasher.finalize()) != landed.digest {
        let file = format!("{FILES}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        return Err(retryable(FailureReason::Corrupted, chain(&StoredError::Digest { file })));
    }
    unpacked
}

/// A file that is hashed as it is read.
struct Hashing<'a> {
    file: File,
    hasher: blake3::Hasher,
    off: &'a AtomicBool,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        if self.off.load(Ordering::Relaxed) {
            return Err(Error::other("the attempt is over"));
        }
        let count = self.file.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Where the archive of this name belongs, as this process sees it. Names are those of
/// [`Part::place`](crate::agent::transfer::message::Part::place).
fn place(context: &Context, restore: &RestoreEntry, archive: &str) -> Result<(PathBuf, TreeKind), Failure> {
    let missing = |what: String| retryable(FailureReason::RestoreFailed, format!("the replacement has no {what}"));
    let tree = archive.split_once('-').map_or(archive, |(_, tree)| tree);
    if tree == "layer" {
        let bundle = Bundle::read(&restore.bundle, context.node.root())
            .map_err(|error| retryable(FailureReason::RestoreFailed, chain(&error)))?;
        return Ok((context.node.path(&bundle.rootfs), TreeKind::Layer));
    }
    if tree == "shm" {
        let place = places::shared_memory(&context.node, &restore.bundle)
            .map_err(|error| retryable(FailureReason::RestoreFailed, chain(&error)))?;
        let place = place.ok_or_else(|| missing("shared memory at /dev/shm".to_owned()))?;
        return Ok((context.node.path(&place), TreeKind::Volume));
    }
    let name = tree.strip_prefix("volume-").ok_or_else(|| missing(format!("place for the archive {archive}")))?;
    let path = context.node.path(&places::empty_dir(&context.settings.kubelet_root, &restore.pod_uid, name));
    if path.is_dir() { Ok((path, TreeKind::Volume)) } else { Err(missing(format!("emptyDir volume {name}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_bytes(bytes: &[u8], landed: &[u8], off: bool) -> Result<Vec<u8>, Failure> {
        let archive = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(archive.path(), bytes).expect("write");
        let landed = Landed { bytes: landed.len() as u64, digest: blake3::hash(landed).into() };
        let mut used = Vec::new();
        put(archive.path(), &landed, &AtomicBool::new(off), |archive| {
            archive
                .take(3)
                .read_to_end(&mut used)
                .map(|_| ())
                .map_err(|error| retryable(FailureReason::RestoreFailed, error.to_string()))
        })?;
        Ok(used)
    }

    #[test]
    fn an_archive_that_is_not_as_it_was_sent_fails_even_where_it_could_be_unpacked() {
        assert_eq!(put_bytes(b"archive", b"archive", false).expect("as sent"), b"arc");
        let failure = put_bytes(b"archivE", b"archive", false).expect_err("its end differs, which nobody has used");
        assert_eq!(failure.reason, FailureReason::Corrupted);
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_put_in_place() {
        put_bytes(b"archive", b"archive", true).expect_err("called off");
    }
}
