//! The mark of a restored container: its `start` has nothing to do, and who stands in its place, where somebody does.

use crate::criu::ProcessId;
use crate::local::RESTORED;
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What is known of a restored container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mark {
    /// The process that containerd knows as the container's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stand_in: Option<ProcessId>,
    /// The container's own first process, once it is there; known only where there is a stand-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ProcessId>,
}

/// Marks, one file for each container id.
#[derive(Clone, Debug)]
pub(super) struct Markers {
    directory: PathBuf,
}

impl Markers {
    /// Those of this node. They are below `/run`: like the containers, they don't outlive a reboot.
    pub(super) fn of_node() -> Self {
        Self { directory: RESTORED.into() }
    }

    /// Those in `directory`.
    #[cfg(test)]
    pub(super) fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Marks a container, in one step.
    pub(super) fn set(&self, id: &str, mark: &Mark) -> std::io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // No container id has a comma.
        let beside = self.directory.join(format!("{id},new"));
        std::fs::write(&beside, serde_json::to_vec(mark)?)?;
        std::fs::rename(beside, self.path(id))
    }

    /// The mark of a container, if it has one.
    pub(super) fn get(&self, id: &str) -> std::io::Result<Option<Mark>> {
        read(&self.path(id))
    }

    /// The mark of the container in whose place process `pid` stands, if there is one.
    pub(super) fn of_stand_in(&self, pid: i32) -> std::io::Result<Option<Mark>> {
        let entries = match self.directory.read_dir() {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            entries => entries?,
        };
        for entry in entries {
            let stands = |mark: &Mark| mark.stand_in.is_some_and(|stand_in| stand_in.pid == pid && stand_in.is_alive());
            if let Some(mark) = read(&entry?.path())?.filter(stands) {
                return Ok(Some(mark));
            }
        }
        Ok(None)
    }

    /// Takes the mark away, if there is one.
    pub(super) fn clear(&self, id: &str) -> std::io::Result<()> {
        match std::fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        Path::new(&self.directory).join(id)
    }
}

fn read(path: &Path) -> std::io::Result<Option<Mark>> {
    match std::fs::read(path) {
        // A mark from before there were stand-ins is an empty file.
        Ok(text) if text.is_empty() => Ok(Some(Mark::default())),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(Error::other),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> ProcessId {
        ProcessId::now(std::process::id() as i32).unwrap()
    }

    #[test]
    fn a_mark_is_set_and_cleared_any_number_of_times() {
        let root = tempfile::tempdir().unwrap();
        let markers = Markers::at(&root.path().join("restored"));
        markers.clear("c").unwrap();
        assert_eq!(markers.get("c").unwrap(), None);
        markers.set("c", &Mark::default()).unwrap();
        let mark = Mark { stand_in: Some(own()), container: None };
        markers.set("c", &mark).unwrap();
        assert_eq!((markers.get("c").unwrap(), markers.get("d").unwrap()), (Some(mark), None));
        markers.clear("c").unwrap();
        assert_eq!(markers.get("c").unwrap(), None);
    }

    #[test]
    fn the_mark_of_a_shim_before_this_one_counts() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("c"), "").unwrap();
        assert_eq!(Markers::at(root.path()).get("c").unwrap(), Some(Mark::default()));
    }

    #[test]
    fn only_a_process_that_still_stands_is_a_stand_in() {
        let root = tempfile::tempdir().unwrap();
        let markers = Markers::at(root.path());
        assert_eq!(Markers::at(&root.path().join("none")).of_stand_in(own().pid).unwrap(), None);
        let gone = ProcessId { start_time: own().start_time + 1, ..own() };
        markers.set("a", &Mark { stand_in: Some(gone), container: None }).unwrap();
        assert_eq!(markers.of_stand_in(own().pid).unwrap(), None);
        let mark = Mark { stand_in: Some(own()), container: Some(gone) };
        markers.set("b", &mark).unwrap();
        assert_eq!(markers.of_stand_in(own().pid).unwrap(), Some(mark));
    }
}
