//! On which node the container is, as far as init can tell: whether it is another one than before.
//!
//! A container's directory is a file system that was mounted for it on its node, and a container that is restored elsewhere has
//! another one in its place. Which it is, is said by the source of that mount, which whoever mounts gives a name that no other
//! container has. It is looked up and not announced, so nothing is missed by an init, or an agent, that was not there. What is *in*
//! the directory would not do: the application may write to it. The source of a mount can't be changed, and to mount something
//! else there takes CAP_SYS_ADMIN.

use crate::mounts::Mount;
use std::path::{Path, PathBuf};

/// Where this is, and where it was.
#[derive(Debug)]
pub(crate) struct Whereabouts {
    directory: PathBuf,
    /// Source of the mount when note was taken.
    noted: Option<String>,
}

impl Whereabouts {
    /// Those of a container with this directory.
    pub(crate) fn of(directory: PathBuf) -> Self {
        Self { directory, noted: None }
    }

    /// Takes note of where this is.
    pub(crate) fn note(&mut self) {
        self.noted = self.now();
    }

    /// Whether it is somewhere else by now. Where either can't be told, it is not; where note could not be taken, it is now.
    pub(crate) fn have_changed(&mut self) -> bool {
        let now = self.now();
        if self.noted.is_none() {
            self.noted = now;
            return false;
        }
        now.is_some() && now != self.noted
    }

    fn now(&self) -> Option<String> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        source(&mounts, &self.directory).map(str::to_owned)
    }
}

/// Source of what is mounted at `point`; of several, the last one hides the others.
fn source<'a>(mounts: &'a str, point: &Path) -> Option<&'a str> {
    let there = |mount: &Mount| Path::new(mount.point) == point;
    mounts.lines().rev().filter_map(Mount::parse).find(there).map(|mount| mount.source)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "50 40 0:95 / / rw - overlay overlay rw\n\
        51 50 0:96 / /.tideover/run rw,noexec master:1 - tmpfs tideover-init:a rw,size=256k\n\
        52 50 0:97 / /.tideover/running rw - tmpfs other rw\n";

    #[test]
    fn the_source_of_the_directorys_own_mount_is_found() {
        assert_eq!(source(MOUNTS, Path::new("/.tideover/run")), Some("tideover-init:a"));
        assert_eq!(source(MOUNTS, Path::new("/.tideover")), None);
        let hidden = format!("{MOUNTS}53 51 0:98 / /.tideover/run rw - tmpfs tideover-init:b rw\n");
        assert_eq!(source(&hidden, Path::new("/.tideover/run")), Some("tideover-init:b"));
        assert_eq!(source("what is no line\n51 50 0:96 / /x rw -\n", Path::new("/x")), None);
    }

    #[test]
    fn a_container_that_can_not_tell_where_it_is_has_not_moved() {
        let mut nowhere = Whereabouts::of("/no/mount/point".into());
        nowhere.note();
        assert!(!nowhere.have_changed());
        let mut lost = Whereabouts { noted: Some("before".into()), ..nowhere };
        assert!(!lost.have_changed());
    }

    #[test]
    fn another_source_is_another_place_and_the_first_that_can_be_told_is_none() {
        let mut here = Whereabouts::of("/proc".into());
        assert!(!here.have_changed() && !here.have_changed());
        let mut elsewhere = Whereabouts { noted: Some("before".into()), ..here };
        assert!(elsewhere.have_changed());
        elsewhere.note();
        assert!(!elsewhere.have_changed());
    }
}
