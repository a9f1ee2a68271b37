//! The machine's place in the host's cgroups.
//!
//! Owns the lab's directories below every hierarchy. Never changes the host's own cgroups or their mounts.
//!
//! With cgroup v1 a machine gets one directory in each hierarchy, becomes the root of a cgroup namespace there, and
//! mounts every controller afresh: it then looks like a whole computer. With cgroup v2 alone there is one hierarchy,
//! and the machine's own processes live in the leaf [`LEAF`], because a group with processes may not delegate.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::process::ProcessId;

/// Where a machine's own processes live in a cgroup v2 hierarchy, relative to the machine's directory.
pub const LEAF: &str = "init.scope";

/// A mounted cgroup hierarchy of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Where the host has mounted it.
    pub mount: PathBuf,
    /// Which one it is.
    pub kind: Kind,
}

/// What a hierarchy holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// cgroup v1 with these controllers, in the kernel's order.
    Controllers(Vec<String>),
    /// cgroup v1 without controllers, only a name (systemd's).
    Named(String),
    /// cgroup v2.
    Unified,
}

/// What could not be done with cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host's mounts could not be read.
    #[error("read the mounted cgroup hierarchies")]
    ReadMounts(#[source] io::Error),
    /// The host has none.
    #[error("no cgroup hierarchy with a memory controller is mounted: mount cgroup v2 on /sys/fs/cgroup")]
    NotMounted,
    /// A directory could not be made or prepared.
    #[error("prepare the cgroup {path}")]
    Prepare {
        /// The cgroup or its file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A process could not be moved.
    #[error("join the cgroup {path}")]
    Join {
        /// The cgroup.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A directory could not be removed.
    #[error("remove the cgroup {path}")]
    Remove {
        /// The cgroup.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// The hierarchies that a machine has to live in: all of cgroup v1 where the memory controller is there, else the
/// unified one.
///
/// # Errors
/// When neither is mounted.
pub fn hierarchies() -> Result<Vec<Hierarchy>, CgroupError> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::ReadMounts)?;
    let found = choose(parse_mounts(&mounts));
    if found.is_empty() { Err(CgroupError::NotMounted) } else { Ok(found) }
}

fn choose(all: Vec<Hierarchy>) -> Vec<Hierarchy> {
    let (unified, v1): (Vec<_>, Vec<_>) = all.into_iter().partition(|hierarchy| hierarchy.kind == Kind::Unified);
    let has_memory = |hierarchy: &Hierarchy| match &hierarchy.kind {
        Kind::Controllers(names) => names.iter().any(|name| name == "memory"),
        Kind::Named(_) | Kind::Unified => false,
    };
    if v1.iter().any(has_memory) { v1 } else { unified.into_iter().take(1).collect() }
}

fn parse_mounts(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (left, right): (Vec<_>, Vec<_>) = (left.split(' ').collect(), right.split(' ').collect());
        let (Some(root), Some(mount), Some(&kind), Some(options)) =
            (left.get(3), left.get(4), right.first(), right.get(2))
        else {
            continue;
        };
        let kind = match kind {
            "cgroup2" => Kind::Unified,
            "cgroup" => v1_kind(options),
            _ => continue,
        };
        // Only a hierarchy's root is of use, and each once: a bind mount shows the same hierarchy again.
        if *root == "/" && !found.iter().any(|other| other.kind == kind) {
            found.push(Hierarchy { mount: PathBuf::from(mount), kind });
        }
    }
    found
}

fn v1_kind(options: &str) -> Kind {
    const NO_CONTROLLER: [&str; 8] =
        ["rw", "ro", "xattr", "noprefix", "clone_children", "none", "cpuset_v2_mode", "favordynmods"];
    let mut controllers = Vec::new();
    for option in options.split(',') {
        if let Some(name) = option.strip_prefix("name=") {
            return Kind::Named(name.to_owned());
        }
        if !NO_CONTROLLER.contains(&option) && !option.starts_with("release_agent=") {
            controllers.push(option.to_owned());
        }
    }
    Kind::Controllers(controllers)
}

impl Hierarchy {
    /// The directory name and the mount options with which a machine mounts the hierarchy again.
    pub fn remount(&self) -> (String, String) {
        match &self.kind {
            Kind::Controllers(names) => (names.join(","), names.join(",")),
            Kind::Named(name) => (name.clone(), format!("none,name={name}")),
            Kind::Unified => (String::new(), String::new()),
        }
    }

    /// The controllers of a cgroup v1 hierarchy.
    pub fn controllers(&self) -> &[String] {
        match &self.kind {
            Kind::Controllers(names) => names,
            Kind::Named(_) | Kind::Unified => &[],
        }
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers().iter().any(|name| name == controller)
    }

    /// Where a process of the machine that owns `directory` is put.
    fn place(&self, directory: &Path) -> PathBuf {
        let own = self.mount.join(directory);
        if self.kind == Kind::Unified { own.join(LEAF) } else { own }
    }
}

/// Makes `directory` in every hierarchy. Idempotent.
///
/// # Errors
/// Names the directory or file that could not be prepared.
pub fn prepare(hierarchies: &[Hierarchy], directory: &Path) -> Result<(), CgroupError> {
    for hierarchy in hierarchies {
        let mut path = hierarchy.mount.clone();
        for part in directory {
            let above = path.clone();
            path.push(part);
            make(&path)?;
            if hierarchy.has("cpuset") {
                // A new cpuset is empty, and no process may enter an empty one.
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    copy(&above.join(file), &path.join(file))?;
                }
            }
            if hierarchy.kind == Kind::Unified {
                delegate(&above)?;
            }
        }
        if hierarchy.kind == Kind::Unified {
            make(&path.join(LEAF))?;
        }
    }
    Ok(())
}

/// Moves this process into the machine that owns `directory`.
///
/// # Errors
/// Names the cgroup that did not take it.
pub fn join(hierarchies: &[Hierarchy], directory: &Path) -> Result<(), CgroupError> {
    for hierarchy in hierarchies {
        enter(&hierarchy.place(directory))?;
    }
    Ok(())
}

/// Moves this process to the top of the machine's groups, so that a cgroup namespace unshared next has its root there
/// and not in the leaf. Of importance with cgroup v2 only; [`join`] afterwards leads to the leaf.
///
/// # Errors
/// Names the cgroup that did not take it.
pub fn join_top(hierarchies: &[Hierarchy], directory: &Path) -> Result<(), CgroupError> {
    for hierarchy in hierarchies {
        enter(&hierarchy.mount.join(directory))?;
    }
    Ok(())
}

/// The processes in and below `directory`, in any hierarchy.
pub fn members(hierarchies: &[Hierarchy], directory: &Path) -> Vec<ProcessId> {
    let mut pids = Vec::new();
    for hierarchy in hierarchies {
        collect(&hierarchy.mount.join(directory), &mut pids);
    }
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().filter_map(ProcessId::of).filter(ProcessId::is_alive).collect()
}

/// Thaws every group in and below `directory`; for processes that are to die, which with cgroup v1 they do only when
/// thawed. Groups that vanish meanwhile are no matter.
pub fn thaw(hierarchies: &[Hierarchy], directory: &Path) {
    for hierarchy in hierarchies {
        let (file, value) = match &hierarchy.kind {
            Kind::Unified => ("cgroup.freeze", "0"),
            Kind::Controllers(_) if hierarchy.has("freezer") => ("freezer.state", "THAWED"),
            Kind::Controllers(_) | Kind::Named(_) => continue,
        };
        write_below(&hierarchy.mount.join(directory), file, value);
    }
}

fn write_below(path: &Path, file: &str, value: &str) {
    // An error can only mean that the group is gone, and its processes with it.
    fs::write(path.join(file), value).ok();
    for child in subdirectories(path) {
        write_below(&child, file, value);
    }
}

/// Removes `directory` and everything below it from every hierarchy; waits up to `patience` for dying processes.
///
/// # Errors
/// Names the group that stays.
pub fn remove(hierarchies: &[Hierarchy], directory: &Path, patience: Duration) -> Result<(), CgroupError> {
    for hierarchy in hierarchies {
        let path = hierarchy.mount.join(directory);
        let limit = Instant::now() + patience;
        loop {
            match remove_tree(&path) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < limit => {
                    sleep(Duration::from_millis(20));
                }
                Err(source) => return Err(CgroupError::Remove { path, source }),
            }
        }
    }
    Ok(())
}

fn make(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|source| CgroupError::Prepare { path: path.to_owned(), source }),
    }
}

fn copy(from: &Path, to: &Path) -> Result<(), CgroupError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CgroupError::Prepare { path, source }
    };
    let value = fs::read(from).map_err(failed(from))?;
    fs::write(to, value).map_err(failed(to))
}

/// Lets the groups below `path` have all controllers that `path` has.
fn delegate(path: &Path) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Prepare { path: path.to_owned(), source };
    let have = fs::read_to_string(path.join("cgroup.controllers")).map_err(failed)?;
    let given = fs::read_to_string(path.join("cgroup.subtree_control")).map_err(failed)?;
    let given: Vec<_> = given.split_ascii_whitespace().collect();
    for controller in have.split_ascii_whitespace().filter(|controller| !given.contains(controller)) {
        fs::write(path.join("cgroup.subtree_control"), format!("+{controller}")).map_err(failed)?;
    }
    Ok(())
}

fn enter(path: &Path) -> Result<(), CgroupError> {
    // "0" is the writing process itself; its own number might mean another one in another pid namespace.
    fs::write(path.join("cgroup.procs"), "0").map_err(|source| CgroupError::Join { path: path.to_owned(), source })
}

fn collect(path: &Path, pids: &mut Vec<i32>) {
    let listed = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in subdirectories(path) {
        collect(&child, pids);
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for child in subdirectories(path) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn subdirectories(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 0:21 / /sys/fs/cgroup rw shared:2 - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw shared:3 - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/memory rw shared:4 - cgroup cgroup rw,memory
27 24 0:24 / /sys/fs/cgroup/systemd rw shared:5 - cgroup cgroup rw,xattr,name=systemd
28 24 0:25 / /sys/fs/cgroup/unified rw shared:6 - cgroup2 cgroup2 rw,nsdelegate
29 24 0:23 /x /somewhere/memory rw shared:4 - cgroup cgroup rw,memory
";

    #[test]
    fn a_hybrid_host_is_used_by_its_v1_hierarchies() {
        let found = choose(parse_mounts(HYBRID));
        let kinds: Vec<_> = found.iter().map(|hierarchy| hierarchy.remount()).collect();
        assert_eq!(
            kinds,
            [
                ("cpu,cpuacct".to_owned(), "cpu,cpuacct".to_owned()),
                ("memory".to_owned(), "memory".to_owned()),
                ("systemd".to_owned(), "none,name=systemd".to_owned()),
            ]
        );
    }

    #[test]
    fn a_unified_host_is_used_by_its_one_hierarchy() {
        let found = choose(parse_mounts("30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"));
        assert_eq!(found, [Hierarchy { mount: "/sys/fs/cgroup".into(), kind: Kind::Unified }]);
        assert_eq!(found[0].place(Path::new("lab/w1")), Path::new("/sys/fs/cgroup/lab/w1/init.scope"));
    }

    #[test]
    fn a_host_without_cgroups_has_none() {
        assert!(choose(parse_mounts("1 1 0:1 / / rw - ext4 /dev/vda rw\n")).is_empty());
    }
}
