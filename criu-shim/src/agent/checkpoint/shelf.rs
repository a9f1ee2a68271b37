//! Where checkpoints are: the one place that reads and writes them.
//!
//! ```text
//! /var/lib/tideover/checkpoints/          0700, files 0600
//!   taking/                               the one that is being taken; removed at the agent's start
//!   <pod uid>/<container>/ledger.json     what is remembered: see `ledger`
//!   <pod uid>/<container>/<number>/       a checkpoint: `images`, `files`, `memory` and `manifest.json` as on the target of a
//!                                         move, and `checkpoint.json`, which says what it is
//!   <pod uid>/<container>/restoring/<id>/ what the restore into the container <id> reads: a copy, because the page daemon uses
//!                                         up what it serves
//! ```
//!
//! A checkpoint gets its name when it is complete, verified and on the disk. Its bytes are compared again before each restore.

use super::Subject;
use super::about::{self, About, Poisoned, Stored};
use super::ledger::{Ledger, Poison};
use crate::agent::transfer::digest::{Whole, digests};
use crate::agent::transfer::message::{FILES, IMAGES, MEMORY};
use crate::agent::transfer::receive::WORK;
use crate::agent::transfer::stored::{self, MANIFEST, StoredError};
use crate::pages::store::is_shared_name;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

const TAKING: &str = "taking";
const RESTORING: &str = "restoring";
const LEDGER: &str = "ledger.json";
const ABOUT: &str = "checkpoint.json";
/// Most bytes of a document that is read. One with some thousand processes has a megabyte.
const MAX_DOCUMENT: u64 = 8 << 20;

/// Why a checkpoint can't be written, read or used.
#[derive(Debug, Error)]
pub enum ShelfError {
    /// A file or directory.
    #[error("{what} {path:?}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Error,
    },
    /// A document is not what this version writes.
    #[error("understand {path:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A document of another version.
    #[error("{path:?} has another version than this agent knows")]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// Images or archives are not as they were stored.
    #[error(transparent)]
    Stored(#[from] StoredError),
    /// Nor is memory.
    #[error("the memory {name} is not as it was stored")]
    Memory {
        /// The file.
        name: String,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(Error) -> ShelfError {
    let path = path.to_owned();
    move |source| ShelfError::File { what, path, source }
}

/// The checkpoints of this node. Clones share one lock.
#[derive(Clone, Debug)]
pub struct Shelf {
    root: PathBuf,
    /// The most bytes that all of them may take.
    pub quota: u64,
    /// Held while a ledger or the description of a checkpoint is changed.
    writing: Arc<Mutex<()>>,
}

impl Shelf {
    /// The one in `root`.
    pub fn new(root: PathBuf, quota: u64) -> Self {
        Self { root, quota, writing: Arc::default() }
    }

    /// Where the one that is being taken lands, and beside it where CRIU works. One at a time.
    pub fn taking(&self) -> (PathBuf, PathBuf) {
        (self.root.join(TAKING).join("landing"), self.root.join(TAKING).join("source"))
    }

    /// Makes the directory and removes what an agent before this one has left half done. Blocking.
    ///
    /// # Errors
    /// [`ShelfError::File`].
    pub fn clear(&self) -> Result<(), ShelfError> {
        make(&self.root)?;
        self.clear_taking()
    }

    /// Removes what was being taken. Blocking.
    ///
    /// # Errors
    /// [`ShelfError::File`].
    pub fn clear_taking(&self) -> Result<(), ShelfError> {
        remove(&self.root.join(TAKING))
    }

    fn place(&self, subject: &Subject) -> PathBuf {
        let name = |text: &str| Path::new(text).file_name().unwrap_or_default().to_owned();
        self.root.join(name(&subject.pod_uid)).join(name(&subject.container_name))
    }

    /// Directory of a checkpoint.
    pub fn checkpoint(&self, subject: &Subject, number: u64) -> PathBuf {
        self.place(subject).join(number.to_string())
    }

    /// Directory that the restore into a container reads.
    pub fn restoring(&self, subject: &Subject, container_id: &str) -> PathBuf {
        self.place(subject).join(RESTORING).join(Path::new(container_id).file_name().unwrap_or_default())
    }

    /// Removes what restores have read, but for the one into the container `but`. Blocking.
    ///
    /// # Errors
    /// [`ShelfError::File`].
    pub fn clear_restored(&self, subject: &Subject, but: Option<&str>) -> Result<(), ShelfError> {
        let kept = but.map(|id| self.restoring(subject, id));
        let mut all = list(&self.place(subject).join(RESTORING))?.into_iter();
        all.try_for_each(|path| if Some(&path) == kept.as_ref() { Ok(()) } else { remove(&path) })
    }

    /// What is remembered of a container; none before there is anything. Blocking.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn ledger(&self, subject: &Subject) -> Result<Option<Ledger>, ShelfError> {
        let path = self.place(subject).join(LEDGER);
        let ledger: Option<Ledger> = read(&path)?;
        match ledger {
            Some(ledger) if !ledger.is_known() => Err(ShelfError::Version { path }),
            ledger => Ok(ledger),
        }
    }

    /// Changes what is remembered of a container. On return it is on the disk. Blocking.
    ///
    /// # Errors
    /// What was remembered before stands then.
    pub fn edit<R>(&self, subject: &Subject, change: impl FnOnce(&mut Ledger) -> R) -> Result<R, ShelfError> {
        let mut result = None;
        self.judge(subject, 0, |ledger| {
            result = Some(change(ledger));
            None
        })?;
        result.ok_or_else(|| ShelfError::Version { path: self.place(subject).join(LEDGER) })
    }

    /// Every container of which something is remembered. Blocking.
    ///
    /// # Errors
    /// Where the directory can't be listed. A ledger that can't be read is passed over.
    pub fn all(&self) -> Result<Vec<Ledger>, ShelfError> {
        let mut all = Vec::new();
        for pod in list(&self.root)? {
            if pod.file_name().is_some_and(|name| name == TAKING) {
                continue;
            }
            let ledgers =
                list(&pod)?.into_iter().filter_map(|place| read::<Ledger>(&place.join(LEDGER)).ok().flatten());
            all.extend(ledgers.filter(Ledger::is_known));
        }
        Ok(all)
    }

    /// The stored checkpoints of a container. One whose description can't be read is none. Blocking.
    ///
    /// # Errors
    /// Where the directory can't be listed.
    pub fn stored(&self, subject: &Subject) -> Result<Vec<About>, ShelfError> {
        let about = |place: PathBuf| read::<About>(&place.join(ABOUT)).ok().flatten();
        let stored = list(&self.place(subject))?.into_iter().filter_map(about);
        Ok(stored.filter(|about| about.version == about::VERSION).collect())
    }

    /// Bytes that the checkpoints of all containers take. Blocking.
    ///
    /// # Errors
    /// Where a directory can't be listed.
    pub fn total(&self) -> Result<u64, ShelfError> {
        let mut total = 0_u64;
        for ledger in self.all()? {
            total += self.stored(&ledger.subject)?.iter().map(|about| about.bytes).sum::<u64>();
        }
        Ok(total)
    }

    /// Looks what lies in `landing`, where a round has landed that nothing follows: that it is as it was sent, which files of
    /// memory there are, and how many bytes it takes. Blocking.
    ///
    /// # Errors
    /// Where it is not, or can't be read.
    pub fn look(landing: &Path) -> Result<(Vec<Stored>, u64), ShelfError> {
        stored::verify(landing)?;
        let memory = memory(&landing.join(MEMORY))?;
        let mut bytes: u64 = memory.iter().map(|file| file.bytes).sum();
        for place in [IMAGES, FILES] {
            for path in list(&landing.join(place))? {
                bytes += path.symlink_metadata().map_err(failed("look at", &path))?.len();
            }
        }
        Ok((memory, bytes))
    }

    /// Gives what lies in `landing` its name, once it is on the disk. Blocking.
    ///
    /// # Errors
    /// There is no such checkpoint then.
    pub fn publish(&self, subject: &Subject, landing: &Path, about: &About) -> Result<(), ShelfError> {
        remove(&landing.join(WORK))?;
        write(&landing.join(ABOUT), about)?;
        for directory in [IMAGES, FILES, MEMORY] {
            sync(&landing.join(directory))?;
        }
        sync(landing)?;
        let place = self.place(subject);
        make(&place)?;
        let path = self.checkpoint(subject, about.number);
        std::fs::rename(landing, &path).map_err(failed("put in place", &path))?;
        sync_directory(&place)
    }

    /// Changes what is remembered of a container, and marks the checkpoint that must not be used again by it: the mark first, so that
    /// a crash in between only marks it once more. Returns what is marked now and was not before. Blocking.
    ///
    /// # Errors
    /// What was remembered before stands then.
    pub fn judge(
        &self,
        subject: &Subject,
        at_millis: u64,
        change: impl FnOnce(&mut Ledger) -> Option<Poison>,
    ) -> Result<Option<(About, String)>, ShelfError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.ledger(subject)?;
        let mut ledger = before.clone().unwrap_or_else(|| Ledger::new(subject.clone()));
        let poison = change(&mut ledger);
        let marked = match poison {
            Some(poison) => self.mark(subject, poison, at_millis)?,
            None => None,
        };
        if before.as_ref() != Some(&ledger) {
            self.remember(&ledger)?;
        }
        Ok(marked)
    }

    fn mark(&self, subject: &Subject, poison: Poison, at_millis: u64) -> Result<Option<(About, String)>, ShelfError> {
        let Poison { number, why } = poison;
        let path = self.checkpoint(subject, number).join(ABOUT);
        // One that was pushed out meanwhile needs no mark.
        let Some(about) = read::<About>(&path)?.filter(|about| about.poisoned.is_none()) else { return Ok(None) };
        let about = About { poisoned: Some(Poisoned { at_millis, why: why.clone() }), ..about };
        write(&path, &about)?;
        Ok(Some((about, why)))
    }

    fn remember(&self, ledger: &Ledger) -> Result<(), ShelfError> {
        let place = self.place(&ledger.subject);
        make(&place)?;
        write(&place.join(LEDGER), ledger)
    }

    /// Removes a checkpoint. What is left of it by a crash in between has no description, and is none. Blocking.
    ///
    /// # Errors
    /// [`ShelfError::File`].
    pub fn remove(&self, subject: &Subject, number: u64) -> Result<(), ShelfError> {
        let path = self.checkpoint(subject, number);
        match std::fs::remove_file(path.join(ABOUT)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove", &path)(error)),
            _ => {}
        }
        remove(&path)
    }

    /// Removes all that there is of a pod. Blocking.
    ///
    /// # Errors
    /// [`ShelfError::File`].
    pub fn forget(&self, subject: &Subject) -> Result<(), ShelfError> {
        match self.place(subject).parent() {
            Some(pod) => remove(pod),
            None => Ok(()),
        }
    }

    /// Makes the copy of a checkpoint that a restore reads, and sees that all of it is as it was stored. Blocking.
    ///
    /// What nobody writes to is linked. The memory of processes is copied, because the page daemon frees what it has served.
    ///
    /// # Errors
    /// [`ShelfError::Stored`] and [`ShelfError::Memory`] where it is not, which it will never be again.
    pub fn prepare(&self, subject: &Subject, about: &About, container_id: &str) -> Result<PathBuf, ShelfError> {
        let (from, to) = (self.checkpoint(subject, about.number), self.restoring(subject, container_id));
        remove(&to)?;
        make(&to.join(WORK))?;
        for directory in [IMAGES, FILES, MEMORY] {
            make(&to.join(directory))?;
            for path in list(&from.join(directory))? {
                let Some(name) = path.file_name() else { continue };
                let there = to.join(directory).join(name);
                let used_up = directory == MEMORY && !is_shared_name(name);
                let put =
                    if used_up { std::fs::copy(&path, &there).map(drop) } else { std::fs::hard_link(&path, &there) };
                put.map_err(failed("copy", &path))?;
            }
        }
        let manifest = to.join(MANIFEST);
        std::fs::copy(from.join(MANIFEST), &manifest).map_err(failed("copy", &manifest))?;
        stored::verify(&to)?;
        let found = memory(&to.join(MEMORY))?;
        let same = |stored: &&Stored| found.contains(stored);
        if let Some(other) = about
            .memory
            .iter()
            .find(|stored| !same(stored))
            .or_else(|| found.iter().find(|found| !about.memory.contains(found)))
        {
            return Err(ShelfError::Memory { name: other.name.clone() });
        }
        Ok(to)
    }

    /// Removes the copy that a restore has read. Blocking.
    ///
    /// # Errors
    /// [`ShelfError::File`].
    pub fn clear_restoring(&self, subject: &Subject, container_id: &str) -> Result<(), ShelfError> {
        remove(&self.restoring(subject, container_id))
    }
}

/// The files in a directory of memory, with their digests, sorted by name.
fn memory(directory: &Path) -> Result<Vec<Stored>, ShelfError> {
    let mut files = Vec::new();
    for path in list(directory)? {
        let bytes = path.symlink_metadata().map_err(failed("look at", &path))?.len();
        files.push(Whole { path, bytes });
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    let named = files.iter().zip(digests(&files)).map(|(file, digest)| {
        let digest = digest.map_err(failed("read", &file.path))?;
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Stored { name, bytes: file.bytes, digest: digest.to_hex().to_string() })
    });
    named.collect()
}

/// Paths of what is in a directory; none where it is not there.
fn list(directory: &Path) -> Result<Vec<PathBuf>, ShelfError> {
    let entries = match directory.read_dir() {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.map_err(failed("list", directory))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed("list", directory))).collect()
}

fn make(directory: &Path) -> Result<(), ShelfError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("make", directory))
}

fn remove(directory: &Path) -> Result<(), ShelfError> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", directory)(error)),
        _ => Ok(()),
    }
}

/// Brings the files of a directory, and their names, onto the disk.
fn sync(directory: &Path) -> Result<(), ShelfError> {
    for path in list(directory)? {
        if path.is_file() {
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed("sync", &path))?;
        }
    }
    sync_directory(directory)
}

fn sync_directory(directory: &Path) -> Result<(), ShelfError> {
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync", directory))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ShelfError> {
    let file = match File::open(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        file => file.map_err(failed("read", path))?,
    };
    let mut text = Vec::new();
    file.take(MAX_DOCUMENT).read_to_end(&mut text).map_err(failed("read", path))?;
    serde_json::from_slice(&text).map(Some).map_err(|source| ShelfError::Parse { path: path.to_owned(), source })
}

/// Puts a document in place in one step. On return it is on the disk.
fn write(path: &Path, value: &impl Serialize) -> Result<(), ShelfError> {
    let text = serde_json::to_vec(value).map_err(|source| ShelfError::Parse { path: path.to_owned(), source })?;
    let temporary = path.with_extension("new");
    let put = || -> std::io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    put().map_err(failed("write", path))?;
    path.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
#[path = "shelf_tests.rs"]
pub(super) mod tests;
