//! Files that moved are put in place: into the new container's root file system and the new pod's volumes.
//!
//! Archives are unpacked in the order of their rounds, as soon as there is a place for them, so that little is left for the freeze;
//! those of the last round while they land. What is unpacked is compared with what was sent as it is read, so the bytes that are
//! compared are those that are used;
//! one that differs fails the attempt, whose places then go with the replacement.

use crate::agent::context::Context;
use crate::agent::failure::retryable;
use crate::agent::files::TreeKind;
use crate::agent::files::places;
use crate::agent::files::unpack::unpack;
use crate::agent::journal::RestoreEntry;
use crate::agent::transfer::growing::Growing;
use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::manifest::Landed;
use crate::agent::transfer::message::FILES;
use crate::agent::transfer::stored::{self, StoredError};
use crate::causes::chain;
use crate::criu::Bundle;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io::{BufReader, Error, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tideover_crds::{Failure, FailureReason};
use tracing::debug;

/// Bytes of an archive that are read and hashed at once.
const AT_ONCE: usize = 256 << 10;
/// The tree that is a container's own.
const LAYER: &str = "layer";

/// Bytes of archives from which on what was unpacked from them is a burden to the disk.
const HEAVY: u64 = 64 << 20;

/// Which archives are in place, and where: another container has another layer, but the volumes of its pod.
#[derive(Debug, Default)]
pub struct Placed {
    archives: BTreeSet<(Spot, String)>,
    off: Arc<AtomicBool>,
    /// Bytes of archives that were put in each place since it was last brought to the disk.
    brought: BTreeMap<PathBuf, u64>,
    /// Where the trees of a restore belong.
    places: Option<(RestoreEntry, Places)>,
}

/// Where trees belong, by their names. Clones are of the same.
type Places = Arc<Mutex<HashMap<String, (PathBuf, TreeKind)>>>;

/// A directory, and which one is there: what was put in one that was made anew since is not in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    root: PathBuf,
    device: u64,
    inode: u64,
}

impl Spot {
    fn at(root: &Path) -> Result<Self, Failure> {
        let found = root.metadata().map_err(|error| {
            retryable(FailureReason::RestoreFailed, format!("the tree {root:?}: {}", chain(&error)))
        })?;
        Ok(Self { root: root.to_owned(), device: found.dev(), inode: found.ino() })
    }
}

impl Placed {
    /// What ends the work when it is set: nobody wants it any more.
    pub fn off_switch(&self) -> Arc<AtomicBool> {
        self.off.clone()
    }

    /// Where the trees of `restore` belong, as far as that was found out: it is not found out again in the freeze.
    fn places(&mut self, restore: &RestoreEntry) -> Places {
        match &self.places {
            Some((of, places)) if of == restore => places.clone(),
            _ => self.places.insert((restore.clone(), Places::default())).1.clone(),
        }
    }

    /// The places into which so much has come that the disk will be busy with it, for [`bring_to_disk`]. Each is told once.
    pub fn heavy(&mut self) -> Vec<PathBuf> {
        self.brought.extract_if(.., |_, bytes| *bytes >= HEAVY).map(|(root, _)| root).collect()
    }
}

/// Waits until the disks have what was written to the file systems at `roots`. What is read from them in the freeze would have to wait
/// for as much as the kernel writes back by then: a second for each GiB, and more. Nothing depends on it. Blocking.
pub fn bring_to_disk(roots: &[PathBuf]) {
    for root in roots {
        let synced = File::open(root).and_then(|root| Ok(rustix::fs::syncfs(root)?));
        if let Err(error) = synced {
            debug!(?root, %error, "files are not brought to the disk");
        }
    }
}

/// Which trees are put in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trees {
    /// The container's layer, and the pod's volumes if they came with it.
    All,
    /// The volumes are in use by a container of the pod, or may be.
    LayerOnly,
}

/// Puts every archive of one container's `directory` in place that is not there yet. Once the container is `gone`, only those of
/// the pod's volumes. Blocking.
///
/// # Errors
/// With the failure to report: an archive that is not as it was sent, a place that the new pod does not have, or an archive
/// that can't be unpacked.
pub fn place_files(
    context: &Context,
    directory: &Path,
    restore: &RestoreEntry,
    trees: Trees,
    placed: &mut Placed,
    gone: &AtomicBool,
) -> Result<(), Failure> {
    let places = placed.places(restore);
    Placing::new(trees, gone, |tree| known_place(&places, context, restore, tree)).all_of(directory, placed)
}

/// The same, and after it every archive of the last round that is `arriving`, while it does: as they come, and until none is left. Of
/// one that is broken off nothing is kept, and it fails nothing here. Blocking.
///
/// # Errors
/// As [`place_files`].
pub fn place_arriving(
    context: &Context,
    directory: &Path,
    restore: &RestoreEntry,
    trees: Trees,
    placed: &mut Placed,
    gone: &AtomicBool,
    arriving: &Arriving,
) -> Result<(), Failure> {
    let places = placed.places(restore);
    let mut placing = Placing::new(trees, gone, |tree| known_place(&places, context, restore, tree));
    placing.all_of(directory, placed)?;
    placing.follow(arriving, placed)
}

/// Archives of the last round that land, of which nobody has begun to put any in place. Clones are of the same.
#[derive(Clone, Debug, Default)]
pub struct Arriving(Arc<Mutex<VecDeque<Growing>>>);

impl Arriving {
    /// One more.
    pub fn add(&self, archive: Growing) {
        self.queue().push_back(archive);
    }

    fn next(&self) -> Option<Growing> {
        self.queue().pop_front()
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Growing>> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Archives on their way into place, with the places of trees as `place_of` says them.
struct Placing<'a, F> {
    trees: Trees,
    /// The container is.
    gone: &'a AtomicBool,
    place_of: F,
    spots: HashMap<String, (Spot, TreeKind)>,
}

impl<'a, F: Fn(&str) -> Result<(PathBuf, TreeKind), Failure>> Placing<'a, F> {
    fn new(trees: Trees, gone: &'a AtomicBool, place_of: F) -> Self {
        Self { trees, gone, place_of, spots: HashMap::new() }
    }

    /// Those that have landed in `directory`.
    fn all_of(&mut self, directory: &Path, placed: &mut Placed) -> Result<(), Failure> {
        let corrupted = |error: StoredError| retryable(FailureReason::Corrupted, chain(&error));
        for (name, landed) in stored::archives(directory).map_err(corrupted)? {
            let path = directory.join(FILES).join(&name);
            self.one(name, &path, placed, || File::open(&path), || Some(landed.clone()))?;
        }
        Ok(())
    }

    /// Those that land.
    fn follow(&mut self, arriving: &Arriving, placed: &mut Placed) -> Result<(), Failure> {
        // The place of another container's layer waits for this task.
        while !self.gone.load(Ordering::Relaxed)
            && let Some(archive) = arriving.next()
        {
            let name = archive.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
            self.one(name, archive.path(), placed, || archive.open(), || archive.landed())?;
        }
        Ok(())
    }

    /// The one that is called `name`, unless it is in place, or belongs nowhere.
    fn one<A: Read>(
        &mut self,
        name: String,
        path: &Path,
        placed: &mut Placed,
        open: impl FnOnce() -> Result<A, Error>,
        landed: impl Fn() -> Option<Landed>,
    ) -> Result<(), Failure> {
        let (tree, goes_on) = (tree_of(&name), AtomicBool::new(false));
        let gone = if tree == LAYER { self.gone } else { &goes_on };
        if gone.load(Ordering::Relaxed) || (tree != LAYER && self.trees == Trees::LayerOnly) {
            return Ok(());
        }
        let (spot, kind) = match self.spots.get(tree) {
            Some(spot) => spot.clone(),
            None => {
                let (root, kind) = (self.place_of)(tree)?;
                let spot = (Spot::at(&root)?, kind);
                self.spots.insert(tree.to_owned(), spot.clone());
                spot
            }
        };
        let key = (spot, name);
        if placed.archives.contains(&key) {
            return Ok(());
        }
        let root = &key.0.root;
        let off: [&AtomicBool; 2] = [&placed.off, gone];
        let put = open().map_err(|source| unreadable(path, source)).and_then(|archive| {
            put(path, archive, &off, landed, |archive| {
                // What is replaced is not free yet, so that only the size of all of it is a bound.
                unpack(root, kind, archive, all_bytes(root)).map_err(|error| {
                    retryable(FailureReason::RestoreFailed, format!("the tree {root:?}: {}", chain(&error)))
                })
            })
        });
        match put {
            Ok(true) => {
                let bytes = path.metadata().map_or(0, |archive| archive.len());
                *placed.brought.entry(key.0.root.clone()).or_default() += bytes;
                placed.archives.insert(key);
            }
            Ok(false) => {}
            // Its files are being taken down with it; the volumes stay.
            // Where the same container's relay comes back, all is put there again: a part of an archive is in place, and what that has
            // changed the archives before it put right.
            Err(_) if gone.load(Ordering::Relaxed) => placed.archives.retain(|(spot, _)| *spot != key.0),
            Err(failure) => return Err(failure),
        }
        Ok(())
    }
}

/// Size of the file system that `path` is on, bytes.
fn all_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

fn unreadable(path: &Path, source: Error) -> Failure {
    retryable(FailureReason::Corrupted, chain(&StoredError::Read { path: path.to_owned(), source }))
}

/// Has `unpack` read the `archive` that lies at `path`, and sees to it that what it has read is what has `landed` by then. False where
/// it was broken off.
fn put<A: Read>(
    path: &Path,
    archive: A,
    off: &[&AtomicBool],
    landed: impl Fn() -> Option<Landed>,
    unpack: impl FnOnce(&mut BufReader<Hashing<'_, A>>) -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let hashing = Hashing { archive, hasher: blake3::Hasher::new(), off, cut: false };
    let mut archive = BufReader::with_capacity(AT_ONCE, hashing);
    let unpacked = unpack(&mut archive);
    if unpacked.is_err() && landed().is_none() && !archive.get_ref().cut {
        // The rest may be long in coming, and nothing is gained by it.
        return unpacked.map(|()| false);
    }
    // Also where it could not be unpacked: that it is another one is the better reason then.
    let read = std::io::copy(&mut archive, &mut std::io::sink());
    let Some(landed) = landed() else { return Ok(false) };
    read.map_err(|source| unreadable(path, source))?;
    if Digest::from(archive.into_inner().hasher.finalize()) != landed.digest {
        let file = format!("{FILES}/{}", path.file_name().unwrap_or_default().to_string_lossy());
        return Err(retryable(FailureReason::Corrupted, chain(&StoredError::Digest { file })));
    }
    unpacked.map(|()| true)
}

/// An archive that is hashed as it is read.
struct Hashing<'a, A> {
    archive: A,
    hasher: blake3::Hasher,
    off: &'a [&'a AtomicBool],
    /// It could not be read to its end.
    cut: bool,
}

impl<A: Read> Read for Hashing<'_, A> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            if self.off.iter().any(|off| off.load(Ordering::Relaxed)) {
                self.cut = true;
                return Err(Error::other("nobody wants it any more"));
            }
            match self.archive.read(buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.cut = true;
                    return Err(error);
                }
                Ok(count) => {
                    self.hasher.update(&buffer[..count]);
                    return Ok(count);
                }
            }
        }
    }
}

/// The tree that the archive of this name is of. Names are those of
/// [`Part::place`](crate::agent::transfer::message::Part::place).
fn tree_of(archive: &str) -> &str {
    archive.split_once('-').map_or(archive, |(_, tree)| tree)
}

/// The root of the container that is restored, as this process sees it. Without its volumes. Blocking.
///
/// # Errors
/// With the failure to report.
pub(super) fn container_root(context: &Context, restore: &RestoreEntry) -> Result<PathBuf, Failure> {
    let bundle = Bundle::read(&restore.bundle, context.node.root());
    let bundle = bundle.map_err(|error| retryable(FailureReason::RestoreFailed, chain(&error)))?;
    Ok(context.node.path(&bundle.rootfs))
}

/// The same as [`place`], which is asked once.
fn known_place(
    places: &Places,
    context: &Context,
    restore: &RestoreEntry,
    tree: &str,
) -> Result<(PathBuf, TreeKind), Failure> {
    let mut places = places.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = places.get(tree) {
        return Ok(known.clone());
    }
    let found = place(context, restore, tree)?;
    places.insert(tree.to_owned(), found.clone());
    Ok(found)
}

/// Where a tree belongs, as this process sees it.
fn place(context: &Context, restore: &RestoreEntry, tree: &str) -> Result<(PathBuf, TreeKind), Failure> {
    let missing = |what: String| retryable(FailureReason::RestoreFailed, format!("the replacement has no {what}"));
    if tree == LAYER {
        return Ok((container_root(context, restore)?, TreeKind::Layer));
    }
    if tree == "shm" {
        let place = places::shared_memory(&context.node, &restore.bundle)
            .map_err(|error| retryable(FailureReason::RestoreFailed, chain(&error)))?;
        let place = place.ok_or_else(|| missing("shared memory at /dev/shm".to_owned()))?;
        return Ok((context.node.path(&place), TreeKind::Volume));
    }
    let name = tree.strip_prefix("volume-").ok_or_else(|| missing(format!("place for the tree {tree}")))?;
    let path = context.node.path(&places::empty_dir(&context.settings.kubelet_root, &restore.pod_uid, name));
    if path.is_dir() { Ok((path, TreeKind::Volume)) } else { Err(missing(format!("emptyDir volume {name}"))) }
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
