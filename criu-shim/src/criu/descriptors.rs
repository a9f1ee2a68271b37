//! `descriptors.json`: what the container's standard descriptors were, by which runc hands over new ones.
//!
//! runc reads the file when a restore starts, and for each entry that names a pipe gives CRIU the new container's
//! descriptor of the same number in the place of that pipe.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Name of the file in the image directory.
pub const FILE: &str = "descriptors.json";

/// Standard input, output and error.
const COUNT: usize = 3;

/// Longest entry that is accepted, bytes.
const MAX_ENTRY: usize = 4096;

/// Why the descriptors could not be read or written.
#[derive(Debug, Error)]
pub enum DescriptorsError {
    /// A descriptor of the container's init process could not be read.
    #[error("read {path}")]
    Read {
        /// The link in `/proc`.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The list is not what a container can have.
    #[error("{0} descriptors, or one of them too long")]
    Invalid(usize),
    /// The file could not be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What descriptors 0, 1 and 2 of process `pid` are: `pipe:[123]`, `/dev/null`, ...; empty for one that it has closed.
///
/// # Errors
/// [`DescriptorsError::Read`], also for a process that has ended.
pub fn read(pid: i32) -> Result<Vec<String>, DescriptorsError> {
    (0..COUNT)
        .map(|number| {
            let path = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
            match std::fs::read_link(&path) {
                Ok(link) => Ok(link.to_string_lossy().into_owned()),
                Err(error) if error.kind() == ErrorKind::NotFound && path.parent().is_some_and(Path::exists) => {
                    Ok(String::new())
                }
                Err(source) => Err(DescriptorsError::Read { path, source }),
            }
        })
        .collect()
}

/// Writes the file into an image directory.
///
/// # Errors
/// [`DescriptorsError::Invalid`] for a list that can't be one, because it may come from another node.
pub fn write(images: &Path, descriptors: &[String]) -> Result<(), DescriptorsError> {
    if descriptors.len() != COUNT || descriptors.iter().any(|entry| entry.len() > MAX_ENTRY) {
        return Err(DescriptorsError::Invalid(descriptors.len()));
    }
    let path = images.join(FILE);
    let json = serde_json::Value::from(descriptors.to_vec()).to_string();
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    open.and_then(|mut file| file.write_all(json.as_bytes())).map_err(|source| DescriptorsError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_a_list_of_three_strings() {
        let images = tempfile::tempdir().unwrap();
        let list = ["/dev/null", "pipe:[1]", "pipe:[2]"].map(str::to_owned);
        write(images.path(), &list).unwrap();
        let json = std::fs::read_to_string(images.path().join(FILE)).unwrap();
        assert_eq!(json, r#"["/dev/null","pipe:[1]","pipe:[2]"]"#);
        assert!(matches!(write(images.path(), &list[..2]), Err(DescriptorsError::Invalid(2))));
    }

    #[test]
    fn own_descriptors_can_be_read() {
        assert_eq!(read(std::process::id() as i32).unwrap().len(), 3);
    }
}
