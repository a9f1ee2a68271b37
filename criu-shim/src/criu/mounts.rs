//! Which mounts of a container are not dumped, because the replacement brings its own.
//!
//! The keys are those that `runc restore` knows: a bind mount of the specification goes by its destination, the
//! controllers of a v1 cgroup mount by their mount points, and masked files all by `/dev/null`.

use super::bundle::Spec;
use super::rpc::ExternalMount;
use std::path::{Path, PathBuf};

/// A line of `/proc/PID/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Where, as seen from the process.
    pub mount_point: PathBuf,
    /// File system type.
    pub kind: String,
    /// It has peers, which see what is mounted in it.
    pub shared: bool,
    /// It receives what is mounted in another.
    pub receives: bool,
}

/// The lines of the text of a mountinfo file. Source: proc_pid_mountinfo(5).
pub fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, filesystem) = line.split_once(" - ")?;
            let mut mount = mount.split(' ').skip(3);
            let (root, mount_point) = (unescape(mount.next()?).into(), unescape(mount.next()?).into());
            let propagation: Vec<&str> = mount.skip(1).collect();
            Some(Mount {
                root,
                mount_point,
                kind: filesystem.split(' ').next()?.to_owned(),
                shared: propagation.iter().any(|field| field.starts_with("shared:")),
                receives: propagation.iter().any(|field| field.starts_with("master:")),
            })
        })
        .collect()
}

/// Blanks, tabs, line feeds and backslashes are written as three octal digits.
fn unescape(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                text.push(byte as char);
                text.push_str(&part[3..]);
            }
            None => {
                text.push('\\');
                text.push_str(part);
            }
        }
    }
    text
}

/// The external mounts of a dump.
///
/// `resolve` follows the symbolic links of a path inside the container; a specification may say `/var/run/x` where
/// the mount is at `/run/x`.
pub fn external(spec: &Spec, mounts: &[Mount], resolve: impl Fn(&Path) -> Option<PathBuf>) -> Vec<ExternalMount> {
    let mut external: Vec<ExternalMount> = Vec::new();
    let mut add = |key: &Path, name: &Path| {
        let key = key.to_string_lossy().into_owned();
        if !external.iter().any(|known| known.key == key) {
            external.push(ExternalMount { key, val: name.to_string_lossy().into_owned() });
        }
    };
    let mounted = |path: &Path| mounts.iter().find(|mount| mount.mount_point == path);
    let own_cgroup_namespace = spec.linux.namespaces.iter().any(|namespace| namespace.kind == "cgroup");

    for mount in &spec.mounts {
        if mount.is_bind() {
            let resolved = match mounted(&mount.destination) {
                Some(_) => mount.destination.clone(),
                None => resolve(&mount.destination).unwrap_or_else(|| mount.destination.clone()),
            };
            add(&resolved, &resolved);
        } else if mount.kind == "cgroup" && !own_cgroup_namespace {
            let below = |at: &&Mount| at.kind == "cgroup" && at.mount_point.parent() == Some(&mount.destination);
            for controller in mounts.iter().filter(below) {
                add(&controller.mount_point, &controller.mount_point);
            }
        }
    }
    for masked in &spec.linux.masked_paths {
        // A masked directory is an empty tmpfs, which CRIU dumps as it is.
        if mounted(masked).is_some_and(|mount| mount.root == Path::new("/null")) {
            add(masked, Path::new("/dev/null"));
        }
    }
    external
}

/// Whether any of `mounts` has peers, or receives from others and is none of the `external` ones: what
/// [`super::mount_image::has_peers`] says of the images of a dump that is made now.
pub fn have_peers(mounts: &[Mount], external: &[ExternalMount]) -> bool {
    let is_external = |mount: &Mount| external.iter().any(|known| Path::new(&known.key) == mount.mount_point);
    mounts.iter().any(|mount| mount.shared || mount.receives && !is_external(mount))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> Spec {
        serde_json::from_str(json).unwrap()
    }

    fn check(spec: &Spec, mountinfo: &str, expected: &[(&str, &str)]) {
        let links = |path: &Path| path.strip_prefix("/var/run").ok().map(|rest| Path::new("/run").join(rest));
        let found = external(spec, &parse(mountinfo), links);
        let found: Vec<_> = found.iter().map(|mount| (mount.key.as_str(), mount.val.as_str())).collect();
        assert_eq!(found, expected);
    }

    const MOUNTINFO: &str = "\
600 500 0:40 / / rw - overlay overlay rw
601 600 0:41 / /proc rw - proc proc rw
602 600 0:42 / /dev rw - tmpfs tmpfs rw
603 600 8:1 /vol /data\\040dir rw - ext4 /dev/sda rw
604 600 0:50 / /run/secrets/token ro - tmpfs tmpfs rw
605 600 0:51 / /sys/fs/cgroup ro - tmpfs tmpfs rw
606 605 0:28 /kubepods/x /sys/fs/cgroup/freezer ro - cgroup cgroup rw,freezer
607 605 0:29 /kubepods/x /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu
608 601 0:42 /null /proc/kcore rw - tmpfs tmpfs rw
609 601 0:60 / /proc/acpi ro - tmpfs tmpfs ro
";

    #[test]
    fn bind_mounts_go_by_where_they_really_are() {
        let spec = spec(
            r#"{"mounts":[{"destination":"/proc","type":"proc"},
                {"destination":"/data dir","type":"bind","source":"/v","options":["rbind"]},
                {"destination":"/var/run/secrets/token","source":"/t","options":["rbind"]}]}"#,
        );
        check(&spec, MOUNTINFO, &[("/data dir", "/data dir"), ("/run/secrets/token", "/run/secrets/token")]);
    }

    #[test]
    fn v1_controllers_are_external_unless_the_container_has_its_own_cgroup_namespace() {
        let mut with = spec(r#"{"mounts":[{"destination":"/sys/fs/cgroup","type":"cgroup"}]}"#);
        check(
            &with,
            MOUNTINFO,
            &[("/sys/fs/cgroup/freezer", "/sys/fs/cgroup/freezer"), ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu")],
        );
        with.linux = spec(r#"{"linux":{"namespaces":[{"type":"cgroup"}]}}"#).linux;
        check(&with, MOUNTINFO, &[]);
    }

    #[test]
    fn peers_are_seen_before_there_is_an_image() {
        let external = [ExternalMount { key: "/data".to_owned(), val: "/data".to_owned() }];
        let have = |propagation: &str| {
            let line = |at: &str| format!("603 600 8:1 / {at} rw,relatime{propagation} - ext4 /dev/sda rw\n");
            [line("/data"), line("/other")].map(|text| have_peers(&parse(&text), &external))
        };
        assert_eq!(have(""), [false, false]);
        assert_eq!(have(" shared:7"), [true, true]);
        assert_eq!(have(" master:33"), [false, true]);
        assert_eq!(have(" shared:7 master:33 propagate_from:2"), [true, true]);
        assert_eq!(have(" unbindable"), [false, false]);
    }

    #[test]
    fn masked_files_are_dev_null_and_masked_directories_are_dumped() {
        let spec = spec(r#"{"linux":{"maskedPaths":["/proc/kcore","/proc/acpi","/proc/absent"]}}"#);
        check(&spec, MOUNTINFO, &[("/proc/kcore", "/dev/null")]);
    }
}
