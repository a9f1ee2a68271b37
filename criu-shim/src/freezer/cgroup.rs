//! Where a process' cgroup is: `/proc/PID/cgroup` against the node's cgroup mounts.

use super::FreezerError;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// A mounted cgroup hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// Which part of the hierarchy the mount shows.
    pub root: PathBuf,
    /// v1: its controllers and, with `name=`, its name. v2: none.
    pub controllers: Vec<String>,
    /// True of the v2 hierarchy.
    pub unified: bool,
}

/// A line of `/proc/PID/cgroup`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Controllers (and `name=`) of a v1 hierarchy; empty for v2.
    pub controllers: Vec<String>,
    /// Path in the hierarchy, as seen from the reader's cgroup namespace.
    pub path: PathBuf,
}

/// The cgroup hierarchies in the text of a `mountinfo` file. Only the first mount of each counts.
/// Source: proc_pid_mountinfo(5).
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
        let mount: Vec<&str> = mount.split(' ').collect();
        let filesystem: Vec<&str> = filesystem.split(' ').collect();
        let (&[_, _, _, root, mount_point, ..], &[kind, _, options, ..]) = (mount.as_slice(), filesystem.as_slice())
        else {
            continue;
        };
        let unified = kind == "cgroup2";
        if !unified && kind != "cgroup" {
            continue;
        }
        let controllers: Vec<String> = if unified { Vec::new() } else { controllers(options) };
        if !found.iter().any(|known| known.unified == unified && known.controllers == controllers) {
            found.push(Hierarchy { mount_point: mount_point.into(), root: root.into(), controllers, unified });
        }
    }
    found
}

fn controllers(options: &str) -> Vec<String> {
    // Options of the file system that are no controllers. Source: cgroups(7), `show_options` of cgroup-v1.
    const OTHER: [&str; 8] =
        ["rw", "ro", "noprefix", "xattr", "clone_children", "cpuset_v2_mode", "none", "favordynmods"];
    let is_controller = |option: &&str| !OTHER.contains(option) && !option.starts_with("release_agent=");
    options.split(',').filter(is_controller).map(str::to_owned).collect()
}

/// The lines of the text of a `/proc/PID/cgroup` file. Source: cgroups(7).
pub fn memberships(text: &str) -> Vec<Membership> {
    text.lines()
        .filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            let controllers = controllers.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
            Some(Membership { controllers, path: path.into() })
        })
        .collect()
}

/// The directory of the freezer cgroup: the v1 freezer's if one is mounted, because runtimes use that, else v2's.
pub(super) fn freezer_path(mounts: &[Hierarchy], members: &[Membership]) -> Result<PathBuf, FreezerError> {
    let is_freezer = |controllers: &[String]| controllers.iter().any(|name| name == "freezer");
    let v1 = mounts
        .iter()
        .find(|mount| is_freezer(&mount.controllers))
        .zip(members.iter().find(|member| is_freezer(&member.controllers)));
    let v2 =
        || mounts.iter().find(|mount| mount.unified).zip(members.iter().find(|member| member.controllers.is_empty()));
    let (mount, member) = v1.or_else(v2).ok_or(FreezerError::NoFreezer)?;
    mount.directory(&member.path)
}

impl Hierarchy {
    /// The directory of the cgroup at `path` of this hierarchy.
    ///
    /// # Errors
    /// [`FreezerError::NotOwn`] for the root of what is mounted, [`FreezerError::NotVisible`] for a path outside of it.
    pub fn directory(&self, path: &Path) -> Result<PathBuf, FreezerError> {
        // A path of another cgroup namespace starts with `/..`.
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(FreezerError::NotVisible { path: path.to_owned() });
        }
        let inside = path.strip_prefix(&self.root).map_err(|_| FreezerError::NotVisible { path: path.to_owned() })?;
        if inside.as_os_str().is_empty() {
            return Err(FreezerError::NotOwn { path: path.to_owned() });
        }
        Ok(self.mount_point.join(inside))
    }
}

/// The directories of all cgroups that process `pid` is in, below the mounts of the node at `node_root`. A hierarchy in which it is
/// at the root is left out: nothing holds it there.
///
/// # Errors
/// [`FreezerError::ProcessGone`], [`FreezerError::Read`], [`FreezerError::NotVisible`].
pub fn directories(pid: i32, node_root: &Path) -> Result<Vec<PathBuf>, FreezerError> {
    let mounts = read_hierarchies(node_root)?;
    let mut found = Vec::new();
    for member in read_memberships(pid)? {
        let Some(mount) = mounts.iter().find(|mount| mount.controllers == member.controllers) else { continue };
        match mount.directory(&member.path) {
            Ok(directory) => found.push(node_root.join(directory.strip_prefix("/").unwrap_or(&directory))),
            Err(FreezerError::NotOwn { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The node's hierarchies, from its init process.
pub(super) fn read_hierarchies(node_root: &Path) -> Result<Vec<Hierarchy>, FreezerError> {
    let path = node_root.join("proc/1/mountinfo");
    let text = std::fs::read_to_string(&path).map_err(|source| FreezerError::Read { path, source })?;
    Ok(hierarchies(&text))
}

pub(super) fn read_memberships(pid: i32) -> Result<Vec<Membership>, FreezerError> {
    let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(memberships(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            Err(FreezerError::ProcessGone { pid })
        }
        Err(source) => Err(FreezerError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/freezer rw,relatime - cgroup cgroup rw,freezer
33 30 0:29 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
90 30 0:28 /kubepods /somewhere/freezer rw,relatime - cgroup cgroup rw,freezer
";
    const V2: &str = "31 30 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn path(mountinfo: &str, cgroup: &str) -> Result<PathBuf, FreezerError> {
        freezer_path(&hierarchies(mountinfo), &memberships(cgroup))
    }

    #[test]
    fn the_v1_freezer_wins_on_a_hybrid_host() {
        let found = path(V1, "9:cpu,cpuacct:/kubepods/x\n5:freezer:/kubepods/pod1/c1\n0::/other\n").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/freezer/kubepods/pod1/c1"));
    }

    #[test]
    fn v2_is_used_where_it_is_alone() {
        let found = path(V2, "0::/kubepods.slice/cri-containerd-abc.scope\n").unwrap();
        assert_eq!(found, Path::new("/sys/fs/cgroup/kubepods.slice/cri-containerd-abc.scope"));
    }

    #[test]
    fn a_root_cgroup_is_refused() {
        assert!(matches!(path(V1, "5:freezer:/\n"), Err(FreezerError::NotOwn { .. })));
        assert!(matches!(path(V2, "0::/\n"), Err(FreezerError::NotOwn { .. })));
    }

    #[test]
    fn an_empty_path_is_refused() {
        assert!(path(V2, "0::\n").is_err());
        assert!(matches!(path(V2, ""), Err(FreezerError::NoFreezer)));
    }

    #[test]
    fn a_cgroup_of_another_namespace_is_refused() {
        assert!(matches!(path(V2, "0::/../../kubepods/c1\n"), Err(FreezerError::NotVisible { .. })));
    }

    #[test]
    fn a_mount_that_shows_a_part_is_taken_into_account() {
        let part = V2.replace("0:27 / ", "0:27 /node1 ");
        assert_eq!(path(&part, "0::/node1/kubepods/c1\n").unwrap(), Path::new("/sys/fs/cgroup/kubepods/c1"));
        assert!(matches!(path(&part, "0::/node1\n"), Err(FreezerError::NotOwn { .. })));
        assert!(matches!(path(&part, "0::/node2/c1\n"), Err(FreezerError::NotVisible { .. })));
    }

    #[test]
    fn names_and_controllers_of_v1_hierarchies_are_told_apart_from_options() {
        let found = hierarchies(V1);
        assert_eq!(found.len(), 4);
        assert_eq!(found[0].controllers, ["cpu", "cpuacct"]);
        assert_eq!(found[2].controllers, ["name=systemd"]);
        assert!(found[3].unified);
    }
}
