//! Receiving: parts become regular files of an attempt's own directory, and their digests are kept beside them.
//!
//! The bytes of files are not hashed here: what counts is what lies on the disk when it is used, which `stored` compares. Those of
//! memory are, as they come, and of the pages files that are put together. What comes is written by the thread that takes it from the connection: one more to hand it to
//! would cost more than what it could do meanwhile.

mod error;
mod ready;
#[cfg(test)]
mod tests;

pub use error::ReceiveError;

use crate::agent::room::{NoRoom, Share};
use crate::agent::transfer::growing::{Grower, Growing};
use crate::agent::transfer::hashing::Digest;
use crate::agent::transfer::link::{Incoming, LinkReceiver};
use crate::agent::transfer::manifest::{Landed, Manifest};
use crate::agent::transfer::memory::{Arriving, Memory};
use crate::agent::transfer::message::{FILES, FromSource, IMAGES, MAX_PARTS, MEMORY, Part, REHEARSAL, Small};
use crate::agent::transfer::packed::Unpacking;
use crate::agent::transfer::receive::ready::Ready;
use crate::agent::transfer::stored;
use crate::pages::store::NamedSums;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// What a round is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundKind {
    /// What can be sent before the freeze.
    Early,
    /// A cut for the rehearsal, its images in a directory of their own.
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
    share: Share,
    /// What every round so far has brought, but for the rehearsal's.
    manifest: Manifest,
    /// Bytes of images that the rehearsal's round has brought.
    cut: u64,
    /// What has landed of the processes' memory.
    memory: Memory,
    unpacking: Unpacking,
    /// Who is told of the last round's archives of files as soon as they begin to land.
    follower: Option<mpsc::Sender<Growing>>,
    /// What these archives land in.
    ready: Ready,
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
            share,
            manifest: Manifest::default(),
            cut: 0,
            memory: Memory::default(),
            unpacking: Unpacking::default(),
            follower: None,
            ready: Ready::new(directory.join(READY)),
        })
    }

    /// Keeps room for `bytes` bytes, which the source says are about to come.
    ///
    /// # Errors
    /// Where there is not as much.
    pub fn expect(&mut self, bytes: u64) -> Result<(), NoRoom> {
        self.share.reach(bytes)
    }

    /// Takes the next round, to its end. Between its waits for the connection it writes: only a thread that may block can run it.
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
        // Of a cut, what runs on after it goes on counting: its memory and files are those of another round.
        let images = match kind {
            RoundKind::Early => self.directory.clone(),
            RoundKind::Last => {
                // The cut was written into room that was kept for this round, and has been removed since.
                self.share.reach(self.cut)?;
                self.directory.clone()
            }
            RoundKind::Rehearsal => {
                let directory = self.directory.join(REHEARSAL);
                make_directories(&directory)?;
                directory
            }
        };
        let directories = Directories { images, rest: self.directory.clone() };
        let begun = Instant::now();
        let mut manifest = Manifest::default();
        loop {
            match message(link, "a part").await? {
                FromSource::FileBegin { part } => {
                    self.may_have(1, &manifest)?;
                    let landed = self.part(link, &directories, kind, &part).await?;
                    self.add(kind, &mut manifest, part, landed)?;
                }
                FromSource::Together { parts } => {
                    self.may_have(parts.len(), &manifest)?;
                    for (part, landed) in self.together(link, &directories, parts).await? {
                        self.add(kind, &mut manifest, part, landed)?;
                    }
                }
                FromSource::RoundEnd { digest } if digest == manifest.digest() => {
                    self.landed(kind, &directories, &manifest)?;
                    return Ok(Round { number, kind, manifest, took: begun.elapsed() });
                }
                FromSource::RoundEnd { .. } => return Err(ReceiveError::RoundCorrupted { round: number }),
                other => {
                    return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected: "a part" });
                }
            }
        }
    }

    /// All parts of a round have landed.
    fn landed(&mut self, kind: RoundKind, directories: &Directories, round: &Manifest) -> Result<(), ReceiveError> {
        let Directories { images, rest } = directories;
        self.memory.settle()?;
        let mut sums = Vec::new();
        match kind {
            RoundKind::Early => {}
            RoundKind::Rehearsal => {
                let mut cut = round.only(is_of_cut);
                for (part, landed) in self.memory.assemble(&images.join(IMAGES), &mut self.share)? {
                    self.may_have(1, &cut)?;
                    add_assembled(&mut cut, part, landed)?;
                }
                self.cut = cut.bytes();
                store(images, &cut, Vec::new())?;
                self.memory.show(&images.join(MEMORY), &images.join(IMAGES))?;
            }
            RoundKind::Last => {
                for (part, landed) in self.memory.assemble(&images.join(IMAGES), &mut self.share)? {
                    self.may_have(1, round)?;
                    add_assembled(&mut self.manifest, part, landed)?;
                }
                sums = std::mem::take(&mut self.memory).finish(&rest.join(MEMORY), &images.join(IMAGES))?;
            }
        }
        store(rest, &self.manifest, sums)
    }

    /// Another part has landed with a round.
    fn add(&mut self, kind: RoundKind, round: &mut Manifest, part: Part, landed: Landed) -> Result<(), ReceiveError> {
        let counts = kind != RoundKind::Rehearsal || !is_of_cut(&part);
        let twice = counts && !self.manifest.add(part.clone(), landed.clone());
        let bytes = landed.bytes;
        if !round.add(part.clone(), landed) || twice {
            return Err(ReceiveError::Twice(part));
        }
        if kind == RoundKind::Early && self.follower.is_some() {
            self.ready.landed(&part, bytes, &mut self.share);
        }
        Ok(())
    }

    fn may_have(&self, more: usize, round: &Manifest) -> Result<(), ReceiveError> {
        if self.manifest.len().max(round.len()) + more <= MAX_PARTS { Ok(()) } else { Err(ReceiveError::TooMany) }
    }

    /// The same of a state that is about to be the only one: its memory has sums.
    #[must_use]
    pub fn lasting(self) -> Self {
        Self { memory: Memory::lasting(), ..self }
    }

    /// The same, where `follower` is told of each archive of files that the last round brings, before all of it is here.
    #[must_use]
    pub fn followed_by(self, follower: mpsc::Sender<Growing>) -> Self {
        Self { follower: Some(follower), ..self }
    }

    /// Brings everything that has landed onto the disk: for a state that is about to be the only one. Blocking.
    ///
    /// # Errors
    /// Where a file can't be synced; it may be gone after a power failure then.
    pub fn sync(directory: &Path) -> Result<(), ReceiveError> {
        for directory in [directory.join(IMAGES), directory.join(FILES), directory.join(MEMORY), directory.to_owned()] {
            let failed = |source| ReceiveError::Write { path: directory.clone(), source };
            for entry in directory.read_dir().map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_file() {
                    let path = entry.path();
                    match File::open(&path).and_then(|file| file.sync_all()) {
                        // Another manifest has taken its place: a round has landed, after which all is synced again.
                        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                        synced => synced.map_err(|source| ReceiveError::Write { path, source })?,
                    }
                }
            }
            File::open(&directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        }
        // Those of the attempt, of the move, and of all moves: they were made for this one.
        for directory in directory.ancestors().skip(1).take(3) {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(|source| ReceiveError::Write { path: directory.to_owned(), source })?;
        }
        Ok(())
    }

    /// Takes parts that are one frame together.
    async fn together(
        &mut self,
        link: &mut LinkReceiver<FromSource>,
        directories: &Directories,
        parts: Vec<Small>,
    ) -> Result<Vec<(Part, Landed)>, ReceiveError> {
        let content = match link.next().await? {
            Incoming::Data(content) => content,
            Incoming::Message(FromSource::Abort { message }) => return Err(ReceiveError::Aborted(message)),
            Incoming::Packed(_) => {
                return Err(ReceiveError::Unexpected {
                    got: "compressed data".into(),
                    expected: "the content of parts",
                });
            }
            Incoming::Message(other) => {
                return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected: "the content of parts" });
            }
        };
        let covered = self.share.take(content.len() as u64)?;
        let (mut landed, mut rest) = (Vec::with_capacity(parts.len()), &content[..]);
        for Small { part, bytes, digest } in parts {
            let Some((kind, name)) = part.place()? else {
                return Err(ReceiveError::Unexpected { got: format!("{part} in one frame"), expected: "a part" });
            };
            let length = usize::try_from(bytes).unwrap_or(usize::MAX);
            let (Some((own, others)), Some(digest)) = (rest.split_at_checked(length), Digest::parse(&part, &digest))
            else {
                return Err(ReceiveError::Corrupted { part });
            };
            let path = directories.of(&part).join(kind).join(name);
            let written = create(&path).and_then(|mut file| file.write_all(own));
            written.map_err(|source| ReceiveError::Write { path, source })?;
            landed.push((part, Landed { bytes, digest }));
            rest = others;
        }
        drop(covered);
        match landed.pop() {
            Some((part, _)) if !rest.is_empty() => Err(ReceiveError::Corrupted { part }),
            last => Ok(landed.into_iter().chain(last).collect()),
        }
    }

    async fn part(
        &mut self,
        link: &mut LinkReceiver<FromSource>,
        directories: &Directories,
        kind: RoundKind,
        part: &Part,
    ) -> Result<Landed, ReceiveError> {
        let directory = directories.of(part);
        let memory = directory.join(MEMORY);
        let mut writing = match (part, part.place()?) {
            (Part::Memory { pid, .. }, _) => Writing::Memory(self.memory.begin(*pid, &memory)?),
            (Part::Shared { inode, .. }, _) => Writing::Memory(self.memory.begin_shared(*inode, &memory)?),
            (_, Some((place, name))) => {
                let path = directory.join(place).join(name);
                let ready = (kind == RoundKind::Last).then(|| self.ready.take(part, &path)).flatten();
                let is_long = ready.is_some();
                let file = ready.map_or_else(|| create(&path), Ok);
                let file = file.map_err(|source| ReceiveError::Write { path: path.clone(), source })?;
                let grower = self.grows(kind, part, &path).await;
                Writing::File { path, file, is_long, written: 0, grower }
            }
            (_, None) => {
                return Err(ReceiveError::Unexpected { got: part.to_string(), expected: "a part that is kept" });
            }
        };
        let (bytes, digest) = loop {
            match link.next().await? {
                Incoming::Data(chunk) => self.write(&mut writing, &chunk)?,
                Incoming::Packed(packed) => {
                    let mut unpacking = std::mem::take(&mut self.unpacking);
                    let chunk = unpacking.unpack(&packed);
                    let chunk = chunk.map_err(|source| ReceiveError::Packed { part: part.clone(), source })?;
                    self.write(&mut writing, chunk)?;
                    self.unpacking = unpacking;
                }
                Incoming::Message(FromSource::FileEnd { bytes, digest }) => break (bytes, digest),
                Incoming::Message(FromSource::Abort { message }) => return Err(ReceiveError::Aborted(message)),
                Incoming::Message(other) => {
                    return Err(ReceiveError::Unexpected { got: format!("{other:?}"), expected: "the end of a part" });
                }
            }
        };
        let (written, found, grower) = match writing {
            Writing::File { path, file, is_long, written, grower } => {
                if is_long {
                    file.set_len(written).map_err(|source| ReceiveError::Write { path, source })?;
                }
                (written, None, grower)
            }
            Writing::Memory(arriving) => {
                let (written, digest) = self.memory.end(arriving)?;
                (written, Some(digest), None)
            }
        };
        match Digest::parse(part, &digest) {
            Some(digest) if written == bytes && found.is_none_or(|found| found == digest) => {
                let landed = Landed { bytes, digest };
                grower.into_iter().for_each(|grower| grower.landed(landed.clone()));
                Ok(landed)
            }
            _ => Err(ReceiveError::Corrupted { part: part.clone() }),
        }
    }

    /// What tells the follower how much of a part there is, if it is told of such a part at all.
    async fn grows(&self, round: RoundKind, part: &Part, path: &Path) -> Option<Grower> {
        let follower = self.follower.as_ref().filter(|_| round == RoundKind::Last && !is_of_cut(part))?;
        let (grower, growing) = Growing::begin(path.to_owned());
        // One that is gone has no use for it.
        follower.send(growing).await.ok()?;
        Some(grower)
    }

    /// Keeps the next bytes of a part.
    fn write(&mut self, writing: &mut Writing, chunk: &[u8]) -> Result<(), ReceiveError> {
        let covered = self.share.take(chunk.len() as u64)?;
        match writing {
            Writing::File { path, file, written, grower, .. } => {
                file.write_all(chunk).map_err(|source| ReceiveError::Write { path: path.clone(), source })?;
                *written += chunk.len() as u64;
                grower.iter().for_each(|grower| grower.has(*written));
            }
            Writing::Memory(arriving) => self.memory.take(arriving, chunk, &mut self.share)?,
        }
        drop(covered);
        Ok(())
    }
}

/// Where the parts of one round go.
struct Directories {
    /// CRIU's images.
    images: PathBuf,
    /// Everything else.
    rest: PathBuf,
}

impl Directories {
    fn of(&self, part: &Part) -> &Path {
        if is_of_cut(part) { &self.images } else { &self.rest }
    }
}

/// Another file of images lies there, which was put together of what has landed.
fn add_assembled(manifest: &mut Manifest, part: Part, landed: Landed) -> Result<(), ReceiveError> {
    if manifest.add(part.clone(), landed) { Ok(()) } else { Err(ReceiveError::Twice(part)) }
}

/// Whether such a part of a cut is of no use after the rehearsal.
fn is_of_cut(part: &Part) -> bool {
    matches!(part, Part::Image { .. })
}

fn store(directory: &Path, manifest: &Manifest, sums: Vec<NamedSums>) -> Result<(), ReceiveError> {
    let stored = stored::store(directory, manifest, sums);
    stored.map_err(|source| ReceiveError::Write { path: directory.join(stored::MANIFEST), source })
}

/// Where the bytes of a part go.
enum Writing {
    File {
        path: PathBuf,
        file: File,
        /// It may have more bytes than the part.
        is_long: bool,
        /// Bytes.
        written: u64,
        /// Who reads it meanwhile hears of it by this.
        grower: Option<Grower>,
    },
    Memory(Arriving),
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

/// Subdirectory of an attempt in which the files are that the last round lands in.
const READY: &str = "ready";
/// Subdirectory of an attempt in which CRIU works.
pub const WORK: &str = "work";

async fn message(link: &mut LinkReceiver<FromSource>, expected: &'static str) -> Result<FromSource, ReceiveError> {
    match link.next().await? {
        Incoming::Message(FromSource::Abort { message }) => Err(ReceiveError::Aborted(message)),
        Incoming::Message(message) => Ok(message),
        Incoming::Data(_) | Incoming::Packed(_) => Err(ReceiveError::Unexpected { got: "data".into(), expected }),
    }
}

/// Makes a new regular file (0600); an existing one is an error, because every part comes once.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}
