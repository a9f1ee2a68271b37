//! Writes files that a reader finds either old or new, never half.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

/// Replaces `path` with `bytes`; missing parent directories are made. Mode 0600, as for any temporary file: most of
/// what the lab writes is its own affair or a key.
///
/// # Errors
/// The operating system's reason; `path` is then as before.
pub fn bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent)?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

/// Replaces `path` with `value` as JSON.
///
/// # Errors
/// As [`bytes`].
pub fn json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    bytes(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_made_and_old_content_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        bytes(&path, b"a long first content").unwrap();
        bytes(&path, b"short").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"short");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
