//! How many processes of the container the kernel has killed for want of memory.
//!
//! A SIGKILL does not say who sent it. The count in the container's own cgroup does: `oom_kill` in `memory.events` (v2) or
//! in `memory.oom_control` (v1). Where neither can be read, every SIGKILL is an unclean signal.

use crate::mounts::Mount;
use std::fs;
use std::path::{Path, PathBuf};

/// The file with the count, and the count when the present run began.
#[derive(Debug)]
pub(crate) struct OomKills {
    file: Option<PathBuf>,
    before: u64,
}

impl OomKills {
    /// Finds the file.
    pub(crate) fn find() -> Self {
        let file = fs::read_to_string("/proc/self/cgroup")
            .and_then(|own| Ok((own, fs::read_to_string("/proc/self/mountinfo")?)))
            .ok()
            .and_then(|(own, mounts)| candidates(&own, &mounts).into_iter().find(|file| count(file).is_some()));
        Self { file, before: 0 }
    }

    /// A run begins.
    pub(crate) fn begin(&mut self) {
        self.before = self.now().unwrap_or(0);
    }

    /// Whether there was one since. On another node the container is in another cgroup, whose count begins at 0.
    pub(crate) fn happened(&self) -> bool {
        self.now().is_some_and(|now| now > self.before || (now < self.before && now > 0))
    }

    fn now(&self) -> Option<u64> {
        count(self.file.as_deref()?)
    }
}

fn count(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// Files that may have the count, from `/proc/self/cgroup` and `/proc/self/mountinfo`.
///
/// The root of a mount and the path of a cgroup are both seen from the cgroup namespace, so what the path has beyond the
/// root is below the mount point: nothing at all in a container.
fn candidates(own: &str, mounts: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for mount in mounts.lines().filter_map(Mount::parse) {
        let (controllers, file) = match mount.kind {
            "cgroup2" => ("", "memory.events"),
            "cgroup" if mount.options.split(',').any(|option| option == "memory") => ("memory", "memory.oom_control"),
            _ => continue,
        };
        let path = own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (names, path) = rest.split_once(':')?;
            let same = if controllers.is_empty() {
                names.is_empty()
            } else {
                names.split(',').any(|name| name == controllers)
            };
            same.then_some(path)
        });
        if let Some(below) = path.and_then(|path| Path::new(path).strip_prefix(mount.root).ok()) {
            found.push(Path::new(mount.point).join(below).join(file));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_container_the_count_is_at_the_mount_point() {
        let v1 = candidates(
            "4:memory:/kubepods/pod1/c1\n0::/\n",
            "50 40 0:30 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n",
        );
        assert_eq!(v1, [Path::new("/sys/fs/cgroup/memory/memory.oom_control")]);
        let v2 =
            candidates("0::/\n", "50 40 0:30 / /sys/fs/cgroup ro,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate\n");
        assert_eq!(v2, [Path::new("/sys/fs/cgroup/memory.events")]);
    }

    #[test]
    fn on_a_node_it_is_below() {
        let found = candidates("4:memory:/a/b\n", "50 40 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        assert_eq!(found, [Path::new("/sys/fs/cgroup/memory/a/b/memory.oom_control")]);
        let elsewhere =
            candidates("4:memory:/a/b\n", "50 40 0:30 /c /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        assert!(elsewhere.is_empty());
    }

    #[test]
    fn only_a_count_that_has_changed_is_an_oom_kill() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.events");
        let mut kills = OomKills { file: Some(file.clone()), before: 0 };
        for (before, after, happened) in [(2, 2, false), (2, 3, true), (5, 1, true), (5, 0, false)] {
            fs::write(&file, format!("oom 9\noom_kill {before}\noom_group_kill 7\n")).unwrap();
            kills.begin();
            fs::write(&file, format!("oom 9\noom_kill {after}\n")).unwrap();
            assert_eq!(kills.happened(), happened, "{before} {after}");
        }
        assert!(!OomKills { file: None, before: 0 }.happened());
    }
}
