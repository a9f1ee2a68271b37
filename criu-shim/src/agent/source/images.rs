//! The files of a dump, as parts of a round.

use crate::agent::transfer::frame::MAX_DATA;
use crate::agent::transfer::message::Part;
use bytes::Bytes;
use std::fs::File;
use std::io::{Error, Read};
use std::path::{Path, PathBuf};
use thiserror::Error;

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

/// The regular files in `directories`, in order of their names. Blocking.
///
/// # Errors
/// [`ImagesError`].
pub(super) fn read(directories: &[PathBuf]) -> Result<Vec<Image>, ImagesError> {
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
        for (name, bytes) in [("b", MAX_DATA), ("c", MAX_DATA + 1), ("a", 0)] {
            write(name, bytes).expect("a file");
        }
        std::fs::create_dir(directory.path().join("d")).expect("a directory");
        let images = read(&[directory.path().to_owned()]).expect("images");
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
}
