//! Receiving: parts become regular files of an attempt's own directory, and their digests are kept beside them.
//!
//! The bytes of files are not hashed here: what counts is what lies on the disk when it is used, which `stored` compares. Those of
//! memory are, as they come.

use crate::agent::room::{NoRoom, Share};
use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::link::{Incoming, LinkError, LinkReceiver};
use crate::agent::transfer::manifest::{Landed, Manifest};
use crate::agent::transfer::memory::{FinishError, Memory, MemoryError};
use crate::agent::transfer::message::{FILES, FromSource, IMAGES, MAX_PARTS, MEMORY, NameError, Part, REHEARSAL};
use crate::agent::transfer::stored;
use bytes::Bytes;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Most files that are kept in memory before they are written, each of at most one frame.
const MAX_WHOLE: usize = 64;

/// Why a round could not be taken.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The connection is gone.
    #[error("receive the state")]
    Link(#[from] LinkError),
    /// The source gave up.
    #[error("the source gave up: {0}")]
    Aborted(String),
    /// A message that has no place here.
    #[error("the source sent {got} where {expected} was expected")]
    Unexpected {
        /// What came.
        got: String,
        /// What should have.
        expected: &'static str,
    },
    /// A part's name is not acceptable.
    #[error("refuse a part")]
    Name(#[from] NameError),
    /// Two parts of one name.
    #[error("{0} was sent twice")]
    Twice(Part),
    /// Too many parts.
    #[error("more than {MAX_PARTS} parts were sent")]
    TooMany,
    /// More bytes than there is room for.
    #[error("the state is larger than there is room for")]
    TooMuch(#[from] NoRoom),
    /// A directory or file can't be written.
    #[error("write {path:?}")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Memory can't be kept.
    #[error("keep memory that was sent")]
    Memory(#[from] MemoryError),
    /// Memory is not what the images ask for.
    #[error("complete the memory that was sent")]
    Finish(#[from] FinishError),
    /// The bytes are not as many as were sent, or not the same, or their digest is none.
    #[error("{part} arrived with another length or digest than it was sent with")]
    Corrupted {
        /// Which part.
        part: Part,
    },
    /// The round as a whole is not what was sent.
    #[error("round {round} arrived with another digest than it was sent with")]
    RoundCorrupted {
        /// Which round.
        round: u32,
    },
}

impl ReceiveError {
    /// Whether what arrived is not what was sent, as opposed to nothing arriving.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupted { .. } | Self::RoundCorrupted { .. } | Self::Twice(_))
    }
}

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundKind {
    /// What can be sent before the freeze.
    Early,
    /// A cut for the rehearsal, in a directory of its own.
    Rehearsal,
    /// The rest. Nothing follows it.
    Last,
}

/// A round that has landed.
#[derive(Debug)]
pub struct Round {
    /// Its number.
    pub number: u32,
    /// What it is for.
    pub kind: RoundKind,
    /// What it brought.
    pub manifest: Manifest,
    /// From its first message until all of it had landed.
    pub took: Duration,
}

/// Where the parts of one attempt land.
#[derive(Debug)]
pub struct Landing {
    directory: PathBuf,
    /// Bytes that may still come.
    share: Arc<Mutex<Share>>,
    /// What every round so far has brought, but for the rehearsal's.
    manifest: Manifest,
    /// Bytes that the rehearsal's round has brought.
    cut: u64,
    /// What has landed of the processes' memory.
    memory: Memory,
}

impl Landing {
    /// Makes the attempt's directory afresh (0700). What lands there comes out of `share`, and of what else there is room for.
    ///
    /// # Errors
    /// Where the directory can't be made.
    pub fn create(directory: &Path, share: Share) -> Result<Self, ReceiveError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ReceiveError::Write { path, source }
        };
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(directory)(error)),
            _ => {}
        }
        make_directories(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            share: Arc::new(Mutex::new(share)),
            manifest: Manifest::default(),
            cut: 0,
            memory: Memory::default(),
        })
    }

    /// Keeps room for `bytes` bytes, which the source says are about to come.
    ///
    /// # Errors
    /// Where there is not as much.
    pub fn expect(&mut self, bytes: u64) -> Result<(), NoRoom> {
        self.share().reach(bytes)
    }

    /// Takes the next round, to its end.
    ///
    /// # Errors
    /// Where the connection fails, or what comes is not acceptable; nothing of the attempt may be used then.
    pub async fn round(&mut self, link: &mut LinkReceiver<FromSource>) -> Result<Round, ReceiveError> {
        let (number, kind) = match message(link, "the beginning of a round").await? {
            FromSource::RoundBegin { round, last: true } => (round, RoundKind::Last),
            FromSource::RoundBegin { round, last: false } => (round, RoundKind::Early),
            FromSource::RehearsalBegin { round } => (round, RoundKind::Rehearsal),
            other => {
                let expected = "the beginning of a round";
                return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected });
            }
        };
        if kind != RoundKind::Early {
            // The source is frozen. It does not wait for another connection.
            link.renew_no_more();
        }
        let directory = match kind {
            RoundKind::Early => self.directory.clone(),
            RoundKind::Last => {
                // The cut was written into room that was kept for this round, and has been removed since.
                self.share().reach(self.cut)?;
                self.directory.clone()
            }
            RoundKind::Rehearsal => {
                let directory = self.directory.join(REHEARSAL);
                make_directories(&directory)?;
                directory
            }
        };
        let begun = Instant::now();
        let (mut manifest, mut whole) = (Manifest::default(), Vec::new());
        loop {
            let (part, landed) = match message(link, "a part").await? {
                FromSource::FileBegin { part } => {
                    self.may_have_another(&manifest)?;
                    let landed = self.part(link, &directory, &part).await?;
                    (part, landed)
                }
                FromSource::Whole { part, digest } => {
                    self.may_have_another(&manifest)?;
                    let (file, landed) = self.whole(link, &directory, &part, &digest).await?;
                    whole.push(file);
                    if whole.len() >= MAX_WHOLE {
                        let files = std::mem::take(&mut whole);
                        blocking(&directory, move |_| write_whole(files)).await?;
                    }
                    (part, landed)
                }
                FromSource::RoundEnd { digest } if digest == manifest.digest() => {
                    let stored = if kind == RoundKind::Rehearsal {
                        self.cut = manifest.bytes();
                        manifest.clone()
                    } else {
                        self.manifest.clone()
                    };
                    let memory = (kind == RoundKind::Last).then(|| std::mem::take(&mut self.memory));
                    blocking(&directory, move |directory| close(directory, whole, &stored, memory)).await?;
                    return Ok(Round { number, kind, manifest, took: begun.elapsed() });
                }
                FromSource::RoundEnd { .. } => return Err(ReceiveError::RoundCorrupted { round: number }),
                other => {
                    return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected: "a part" });
                }
            };
            let counts = kind != RoundKind::Rehearsal;
            let twice = counts && !self.manifest.add(part.clone(), landed.clone());
            if !manifest.add(part.clone(), landed) || twice {
                return Err(ReceiveError::Twice(part));
            }
        }
    }

    fn share(&self) -> MutexGuard<'_, Share> {
        // Nothing panics while it holds the lock.
        self.share.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_have_another(&self, round: &Manifest) -> Result<(), ReceiveError> {
        if self.manifest.len().max(round.len()) < MAX_PARTS { Ok(()) } else { Err(ReceiveError::TooMany) }
    }

    /// Brings everything that has landed onto the disk: for a state that is about to be the only one. Blocking.
    ///
    /// # Errors
    /// Where a file can't be synced; it may be gone after a power failure then.
    pub fn sync(directory: &Path) -> Result<(), ReceiveError> {
        for directory in [directory.join(IMAGES), directory.join(FILES), directory.to_owned()] {
            let failed = |source| ReceiveError::Write { path: directory.clone(), source };
            for entry in directory.read_dir().map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_file() {
                    let path = entry.path();
                    let synced = File::open(&path).and_then(|file| file.sync_all());
                    synced.map_err(|source| ReceiveError::Write { path, source })?;
                }
            }
            File::open(&directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        }
        Ok(())
    }

    /// Takes a part that is one frame. It is not on the disk yet.
    async fn whole(
        &mut self,
        link: &mut LinkReceiver<FromSource>,
        directory: &Path,
        part: &Part,
        digest: &str,
    ) -> Result<(WholeFile, Landed), ReceiveError> {
        let Some((kind, name)) = part.place()? else {
            return Err(ReceiveError::Unexpected { got: format!("{part} in one frame"), expected: "a part" });
        };
        let content = match link.next().await? {
            Incoming::Data(content) => content,
            Incoming::Message(FromSource::Abort { message }) => return Err(ReceiveError::Aborted(message)),
            Incoming::Message(other) => {
                return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected: "the content of a part" });
            }
        };
        let covered = self.share().take(content.len() as u64)?;
        let Some(digest) = Digest::parse(part, digest) else {
            return Err(ReceiveError::Corrupted { part: part.clone() });
        };
        let landed = Landed { bytes: content.len() as u64, digest };
        Ok((WholeFile { path: directory.join(kind).join(name), content, _covered: covered }, landed))
    }

    async fn part(
        &mut self,
        link: &mut LinkReceiver<FromSource>,
        directory: &Path,
        part: &Part,
    ) -> Result<Landed, ReceiveError> {
        let (chunks, queue) = mpsc::channel(2);
        let path = match part.place()? {
            Some((kind, name)) => directory.join(kind).join(name),
            None => directory.join(MEMORY),
        };
        let writing = match *part {
            Part::Memory { pid, .. } => Writing::Memory(self.memory.writing(pid, &path, queue, self.share.clone())),
            Part::Shared { inode, .. } => Writing::Memory(self.memory.writing_shared(inode, &path, queue)),
            _ => {
                let path = path.clone();
                Writing::File(tokio::task::spawn_blocking(move || write_chunks(&path, queue)))
            }
        };
        let (bytes, digest) = loop {
            match link.next().await? {
                Incoming::Data(chunk) => {
                    let covered = self.share().take(chunk.len() as u64)?;
                    if chunks.send((chunk, covered)).await.is_err() {
                        // The writer has failed; its result says why.
                        break (0, String::new());
                    }
                }
                Incoming::Message(FromSource::FileEnd { bytes, digest }) => break (bytes, digest),
                Incoming::Message(FromSource::Abort { message }) => return Err(ReceiveError::Aborted(message)),
                Incoming::Message(other) => {
                    return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected: "the end of a part" });
                }
            }
        };
        drop(chunks);
        let (written, found) = writing.end(&path).await?;
        match Digest::parse(part, &digest) {
            Some(digest) if written == bytes && found.is_none_or(|found| found == digest) => {
                Ok(Landed { bytes, digest })
            }
            _ => Err(ReceiveError::Corrupted { part: part.clone() }),
        }
    }
}

/// What takes the bytes of a part.
enum Writing {
    File(JoinHandle<std::io::Result<u64>>),
    Memory(JoinHandle<Result<(u64, Digest), MemoryError>>),
}

impl Writing {
    /// How many bytes it took, and their digest where they are not compared later.
    async fn end(self, path: &Path) -> Result<(u64, Option<Digest>), ReceiveError> {
        let failed = |source| ReceiveError::Write { path: path.to_owned(), source };
        match self {
            Self::File(task) => {
                let written = task.await.map_err(std::io::Error::other).and_then(|written| written);
                Ok((written.map_err(failed)?, None))
            }
            Self::Memory(task) => {
                let (written, digest) = task.await.map_err(|error| failed(std::io::Error::other(error)))??;
                Ok((written, Some(digest)))
            }
        }
    }
}

/// A part that is in memory and goes onto the disk with its like.
struct WholeFile {
    path: PathBuf,
    content: Bytes,
    _covered: Share,
}

/// Does `work` on `directory` where it may block.
async fn blocking(
    directory: &Path,
    work: impl FnOnce(&Path) -> Result<(), ReceiveError> + Send + 'static,
) -> Result<(), ReceiveError> {
    let (path, directory) = (directory.to_owned(), directory.to_owned());
    let done = tokio::task::spawn_blocking(move || work(&directory)).await;
    done.map_err(|error| ReceiveError::Write { path, source: std::io::Error::other(error) })?
}

/// Ends a round in `directory`: writes what is still in memory, and down what has landed so far. With the last round, completes
/// the memory that has landed, by what CRIU's images say. Blocking.
fn close(
    directory: &Path,
    whole: Vec<WholeFile>,
    manifest: &Manifest,
    memory: Option<Memory>,
) -> Result<(), ReceiveError> {
    write_whole(whole)?;
    stored::store(directory, manifest)
        .map_err(|source| ReceiveError::Write { path: directory.join(stored::MANIFEST), source })?;
    match memory {
        Some(memory) => Ok(memory.finish(&directory.join(MEMORY), &directory.join(IMAGES))?),
        None => Ok(()),
    }
}

/// Writes new regular files. Blocking.
fn write_whole(files: Vec<WholeFile>) -> Result<(), ReceiveError> {
    for WholeFile { path, content, .. } in files {
        let written = create(&path).and_then(|mut file| file.write_all(&content));
        written.map_err(|source| ReceiveError::Write { path, source })?;
    }
    Ok(())
}

/// Makes the directories of an attempt or of its rehearsal (0700).
fn make_directories(directory: &Path) -> Result<(), ReceiveError> {
    for path in [
        directory.to_owned(),
        directory.join(IMAGES),
        directory.join(FILES),
        directory.join(MEMORY),
        directory.join(WORK),
    ] {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| ReceiveError::Write { path, source })?;
    }
    Ok(())
}

/// Subdirectory of an attempt in which CRIU works.
pub const WORK: &str = "work";

async fn message(link: &mut LinkReceiver<FromSource>, expected: &'static str) -> Result<FromSource, ReceiveError> {
    match link.next().await? {
        Incoming::Message(FromSource::Abort { message }) => Err(ReceiveError::Aborted(message)),
        Incoming::Message(message) => Ok(message),
        Incoming::Data(_) => Err(ReceiveError::Unexpected { got: "data".into(), expected }),
    }
}

/// Makes a new regular file (0600); an existing one is an error, because every part comes once.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Writes a new regular file and returns its length.
fn write_chunks(path: &Path, mut chunks: mpsc::Receiver<(Bytes, Share)>) -> std::io::Result<u64> {
    let mut file = create(path)?;
    let mut bytes = 0;
    while let Some((chunk, covered)) = chunks.blocking_recv() {
        file.write_all(&chunk)?;
        drop(covered);
        bytes += chunk.len() as u64;
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
