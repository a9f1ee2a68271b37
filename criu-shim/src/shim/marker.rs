//! The marker of a restored container: its `start` has nothing to do.

use crate::local::RESTORED;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Markers, one file for each container id.
#[derive(Clone, Debug)]
pub(super) struct Markers {
    directory: PathBuf,
}

impl Markers {
    /// Those of this node. They are below `/run`: like the containers, they don't outlive a reboot.
    pub(super) fn of_node() -> Self {
        Self { directory: RESTORED.into() }
    }

    /// Marks a container.
    pub(super) fn set(&self, id: &str) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        std::fs::write(self.path(id), b"")
    }

    /// True if the container is marked.
    pub(super) fn is_set(&self, id: &str) -> bool {
        self.path(id).exists()
    }

    /// Takes the mark away, if there is one.
    pub(super) fn clear(&self, id: &str) -> std::io::Result<()> {
        match std::fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        Path::new(&self.directory).join(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_set_and_cleared_any_number_of_times() {
        let root = tempfile::tempdir().unwrap();
        let markers = Markers { directory: root.path().join("restored") };
        markers.clear("c").unwrap();
        assert!(!markers.is_set("c"));
        markers.set("c").unwrap();
        markers.set("c").unwrap();
        assert!(markers.is_set("c") && !markers.is_set("d"));
        markers.clear("c").unwrap();
        assert!(!markers.is_set("c"));
    }
}
