//! Where a CRIU, or whatever else must outlive the agent, runs: in which cgroups and namespaces.

use super::CriuError;
use crate::freezer::{self, Hierarchy};
use nix::sched::CloneFlags;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use tracing::warn;

/// Name of the cgroup below every hierarchy's root. CRIU must not be in the agent's: the end of the agent's container
/// would be its end too, in the middle of a dump. Nor in the application's, which is frozen.
const CGROUP: &str = "tideover";

/// Its share of the processors beside the other cgroups at the root, where pods and services are: ten times what a service has by default.
/// In it is what an application stands still for, for milliseconds: CRIU's dump, the relay, and the daemon that answers its faults. With
/// a share like others it waits its turn behind whoever has just begun to run. Source: cgroups(7), sched(7).
const SHARES_V1: (&str, &str) = ("cpu.shares", "10240");
/// As above. Source: Documentation/admin-guide/cgroup-v2.rst of the kernel.
const WEIGHT_V2: (&str, &str) = ("cpu.weight", "1000");

/// Where a CRIU runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Process whose network, UTS, IPC and time namespaces CRIU enters: the container's. They are then none that the dump has to
    /// name, which saves 18 ms of freeze. A container that was restored has a time namespace of its own: for that CRIU would fork,
    /// another millisecond, to read the very clocks that it has inside. Source: `dump_namespaces` in CRIU's `criu/namespaces.c`, and
    /// `cr_dump_tasks` in `criu/cr-dump.c` for the clocks of the namespace that it is in.
    pub namespaces_of: i32,
    /// Stays out of the IPC namespace. CRIU then dumps that with all System V objects in it; from inside it sees none of them.
    pub outside_ipc: bool,
    /// The node's file system as the caller sees it: `/`, or `/proc/1/root` from a container that shares the node's PID
    /// namespace. In the latter case CRIU also enters the node's mount and cgroup namespaces.
    pub node_root: PathBuf,
}

/// A [`Place`] with everything opened that can be opened before the fork.
#[derive(Debug)]
pub(super) struct OpenPlace {
    /// `cgroup.procs` of each cgroup to enter.
    pub cgroups: Vec<File>,
    /// Namespaces to enter, in this order.
    pub namespaces: Vec<(File, CloneFlags)>,
}

impl Place {
    pub(super) fn open(&self) -> Result<OpenPlace, CriuError> {
        let cgroups = own_cgroups(&self.node_root)?;

        let mut namespaces = Vec::new();
        let mut add = |path: PathBuf, kind: CloneFlags| match File::open(&path) {
            Ok(file) => {
                namespaces.push((file, kind));
                Ok(())
            }
            Err(source) => Err(CriuError::Namespace { path, source }),
        };
        let container = PathBuf::from(format!("/proc/{}/ns", self.namespaces_of));
        add(container.join("net"), CloneFlags::CLONE_NEWNET)?;
        add(container.join("uts"), CloneFlags::CLONE_NEWUTS)?;
        if !self.outside_ipc {
            add(container.join("ipc"), CloneFlags::CLONE_NEWIPC)?;
        }
        // A kernel may be without. Source: CONFIG_TIME_NS.
        let time = container.join("time");
        if time.exists() {
            add(time, CloneFlags::from_bits_retain(libc::CLONE_NEWTIME))?;
        }
        if self.node_root != Path::new("/") {
            let node = self.node_root.join("proc/1/ns");
            add(node.join("cgroup"), CloneFlags::CLONE_NEWCGROUP)?;
            // Last, because it changes what every path means.
            add(node.join("mnt"), CloneFlags::CLONE_NEWNS)?;
        }
        Ok(OpenPlace { cgroups, namespaces })
    }
}

/// Has the calling process leave whatever container it is in, for Tideover's own cgroup in each hierarchy of the node.
///
/// # Errors
/// [`CriuError::Hierarchies`], [`CriuError::Cgroup`], [`CriuError::Leave`].
pub fn leave_container(node_root: &Path) -> Result<(), CriuError> {
    // "0" is the writer itself. Source: cgroups(7).
    own_cgroups(node_root)?.iter_mut().try_for_each(|procs| procs.write_all(b"0")).map_err(CriuError::Leave)
}

/// `cgroup.procs` of Tideover's own cgroup in each hierarchy of the node, made where it is missing.
fn own_cgroups(node_root: &Path) -> Result<Vec<File>, CriuError> {
    let mountinfo = node_root.join("proc/1/mountinfo");
    let text = std::fs::read_to_string(&mountinfo)
        .map_err(|source| CriuError::Hierarchies(freezer::FreezerError::Read { path: mountinfo, source }))?;
    freezer::hierarchies(&text).iter().map(|hierarchy| open_cgroup(node_root, hierarchy)).collect()
}

fn open_cgroup(node_root: &Path, hierarchy: &Hierarchy) -> Result<File, CriuError> {
    let root = node_root.join(hierarchy.mount_point.strip_prefix("/").unwrap_or(&hierarchy.mount_point));
    let directory = root.join(CGROUP);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CriuError::Cgroup { path, source }
    };
    if !directory.is_dir() {
        std::fs::create_dir(&directory).map_err(failed(&directory))?;
    }
    if hierarchy.controllers.iter().any(|controller| controller == "cpuset") {
        // A v1 cpuset takes no process before it has processors and memory nodes.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let path = directory.join(file);
            let parent = std::fs::read_to_string(root.join(file)).map_err(failed(&path))?;
            std::fs::write(&path, parent.trim_end()).map_err(failed(&path))?;
        }
    }
    let (file, share) = if hierarchy.unified { WEIGHT_V2 } else { SHARES_V1 };
    let share_of_processors = directory.join(file);
    match OpenOptions::new()
        .write(true)
        .open(&share_of_processors)
        .and_then(|mut file| file.write_all(share.as_bytes()))
    {
        Ok(()) => {}
        // Another hierarchy is the one with the processors, or they are not handed out by cgroups.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // It is slower without.
        Err(error) => warn!(path = ?share_of_processors, %error, "CRIU has a share of the processors like others"),
    }
    let procs = directory.join("cgroup.procs");
    OpenOptions::new().write(true).open(&procs).map_err(failed(&procs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_application_waits_for_has_a_large_share_of_the_processors() {
        let node = tempfile::tempdir().expect("directory");
        let hierarchy = |unified: bool, controllers: &[&str]| Hierarchy {
            mount_point: if unified { "/unified" } else { "/cpu" }.into(),
            root: "/".into(),
            controllers: controllers.iter().map(ToString::to_string).collect(),
            unified,
        };
        for (hierarchy, share) in [
            (hierarchy(false, &["cpu", "cpuacct"]), Some(("cpu.shares", "10240"))),
            (hierarchy(true, &[]), Some(("cpu.weight", "1000"))),
            (hierarchy(true, &[]), None),
        ] {
            let directory = node.path().join(hierarchy.mount_point.strip_prefix("/").expect("a path")).join(CGROUP);
            std::fs::create_dir_all(&directory).expect("directory");
            std::fs::write(directory.join("cgroup.procs"), "").expect("file");
            // What the kernel makes with the directory.
            share.map_or(Ok(()), |(file, _)| std::fs::write(directory.join(file), "")).expect("file");
            open_cgroup(node.path(), &hierarchy).expect("a cgroup");
            for file in ["cpu.shares", "cpu.weight"] {
                let written = std::fs::read_to_string(directory.join(file)).ok();
                let expected = share.filter(|(name, _)| *name == file).map(|(_, value)| value.to_owned());
                assert_eq!(written, expected, "{hierarchy:?}");
            }
            std::fs::remove_dir_all(&directory).expect("remove");
        }
    }
}
