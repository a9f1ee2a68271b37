//! The files of a dump, as parts of a round. Most of them go while CRIU is at work with the next process.

use crate::agent::source::closed::Closed;
use crate::agent::transfer::frame::MAX_DATA;
use crate::agent::transfer::message::Part;
use crate::agent::transfer::send::{RoundSender, SendError};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{Error, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// How often it is looked which files are complete. Dumping a process takes some milliseconds, and what is found together goes
/// together. Where all of a dump takes less, what is looked at meanwhile is only in its way.
const LOOK: Duration = Duration::from_millis(20);

/// Files that are complete once CRIU has closed them, by what their names begin with: those of one process, or of one object of shared
/// memory, which CRIU opens once, while it is at work with that (`dump_one_task` of its `criu/cr-dump.c`), and nobody writes again. But
/// for those that are empty: of shared memory that was left out they are removed ([`crate::criu::Shared`]). All others are written to the end, or
/// again: `pagemap-1.img` ([`crate::criu::pagemap`]), `files.img` ([`crate::criu::mend`]). The pages file that a target puts together has
/// another name, and is none of these.
const FINAL: [&str; 6] = ["core-", "fdinfo-", "fs-", "ids-", "mm-", "pages-"];

/// Why the files of a dump can't be sent.
#[derive(Debug, Error)]
pub(super) enum ImagesError {
    #[error("list the images in {path:?}")]
    List {
        path: PathBuf,
        #[source]
        source: Error,
    },
    #[error("read the image {path:?}")]
    Read {
        path: PathBuf,
        #[source]
        source: Error,
    },
    #[error("the image {path:?} has changed since it was sent")]
    Changed { path: PathBuf },
}

/// One file of a dump.
#[derive(Debug)]
pub(super) struct Image {
    part: Part,
    content: Content,
}

/// What is in it.
#[derive(Debug)]
enum Content {
    /// All of it, at most one frame.
    Small(Bytes),
    /// To be read as it is sent.
    Large(File),
}

/// What a file is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    written: (i64, i64),
}

impl Mark {
    fn of(metadata: &Metadata) -> Self {
        Self { inode: metadata.ino(), bytes: metadata.len(), written: (metadata.mtime(), metadata.mtime_nsec()) }
    }
}

/// The files that are sent while CRIU is at work.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// None where nothing can go ahead.
    closed: Option<Closed>,
    /// Those that have gone, by their names, and what each was known by.
    sent: BTreeMap<String, Mark>,
}

impl Ahead {
    /// Of a dump into `directory`, which has not begun.
    pub(super) fn of(directory: &Path) -> Self {
        let closed = Closed::watch(directory).inspect_err(|error| debug!(%error, "all images go after the dump"));
        Self { closed: closed.ok(), ..Self::default() }
    }

    /// Sends files that lie in `directory` as CRIU completes them, until it has `ended`. What it has completed by then and was
    /// not sent goes with the rest.
    ///
    /// # Errors
    /// Where the connection is gone, or a file can't be read.
    pub(super) async fn send(
        &mut self,
        round: &mut RoundSender,
        directory: &Path,
        ended: &CancellationToken,
    ) -> Result<(), SendError> {
        while let Some(closed) = self.closed.as_ref().filter(|_| !ended.is_cancelled()) {
            let mut names: Vec<String> = closed.names().into_iter().filter(|name| is_final(name)).collect();
            names.retain(|name| !self.sent.contains_key(name));
            if !names.is_empty() {
                let directory = directory.to_owned();
                let reading = tokio::task::spawn_blocking(move || complete(&directory, names));
                let mut images = Vec::new();
                // What is not found here goes with the rest.
                for (name, mark, image) in reading.await.unwrap_or_default() {
                    self.sent.insert(name, mark);
                    images.push(image);
                }
                send(round, images).await?;
            }
            tokio::time::timeout(LOOK, ended.cancelled()).await.ok();
        }
        // The kernel lets it go only when nobody can look at it any more, ten milliseconds later and more. Nobody waits for that.
        let closed = self.closed.take();
        tokio::task::spawn_blocking(move || drop(closed));
        Ok(())
    }
}

/// Whether the file of this name is complete once it is closed.
fn is_final(name: &str) -> bool {
    name.ends_with(".img") && FINAL.iter().any(|kind| name.starts_with(kind))
}

/// The files of these `names` in `directory`, which are complete, but for those that can't be read.
fn complete(directory: &Path, names: Vec<String>) -> Vec<(String, Mark, Image)> {
    let read = |name: String| {
        let path = directory.join(&name);
        // Before it is read: what is written after this is noticed.
        let mark = Mark::of(&path.symlink_metadata().ok()?);
        if mark.bytes == 0 {
            return None;
        }
        let content = content(&path).ok()?;
        Some((name.clone(), mark, Image { part: Part::Image { name }, content }))
    };
    names.into_iter().filter_map(read).collect()
}

/// The regular files in `directories`, in order of their names, but for those that have gone `ahead`. Blocking.
///
/// # Errors
/// [`ImagesError`], also where one that has gone is not as it was.
pub(super) fn read(directories: &[PathBuf], ahead: &Ahead) -> Result<Vec<Image>, ImagesError> {
    let (mut files, mut missing) = (Vec::new(), ahead.sent.clone());
    for directory in directories {
        let failed = |source| ImagesError::List { path: directory.clone(), source };
        for entry in directory.read_dir().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_type().map_err(failed)?.is_file() {
                continue;
            }
            let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
            match ahead.sent.get(&name) {
                None => files.push((name, path)),
                Some(mark) if *mark == Mark::of(&entry.metadata().map_err(failed)?) => drop(missing.remove(&name)),
                Some(_) => return Err(ImagesError::Changed { path }),
            }
        }
    }
    if let Some((name, _)) = missing.pop_first() {
        return Err(ImagesError::Changed { path: name.into() });
    }
    files.sort();
    files
        .into_iter()
        .map(|(name, path)| {
            let content = content(&path).map_err(|source| ImagesError::Read { path, source })?;
            Ok(Image { part: Part::Image { name }, content })
        })
        .collect()
}

/// Sends `images`: small ones together.
///
/// # Errors
/// Where the connection is gone, or a file can't be read.
pub(super) async fn send(round: &mut RoundSender, images: Vec<Image>) -> Result<(), SendError> {
    let mut small = Vec::new();
    for Image { part, content } in images {
        match content {
            Content::Small(bytes) => small.push((part, bytes)),
            Content::Large(file) => round.part(part, file).await?,
        }
    }
    round.together(small).await
}

fn content(path: &Path) -> Result<Content, Error> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() > MAX_DATA as u64 {
        return Ok(Content::Large(file));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Content::Small(bytes.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn name(image: &Image) -> String {
        image.part.to_string()
    }

    #[test]
    fn what_fits_into_a_frame_is_read_at_once_and_the_rest_as_it_is_sent() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: usize| std::fs::write(directory.path().join(name), vec![1; bytes]);
        for (name, bytes) in [("b", MAX_DATA), ("c", MAX_DATA + 1), ("a", 0), ("e", 1)] {
            write(name, bytes).expect("a file");
        }
        std::fs::create_dir(directory.path().join("d")).expect("a directory");
        let mark = Mark::of(&directory.path().join("e").metadata().expect("e"));
        let ahead = Ahead { closed: None, sent: BTreeMap::from([("e".to_owned(), mark)]) };
        let directories = [directory.path().to_owned()];
        let images = read(&directories, &ahead).expect("images");
        let lengths: Vec<_> = images
            .iter()
            .map(|image| match &image.content {
                Content::Small(bytes) => (name(image), Some(bytes.len())),
                Content::Large(_) => (name(image), None),
            })
            .collect();
        let expected = [("a", Some(0)), ("b", Some(MAX_DATA)), ("c", None)];
        assert_eq!(lengths, expected.map(|(name, length)| (format!("the image {name}"), length)));
        write("e", 2).expect("a file");
        assert!(matches!(read(&directories, &ahead), Err(ImagesError::Changed { path }) if path.ends_with("e")));
        std::fs::remove_file(directory.path().join("e")).expect("removed");
        assert!(matches!(read(&directories, &ahead), Err(ImagesError::Changed { path }) if path.ends_with("e")));
    }

    #[test]
    fn what_is_written_again_after_the_dump_is_not_complete_before() {
        for name in ["core-17.img", "fdinfo-2.img", "fs-1.img", "ids-1.img", "mm-1.img", "pages-9.img"] {
            assert!(is_final(name), "{name}");
        }
        for name in ["pagemap-1.img", "pagemap-shmem-5.img", "files.img", "inventory.img", "pages-9.img.settled"] {
            assert!(!is_final(name), "{name}");
        }
    }

    #[tokio::test]
    async fn files_go_as_soon_as_they_are_closed_and_not_before() {
        use crate::agent::transfer::link::{self, Incoming};
        use crate::agent::transfer::message::{FromSource, FromTarget};
        use crate::agent::transfer::send;

        let directory = tempfile::tempdir().expect("a directory");
        let (near, far) = tokio::io::duplex(64 << 10);
        let (source, _from_target) = link::open::<_, FromSource, FromTarget>(near);
        let (_to_source, mut target) = link::open::<_, FromTarget, FromSource>(far);
        let mut ahead = Ahead::of(directory.path());
        let mut open = File::create(directory.path().join("core-2.img")).expect("a file");
        open.write_all(b"half").expect("write");
        let mut open = Some(open);
        for name in ["core-1.img", "mm-1.img", "pagemap-1.img"] {
            std::fs::write(directory.path().join(name), name).expect("a file");
        }
        std::fs::write(directory.path().join("pages-7.img"), "").expect("of shared memory that was left out");
        let ended = CancellationToken::new();
        let mut round = send::begin(&source, 1, true).await.expect("begin");
        let hearing = async {
            let mut heard = Vec::new();
            while heard.len() < 3 {
                if let Incoming::Message(FromSource::Together { parts }) = target.next().await.expect("a message") {
                    heard.extend(parts.into_iter().map(|small| small.part.to_string()));
                }
                if let Some(mut open) = open.take_if(|_| heard.len() == 2) {
                    open.write_all(b" of it").expect("write");
                }
            }
            ended.cancel();
            heard
        };
        let (sent, heard) = tokio::join!(ahead.send(&mut round, directory.path(), &ended), hearing);
        sent.expect("sent");
        std::fs::remove_file(directory.path().join("pages-7.img")).expect("removed, because it is empty");
        assert_eq!(heard, ["the image core-1.img", "the image mm-1.img", "the image core-2.img"]);
        let rest = read(&[directory.path().to_owned()], &ahead).expect("as they were");
        assert_eq!(rest.iter().map(name).collect::<Vec<_>>(), ["the image pagemap-1.img"]);
        let sent = round.end().await.expect("end");
        assert_eq!(sent.bytes(), ("core-1.img".len() + "mm-1.img".len() + "half of it".len()) as u64);
    }
}
