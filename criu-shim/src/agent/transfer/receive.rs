//! Receiving: parts become regular files of an attempt's own directory, and nothing counts before its digest is right.

use crate::agent::transfer::link::{Incoming, LinkError, LinkReceiver};
use crate::agent::transfer::manifest::{Landed, Manifest};
use crate::agent::transfer::message::{FILES, FromSource, IMAGES, NameError, Part};
use bytes::Bytes;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::sync::mpsc;

/// Most parts of one attempt.
const MAX_PARTS: usize = 100_000;

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
    #[error("the state needs more space than the {0} bytes that the target has for it")]
    TooMuch(u64),
    /// A directory or file can't be written.
    #[error("write {path:?}")]
    Write {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The bytes are not those that were sent.
    #[error("{part} arrived with another digest or length than it was sent with")]
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

/// A round that has landed.
#[derive(Debug)]
pub struct Round {
    /// Its number.
    pub number: u32,
    /// Nothing follows it.
    pub last: bool,
    /// What it brought.
    pub manifest: Manifest,
    /// From its first message until its digest was verified.
    pub took: Duration,
}

/// Where the parts of one attempt land.
#[derive(Debug)]
pub struct Landing {
    directory: PathBuf,
    /// Bytes that may still come.
    room: u64,
    limit: u64,
    parts: usize,
}

impl Landing {
    /// Makes the attempt's directory afresh (0700), with room for `limit` bytes.
    ///
    /// # Errors
    /// Where the directory can't be made.
    pub fn create(directory: &Path, limit: u64) -> Result<Self, ReceiveError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ReceiveError::Write { path, source }
        };
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(directory)(error)),
            _ => {}
        }
        for directory in [directory.to_owned(), directory.join(IMAGES), directory.join(FILES), directory.join(WORK)] {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(failed(&directory))?;
        }
        Ok(Self { directory: directory.to_owned(), room: limit, limit, parts: 0 })
    }

    /// Takes the next round, to its end.
    ///
    /// # Errors
    /// Where the connection fails, or what comes is not acceptable; nothing of the attempt may be used then.
    pub async fn round(&mut self, link: &mut LinkReceiver<FromSource>) -> Result<Round, ReceiveError> {
        let FromSource::RoundBegin { round: number, last } = message(link, "the beginning of a round").await? else {
            return Err(ReceiveError::Unexpected {
                got: "another message".into(),
                expected: "the beginning of a round",
            });
        };
        let begun = Instant::now();
        let mut manifest = Manifest::default();
        loop {
            match message(link, "a part").await? {
                FromSource::FileBegin { part } => {
                    self.parts += 1;
                    if self.parts > MAX_PARTS {
                        return Err(ReceiveError::TooMany);
                    }
                    let landed = self.part(link, &part).await?;
                    if !manifest.add(part.clone(), landed) {
                        return Err(ReceiveError::Twice(part));
                    }
                }
                FromSource::RoundEnd { digest } if digest == manifest.digest() => {
                    return Ok(Round { number, last, manifest, took: begun.elapsed() });
                }
                FromSource::RoundEnd { .. } => return Err(ReceiveError::RoundCorrupted { round: number }),
                other => {
                    return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected: "a part" });
                }
            }
        }
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

    async fn part(&mut self, link: &mut LinkReceiver<FromSource>, part: &Part) -> Result<Landed, ReceiveError> {
        let (directory, name) = part.place()?;
        let path = self.directory.join(directory).join(name);
        let (chunks, queue) = mpsc::channel(2);
        let writing = tokio::task::spawn_blocking({
            let path = path.clone();
            move || write_chunks(&path, queue)
        });
        let (bytes, digest) = loop {
            match link.next().await? {
                Incoming::Data(chunk) => {
                    let Some(room) = self.room.checked_sub(chunk.len() as u64) else {
                        return Err(ReceiveError::TooMuch(self.limit));
                    };
                    self.room = room;
                    if chunks.send(chunk).await.is_err() {
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
        let written = writing.await.map_err(std::io::Error::other).and_then(|written| written);
        let landed = written.map_err(|source| ReceiveError::Write { path, source })?;
        if landed.bytes == bytes && landed.digest.to_hex().as_str() == digest {
            Ok(landed)
        } else {
            Err(ReceiveError::Corrupted { part: part.clone() })
        }
    }
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

/// Writes a new regular file (0600); an existing one is an error, because every part comes once.
fn write_chunks(path: &Path, mut chunks: mpsc::Receiver<Bytes>) -> std::io::Result<Landed> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    while let Some(chunk) = chunks.blocking_recv() {
        file.write_all(&chunk)?;
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
    }
    Ok(Landed { bytes, digest: hasher.finalize() })
}

#[cfg(test)]
#[path = "receive_tests.rs"]
mod tests;
