//! The files of a dump, as parts of a round. Those with pages go while CRIU is at work with the next process; they are by far the
//! largest.

use crate::agent::transfer::frame::MAX_DATA;
use crate::agent::transfer::message::Part;
use crate::agent::transfer::send::{RoundSender, SendError};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Error, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// How often it is looked which pages files are complete. Dumping a process takes some milliseconds.
const LOOK: Duration = Duration::from_millis(10);

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
}

/// One file of a dump.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) part: Part,
    pub(super) content: Content,
}

/// What is in it.
#[derive(Debug)]
pub(super) enum Content {
    /// All of it, at most one frame.
    Small(Bytes),
    /// To be read as it is sent.
    Large(File),
}

/// The pages files that were sent while CRIU was at work, by their names. None of them has changed since: what has to be written
/// again gets another name ([`crate::criu::pagemap`]).
#[derive(Debug, Default)]
pub(super) struct Ahead(BTreeSet<String>);

impl Ahead {
    /// Sends pages files that lie in `directory` as CRIU completes them, until it has `ended`. What it has completed by then and was
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
        while !ended.is_cancelled() {
            let (directory, known) = (directory.to_owned(), self.0.clone());
            let looking = tokio::task::spawn_blocking(move || complete(&directory, &known));
            // What is not found here goes with the rest.
            for (name, file) in looking.await.unwrap_or_default() {
                self.0.insert(name.clone());
                round.part(Part::Image { name }, file).await?;
            }
            tokio::time::timeout(LOOK, ended.cancelled()).await.ok();
        }
        Ok(())
    }
}

/// The large pages files in `directory` that are complete and not `known`, opened: CRIU numbers them as it goes, and writes one
/// after the other. One that is gone meanwhile was written again under another name.
fn complete(directory: &Path, known: &BTreeSet<String>) -> Vec<(String, File)> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut files: Vec<(u32, String)> = names.filter_map(|name| Some((pages_number(&name)?, name))).collect();
    files.sort();
    files.pop();
    let new = files.into_iter().map(|(_, name)| name).filter(|name| !known.contains(name));
    let large = new.filter_map(|name| {
        let file = File::open(directory.join(&name)).ok()?;
        (file.metadata().ok()?.len() > MAX_DATA as u64).then_some((name, file))
    });
    large.collect()
}

/// The number of a pages file. Source: `CR_FD_PAGES` in CRIU's `criu/image-desc.c`.
fn pages_number(name: &str) -> Option<u32> {
    name.strip_prefix("pages-")?.strip_suffix(".img")?.parse().ok()
}

/// The regular files in `directories`, in order of their names, but for those that have gone `ahead`. Blocking.
///
/// # Errors
/// [`ImagesError`].
pub(super) fn read(directories: &[PathBuf], ahead: &Ahead) -> Result<Vec<Image>, ImagesError> {
    let mut files = Vec::new();
    for directory in directories {
        let failed = |source| ImagesError::List { path: directory.clone(), source };
        for entry in directory.read_dir().map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                files.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
            }
        }
    }
    files.sort();
    files
        .into_iter()
        .filter(|(name, _)| !ahead.0.contains(name))
        .map(|(name, path)| {
            let content = content(&path).map_err(|source| ImagesError::Read { path, source })?;
            Ok(Image { part: Part::Image { name }, content })
        })
        .collect()
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

    #[test]
    fn what_fits_into_a_frame_is_read_at_once_and_the_rest_as_it_is_sent() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: usize| std::fs::write(directory.path().join(name), vec![1; bytes]);
        for (name, bytes) in [("b", MAX_DATA), ("c", MAX_DATA + 1), ("a", 0), ("e", 1)] {
            write(name, bytes).expect("a file");
        }
        std::fs::create_dir(directory.path().join("d")).expect("a directory");
        let ahead = Ahead(BTreeSet::from(["e".to_owned()]));
        let images = read(&[directory.path().to_owned()], &ahead).expect("images");
        let lengths: Vec<_> = images
            .iter()
            .map(|image| match &image.content {
                Content::Small(bytes) => (image.part.to_string(), Some(bytes.len())),
                Content::Large(_) => (image.part.to_string(), None),
            })
            .collect();
        let expected = [("a", Some(0)), ("b", Some(MAX_DATA)), ("c", None)];
        assert_eq!(lengths, expected.map(|(name, length)| (format!("the image {name}"), length)));
    }
    #[test]
    fn a_pages_file_is_complete_once_there_is_one_after_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, bytes: usize| std::fs::write(directory.path().join(name), vec![1; bytes]).expect(name);
        let complete = |known: &[&str]| {
            let known = known.iter().map(|name| (*name).to_owned()).collect();
            complete(directory.path(), &known).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        write("pages-9.img", MAX_DATA + 1);
        write("pagemap-10.img", MAX_DATA + 1);
        assert!(complete(&[]).is_empty(), "CRIU may be at work with it");
        write("pages-10.img", MAX_DATA);
        assert_eq!(complete(&[]), ["pages-9.img"]);
        write("pages-11.img", 0);
        assert_eq!(complete(&[]), ["pages-9.img"], "a small one goes with others");
        assert!(complete(&["pages-9.img"]).is_empty());
    }
}
