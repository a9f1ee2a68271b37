//! Mounts of a container that need not travel, because whoever restores can make them from the specification alone.
//!
//! CRIU packs the content of every tmpfs with `tar`, 7 ms each, inside the freeze. A container has three kinds whose
//! content says nothing: `/dev`, the empty directories that mask others, and the directory above v1 cgroup mounts. One that
//! holds anything else than expected travels as it is.
//!
//! The dump asks [`external`] which of them it may leave out; the relay makes them by [`device_directory`].

use super::bundle::Spec;
use super::mounts::Mount;
use super::rpc::ExternalMount;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// Name of `/dev` in an image.
pub const DEVICES: &str = "tideover:dev";

/// Name of the empty directory that masks others.
pub const EMPTY: &str = "tideover:empty";

/// Name of the directory above v1 cgroup mounts.
pub const CGROUPS: &str = "tideover:cgroup";

/// Something in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// What an [`Entry`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Link(PathBuf),
    /// A character device.
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Anything else.
    Other,
}

/// What runc puts into `/dev`, and where other mounts go in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDirectory {
    /// Devices (mode 0666) and links.
    pub entries: Vec<Entry>,
    /// Names of mount points, each with the source of its mount: a file where that is a file, else a directory.
    pub mount_points: Vec<(String, PathBuf)>,
}

/// What is in `/dev` by the specification; none if that is more than is understood here.
///
/// Source: OCI runtime specification, `config-linux.md`, "Default Devices" and "Default Filesystems"; runc's
/// `setupDevSymlinks`.
pub fn device_directory(spec: &Spec) -> Option<DeviceDirectory> {
    if !spec.linux.devices.is_empty() || spec.process.terminal {
        return None;
    }
    let device =
        |(name, major, minor): (&str, u32, u32)| Entry { name: name.to_owned(), kind: Kind::Device { major, minor } };
    let link = |(name, to): (&str, &str)| Entry { name: name.to_owned(), kind: Kind::Link(to.into()) };
    let devices = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("core", "/proc/kcore"),
        ("ptmx", "pts/ptmx"),
    ];
    let mut mount_points = Vec::new();
    for mount in &spec.mounts {
        let Ok(inside) = mount.destination.strip_prefix("/dev") else { continue };
        let mut parts = inside.components();
        match (parts.next(), parts.next()) {
            (None, _) => {}
            (Some(Component::Normal(name)), None) => {
                let source = if mount.is_bind() { mount.source.clone() } else { PathBuf::from("/") };
                mount_points.push((name.to_str()?.to_owned(), source));
            }
            _ => return None,
        }
    }
    Some(DeviceDirectory { entries: devices.map(device).into_iter().chain(links.map(link)).collect(), mount_points })
}

impl DeviceDirectory {
    /// True if this is all that is there. A mount point hides what is below it.
    fn covers(&self, found: &[Entry]) -> bool {
        let mounted: BTreeSet<&str> = self.mount_points.iter().map(|(name, _)| name.as_str()).collect();
        found.iter().all(|entry| mounted.contains(entry.name.as_str()) || self.entries.contains(entry))
    }
}

/// Mounts that a dump may leave out. `look` lists a directory of the container; none where it can't.
pub fn external(spec: &Spec, mounts: &[Mount], look: impl Fn(&Path) -> Option<Vec<Entry>>) -> Vec<ExternalMount> {
    let own_tmpfs = |at: &Path| {
        let mut here = mounts.iter().filter(|mount| mount.mount_point == at);
        let first = here.next();
        first.is_some_and(|mount| mount.kind == "tmpfs" && mount.root == Path::new("/")) && here.next().is_none()
    };
    let found = |at: &Path| if own_tmpfs(at) { look(at) } else { None };
    let named = |at: &Path, name: &str| ExternalMount { key: at.to_string_lossy().into_owned(), val: name.to_owned() };
    let mut external = Vec::new();

    let dev = Path::new("/dev");
    if device_directory(spec).zip(found(dev)).is_some_and(|(expected, found)| expected.covers(&found)) {
        external.push(named(dev, DEVICES));
    }
    let masked = spec.linux.masked_paths.iter();
    let empty = masked.filter(|path| found(path).is_some_and(|entries| entries.is_empty()));
    external.extend(empty.map(|path| named(path, EMPTY)));
    for mount in spec.mounts.iter().filter(|mount| mount.kind == "cgroup") {
        let is_mount_point = |entry: &Entry| {
            mounts.iter().any(|at| at.kind == "cgroup" && at.mount_point == mount.destination.join(&entry.name))
        };
        if found(&mount.destination).is_some_and(|entries| entries.iter().all(is_mount_point)) {
            external.push(named(&mount.destination, CGROUPS));
        }
    }
    external
}

#[cfg(test)]
mod tests {
    use super::super::mounts::parse;
    use super::*;

    const MOUNTINFO: &str = "\
600 500 0:40 / / rw - overlay overlay rw
601 600 0:41 / /proc rw - proc proc rw
602 600 0:42 / /dev rw - tmpfs tmpfs rw
603 602 0:43 / /dev/shm rw - tmpfs shm rw
605 600 0:51 / /sys/fs/cgroup ro - tmpfs tmpfs rw
606 605 0:28 /kubepods/x /sys/fs/cgroup/freezer ro - cgroup cgroup rw,freezer
609 601 0:60 / /proc/acpi ro - tmpfs tmpfs ro
610 601 0:42 /null /proc/kcore ro - tmpfs tmpfs ro
";
    const SPEC: &str = r#"{"linux":{"maskedPaths":["/proc/acpi","/proc/kcore","/proc/absent"]},"mounts":[
        {"destination":"/dev","type":"tmpfs"},{"destination":"/dev/pts","type":"devpts"},
        {"destination":"/dev/shm","type":"bind","source":"/sandbox/shm"},
        {"destination":"/sys/fs/cgroup","type":"cgroup"}]}"#;

    fn check(spec: &str, odd: Option<(&str, Entry)>, expected: &[&str]) {
        let spec: Spec = serde_json::from_str(spec).unwrap();
        let directory = |name: &str| Entry { name: name.to_owned(), kind: Kind::Directory };
        let look = |path: &Path| {
            let mut entries = match path.to_str()? {
                "/dev" => {
                    let mut entries = device_directory(&Spec::default())?.entries;
                    entries.extend([directory("shm"), directory("pts")]);
                    entries
                }
                "/sys/fs/cgroup" => vec![directory("freezer")],
                _ => vec![],
            };
            entries.extend(odd.iter().filter(|(at, _)| Path::new(at) == path).map(|(_, entry)| entry.clone()));
            Some(entries)
        };
        let found: Vec<String> =
            external(&spec, &parse(MOUNTINFO), look).into_iter().map(|mount| mount.key + "=" + &mount.val).collect();
        assert_eq!(found, expected);
    }

    fn odd(name: &str, kind: Kind) -> Entry {
        Entry { name: name.to_owned(), kind }
    }

    #[test]
    fn what_the_specification_makes_need_not_travel() {
        check(SPEC, None, &["/dev=tideover:dev", "/proc/acpi=tideover:empty", "/sys/fs/cgroup=tideover:cgroup"]);
    }

    #[test]
    fn a_file_that_somebody_put_there_makes_the_whole_travel() {
        let rest = ["/proc/acpi=tideover:empty", "/sys/fs/cgroup=tideover:cgroup"];
        check(SPEC, Some(("/dev", odd("secret", Kind::Other))), &rest);
        check(SPEC, Some(("/dev", odd("null2", Kind::Device { major: 1, minor: 3 }))), &rest);
        check(SPEC, Some(("/proc/acpi", odd("x", Kind::Other))), &["/dev=tideover:dev", rest[1]]);
        check(SPEC, Some(("/sys/fs/cgroup", odd("cpu", Kind::Link("c".into())))), &["/dev=tideover:dev", rest[0]]);
    }

    #[test]
    fn a_container_with_devices_or_deep_mounts_is_not_guessed_at() {
        let devices = SPEC.replace(r#""linux":{"#, r#""linux":{"devices":[{"path":"/dev/fuse"}],"#);
        let deep = SPEC.replace("/dev/shm", "/dev/a/b");
        for spec in [devices, deep] {
            check(&spec, None, &["/proc/acpi=tideover:empty", "/sys/fs/cgroup=tideover:cgroup"]);
        }
    }

    #[test]
    fn mount_points_know_their_sources() {
        let spec: Spec = serde_json::from_str(SPEC).unwrap();
        let directory = device_directory(&spec).unwrap();
        assert_eq!(directory.mount_points, [("pts".to_owned(), "/".into()), ("shm".into(), "/sandbox/shm".into())]);
    }
}
