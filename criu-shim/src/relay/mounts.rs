//! Mounts that a restore needs and runc does not bring, or not rightly: those that the dump left out because they can be
//! made from the specification ([`crate::criu::prepared`]), and the container's own cgroups.
//!
//! The former are made in a mount namespace of CRIU's own, so that they vanish with it whatever happens, and nobody else ever
//! sees them.

use crate::criu::bundle::Spec;
use crate::criu::mounts;
use crate::criu::prepared::{self, CGROUPS, DEVICES, EMPTY, Entry, Kind};
use crate::freezer;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod, umask};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where they are mounted, in CRIU's own mount namespace.
const DIRECTORY: &str = "/run/tideover/mounts";

/// Why they could not be made.
#[derive(Debug, Error)]
pub(super) enum MountsError {
    /// CRIU's own mount namespace.
    #[error("make a mount namespace for CRIU")]
    Unshare(#[source] std::io::Error),
    /// A directory, mount, device or link.
    #[error("make {path}")]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The container's own cgroups in the place of those that runc binds into a restored container, which are runc's. The
/// container would see the node's whole hierarchy, and the node's limits for its own.
///
/// `cgroup` is the text of `/proc/self/cgroup` of a process that runc has put into the container's cgroups. A hierarchy
/// in which that one is at the root is left as it is: there the container has none of its own.
pub(super) fn own_cgroups(bound: &[(PathBuf, PathBuf)], mountinfo: &str, cgroup: &str) -> BTreeMap<String, PathBuf> {
    let hierarchies = freezer::hierarchies(mountinfo);
    let memberships = freezer::memberships(cgroup);
    let own = |path: &Path| {
        let hierarchy = hierarchies.iter().find(|hierarchy| path.starts_with(&hierarchy.mount_point))?;
        let member = memberships.iter().find(|member| member.controllers == hierarchy.controllers)?;
        hierarchy.directory(&member.path).ok()
    };
    bound.iter().filter_map(|(key, path)| Some((key.to_str()?.to_owned(), own(path)?))).collect()
}

/// Enters a mount namespace of its own and makes the mounts in it. `controllers` are the mount points of v1 cgroups in the
/// container. Returns where the mounts are, by their names in an image.
pub(super) fn make<'a>(
    spec: &Spec,
    controllers: impl Iterator<Item = &'a Path>,
) -> Result<BTreeMap<String, PathBuf>, MountsError> {
    let directory = Path::new(DIRECTORY);
    std::fs::create_dir_all(directory).map_err(at(directory))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|errno| MountsError::Unshare(errno.into()))?;
    keep_to_ourselves(directory)?;
    tmpfs(directory, MsFlags::empty(), "mode=700")?;
    let modes = umask(Mode::empty());
    let made = fill(directory, spec, &controllers.filter_map(Path::file_name).collect::<Vec<_>>());
    umask(modes);
    made
}

fn fill(directory: &Path, spec: &Spec, controllers: &[&OsStr]) -> Result<BTreeMap<String, PathBuf>, MountsError> {
    let mut made = BTreeMap::new();
    let mut add = |name: &str, short: &str, flags: MsFlags, options: &str| {
        let path = directory.join(short);
        std::fs::create_dir(&path).map_err(at(&path))?;
        tmpfs(&path, flags, options)?;
        made.insert(name.to_owned(), path.clone());
        Ok::<_, MountsError>(path)
    };
    // Options as the runtime gives them: containerd's default specification, and runc's for masked directories.
    if let Some(expected) = prepared::device_directory(spec) {
        let path = add(DEVICES, "dev", MsFlags::MS_NOSUID, "mode=755,size=65536k")?;
        devices(&path, &expected)?;
    }
    add(EMPTY, "empty", MsFlags::MS_RDONLY, "size=4k,nr_inodes=1")?;
    if !controllers.is_empty() {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let path = add(CGROUPS, "cgroup", flags, "mode=755")?;
        for controller in controllers {
            let path = path.join(controller);
            std::fs::create_dir(&path).map_err(at(&path))?;
        }
    }
    Ok(made)
}

fn devices(directory: &Path, expected: &prepared::DeviceDirectory) -> Result<(), MountsError> {
    for Entry { name, kind } in &expected.entries {
        let path = directory.join(name);
        match kind {
            Kind::Device { major, minor } => {
                let mode = Mode::from_bits_truncate(0o666);
                mknod(&path, SFlag::S_IFCHR, mode, makedev((*major).into(), (*minor).into())).map_err(failed(&path))?;
            }
            Kind::Link(to) => std::os::unix::fs::symlink(to, &path).map_err(at(&path))?,
            Kind::Directory | Kind::Other => {}
        }
    }
    for (name, source) in &expected.mount_points {
        let path = directory.join(name);
        if source.is_file() {
            std::fs::write(&path, "").map_err(at(&path))?;
        } else {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().mode(0o755).create(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

/// What is mounted below `directory` from here on must not reach the node's own mount namespace. Only the one mount that
/// the directory is in changes: CRIU looks at how the others propagate.
fn keep_to_ourselves(directory: &Path) -> Result<(), MountsError> {
    let path = Path::new("/proc/self/mountinfo");
    let mountinfo = std::fs::read_to_string(path).map_err(at(path))?;
    let inner = mounts::parse(&mountinfo)
        .into_iter()
        .filter(|mount| directory.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
        .map_or_else(|| PathBuf::from("/"), |mount| mount.mount_point);
    let none: Option<&str> = None;
    mount(none, &inner, none, MsFlags::MS_SLAVE, none).map_err(failed(&inner))
}

fn tmpfs(path: &Path, flags: MsFlags, options: &str) -> Result<(), MountsError> {
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(options)).map_err(failed(path))
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> MountsError {
    let path = path.to_owned();
    move |source| MountsError::Make { path, source }
}

fn failed(path: &Path) -> impl FnOnce(nix::errno::Errno) -> MountsError {
    let at = at(path);
    move |errno| at(errno.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
33 30 0:29 / /sys/fs/cgroup/misc rw - cgroup cgroup rw,misc
";

    #[test]
    fn a_restored_container_sees_its_own_cgroups_and_not_runcs() {
        let bound = ["cpu,cpuacct", "freezer", "misc", "unknown"].map(|name| {
            let path = Path::new("/sys/fs/cgroup").join(name);
            (path.clone(), path.join("system.slice/containerd.service"))
        });
        let own = own_cgroups(&bound, MOUNTINFO, "9:cpu,cpuacct:/kubepods/p/c\n5:freezer:/kubepods/p/c\n3:misc:/\n");
        let expected = [
            ("/sys/fs/cgroup/cpu,cpuacct".to_owned(), "/sys/fs/cgroup/cpu,cpuacct/kubepods/p/c".into()),
            ("/sys/fs/cgroup/freezer".to_owned(), "/sys/fs/cgroup/freezer/kubepods/p/c".into()),
        ];
        assert_eq!(own, BTreeMap::from(expected));
    }
}
