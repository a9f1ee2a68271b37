//! The list of the images in a directory, so that they need not be read to know what they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::image::build::Image;
use crate::write_atomic;

const FILE: &str = "images.json";

/// Why the list could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("keep the list of images {path}")]
pub struct ListError {
    /// The list.
    pub path: PathBuf,
    /// The operating system's reason.
    #[source]
    pub source: io::Error,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    reference: String,
    digest: String,
    file: String,
}

/// Writes the list of `images`, whose archives are all in `directory`.
///
/// # Errors
/// The operating system's reason.
pub fn store(directory: &Path, images: &[Image]) -> Result<(), ListError> {
    let listed: Vec<_> = images
        .iter()
        .map(|image| Listed {
            reference: image.reference.clone(),
            digest: image.digest.clone(),
            file: image.archive.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        })
        .collect();
    let path = directory.join(FILE);
    write_atomic::json(&path, &listed).map_err(|source| ListError { path, source })
}

/// The images in `directory`; `None` where no list was ever written.
///
/// # Errors
/// When the list is there but unreadable.
pub fn load(directory: &Path) -> Result<Option<Vec<Image>>, ListError> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ListError { path, source }),
    };
    let listed: Vec<Listed> =
        serde_json::from_slice(&bytes).map_err(|error| ListError { path, source: error.into() })?;
    let image =
        |image: Listed| Image { reference: image.reference, digest: image.digest, archive: directory.join(image.file) };
    Ok(Some(listed.into_iter().map(image).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_found_again_where_its_directory_was_moved_to() {
        let dir = tempfile::tempdir().unwrap();
        let image = |directory: &Path| Image {
            reference: "docker.io/lab/x:1".into(),
            digest: "sha256:00".into(),
            archive: directory.join("x.tar"),
        };
        let (before, after) = (dir.path().join("before"), dir.path().join("after"));
        assert_eq!(load(&before).unwrap(), None);
        store(&before, &[image(&before)]).unwrap();
        fs::rename(&before, &after).unwrap();
        assert_eq!(load(&after).unwrap(), Some(vec![image(&after)]));
    }
}
