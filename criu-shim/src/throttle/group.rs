//! Where a container's cpu cgroup is, and the kernel's files in it.

use super::{Bandwidth, ThrottleError};
use crate::freezer::{Hierarchy, Membership, hierarchies, memberships};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

const QUOTA_V1: &str = "cpu.cfs_quota_us";
const PERIOD_V1: &str = "cpu.cfs_period_us";
const MAX_V2: &str = "cpu.max";

/// One cgroup that can be limited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    path_in_node: PathBuf,
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Where the kernel counts the cpu time of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    /// `cpuacct.usage`, ns.
    V1(PathBuf),
    /// `cpu.stat`, with a line `usage_usec`.
    V2(PathBuf),
}

/// What limits a container.
#[derive(Debug)]
pub(super) struct Found {
    /// Its cgroup, then its pod's.
    pub(super) groups: Vec<Group>,
    /// None where the container is not counted by itself.
    pub(super) usage: Option<Usage>,
}

/// The cgroups of the container that process `pid` is in: its own and the one around it, if that is not the whole node's.
pub(super) fn of_process(pid: i32, node_root: &Path) -> Result<Found, ThrottleError> {
    let mounts = hierarchies(&read(&node_root.join("proc/1/mountinfo"))?);
    let members = memberships(&read(&PathBuf::from(format!("/proc/{pid}/cgroup")))?);
    let (mount, own) = place(&mounts, &members, "cpu")?;
    let around = own.parent().filter(|around| around.starts_with(&mount.mount_point) && *around != mount.mount_point);
    let groups = [Some(own.as_path()), around];
    let groups = groups.into_iter().flatten().filter_map(|path| Group::at(path, node_root)).collect();
    let usage = place(&mounts, &members, "cpuacct").ok().map(|(mount, path)| match mount.unified {
        true => Usage::V2(in_node(node_root, &path).join("cpu.stat")),
        false => Usage::V1(in_node(node_root, &path).join("cpuacct.usage")),
    });
    Ok(Found { groups, usage })
}

/// The cgroup in the v1 hierarchy of `controller` if one is mounted, because runtimes use that, else in v2's.
fn place<'a>(
    mounts: &'a [Hierarchy],
    members: &[Membership],
    controller: &str,
) -> Result<(&'a Hierarchy, PathBuf), ThrottleError> {
    let has = |controllers: &[String]| controllers.iter().any(|name| name == controller);
    let v1 = || mounts.iter().find(|mount| has(&mount.controllers));
    let v1 = v1().zip(members.iter().find(|member| has(&member.controllers)));
    let v2 =
        || mounts.iter().find(|mount| mount.unified).zip(members.iter().find(|member| member.controllers.is_empty()));
    let (mount, member) = v1.or_else(v2).ok_or(ThrottleError::NoController)?;
    Ok((mount, mount.directory(&member.path).map_err(ThrottleError::Find)?))
}

fn in_node(node_root: &Path, path: &Path) -> PathBuf {
    node_root.join(path.strip_prefix("/").unwrap_or(path))
}

impl Group {
    /// The cgroup at `path_in_node`; none where there is none (any more) that can be limited.
    pub(super) fn at(path_in_node: &Path, node_root: &Path) -> Option<Self> {
        let directory = in_node(node_root, path_in_node);
        let version = if directory.join(QUOTA_V1).exists() {
            Version::V1
        } else if directory.join(MAX_V2).exists() {
            Version::V2
        } else {
            return None;
        };
        Some(Self { path_in_node: path_in_node.to_owned(), directory, version })
    }

    /// Its directory in the node's mount namespace.
    pub(super) fn path_in_node(&self) -> &Path {
        &self.path_in_node
    }

    pub(super) fn read(&self) -> Result<Bandwidth, ThrottleError> {
        match self.version {
            Version::V1 => {
                let (path, period) = (self.directory.join(QUOTA_V1), read(&self.directory.join(PERIOD_V1))?);
                let content = read(&path)?;
                Bandwidth::parse_v1(&content, &period).ok_or(ThrottleError::Unexpected { path, content })
            }
            Version::V2 => {
                let path = self.directory.join(MAX_V2);
                let content = read(&path)?;
                Bandwidth::parse_v2(&content).ok_or(ThrottleError::Unexpected { path, content })
            }
        }
    }

    /// Writes a bandwidth with the period that it has.
    pub(super) fn write(&self, bandwidth: Bandwidth) -> Result<(), ThrottleError> {
        let (path, content) = match self.version {
            Version::V1 => (self.directory.join(QUOTA_V1), bandwidth.quota_v1()),
            Version::V2 => (self.directory.join(MAX_V2), bandwidth.render_v2()),
        };
        // Nothing is made where the cgroup is gone.
        let written = std::fs::OpenOptions::new().write(true).open(&path).and_then(|mut file| {
            use std::io::Write;
            file.write_all(content.as_bytes())
        });
        written.map_err(|source| match is_gone(&source) {
            true => ThrottleError::Gone { path },
            false => ThrottleError::Write { path, content, source },
        })
    }
}

impl Usage {
    /// The cpu time so far.
    pub(super) fn read(&self) -> Result<Duration, ThrottleError> {
        let (path, time) = match self {
            Self::V1(path) => (path, read(path)?.trim_end().parse().ok().map(Duration::from_nanos)),
            Self::V2(path) => (path, usage_v2(&read(path)?)),
        };
        time.ok_or_else(|| ThrottleError::Unexpected { path: path.clone(), content: "no cpu time".to_owned() })
    }
}

/// Source: Documentation/admin-guide/cgroup-v2.rst, `cpu.stat`.
fn usage_v2(text: &str) -> Option<Duration> {
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?;
    micros.parse().ok().map(Duration::from_micros)
}

fn read(path: &Path) -> Result<String, ThrottleError> {
    std::fs::read_to_string(path).map_err(|source| match is_gone(&source) {
        true => ThrottleError::Gone { path: path.to_owned() },
        false => ThrottleError::Read { path: path.to_owned(), source },
    })
}

/// ENODEV: the cgroup was removed while the file was open. ESRCH: the process has ended.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ESRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    fn placed(mountinfo: &str, cgroup: &str, controller: &str) -> Option<PathBuf> {
        let mounts = hierarchies(mountinfo);
        place(&mounts, &memberships(cgroup), controller).ok().map(|(_, path)| path)
    }

    #[test]
    fn the_v1_controller_wins_on_a_hybrid_host() {
        let cgroup = "2:cpuacct:/pod/b\n1:cpu:/pod/a\n0::/pod/c\n";
        assert_eq!(placed(HYBRID, cgroup, "cpu"), Some("/sys/fs/cgroup/cpu/pod/a".into()));
        assert_eq!(placed(HYBRID, cgroup, "cpuacct"), Some("/sys/fs/cgroup/cpuacct/pod/b".into()));
    }

    #[test]
    fn v2_is_used_where_it_is_alone() {
        let unified = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(placed(unified, "0::/pod/c\n", "cpu"), Some("/sys/fs/cgroup/pod/c".into()));
        assert_eq!(placed(unified, "0::/\n", "cpu"), None, "the whole node");
    }

    #[test]
    fn v2_counts_cpu_time_in_microseconds() {
        assert_eq!(usage_v2("usage_usec 1500\nuser_usec 1000\n"), Some(Duration::from_micros(1_500)));
        assert_eq!(usage_v2("user_usec 1000\n"), None);
    }
}
