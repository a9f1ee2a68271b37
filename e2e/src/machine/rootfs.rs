//! Puts a machine's root file system together and makes it the root.
//!
//! Owns every mount of a machine. Works in a mount namespace of its own that it first makes private, so that nothing
//! shows on the host; everything vanishes with the machine's last process.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{chdir, pivot_root};

use crate::machine::cgroup::{Hierarchy, Kind};
use crate::machine::spec::{Bind, MachineSpec, Root};

/// Devices that a machine has; those the host lacks are left out. A machine has its own /dev so that /dev/shm and
/// terminals are not shared with other machines.
const DEVICES: [&str; 13] = [
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "tty",
    "kmsg",
    "fuse",
    "userfaultfd",
    "net/tun",
    "loop-control",
    "loop0",
    "loop1",
];

/// What could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A mount failed.
    #[error("mount {what} on {target}")]
    Mount {
        /// File system or host path.
        what: String,
        /// Where.
        target: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A directory, file, link or device could not be made.
    #[error("make {path}")]
    Make {
        /// The path, seen from the host.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The new root could not be made the root.
    #[error("change the root to {path}")]
    Pivot {
        /// The new root.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}

/// Builds the root of `spec` and pivots into it. The calling process must already live in the machine's namespaces.
///
/// # Errors
/// Names the mount or path; the namespace is then useless and the process should end.
pub fn assemble(spec: &MachineSpec) -> Result<(), RootfsError> {
    change_propagation(MsFlags::MS_PRIVATE)?;
    let root = &spec.root.mount_point;
    mount_overlay(&spec.root)?;
    mount_kernel_file_systems(root)?;
    make_devices(root)?;
    mount_cgroups(root, &spec.cgroups.hierarchies)?;
    for bind in &spec.binds {
        mount_bind(root, bind)?;
    }
    for directory in &spec.directories {
        make_directory(&inside(root, directory))?;
    }
    for (path, content) in &spec.files {
        write_file(&inside(root, path), content, 0o644)?;
    }
    for (path, content) in &spec.secrets {
        write_file(&inside(root, path), content, 0o600)?;
    }
    for (path, content) in &spec.defaults {
        let path = inside(root, path);
        if !path.exists() {
            write_file(&path, content, 0o644)?;
        }
    }
    pivot(root)?;
    // kubelet and containerd hand mounts to each other and to pods that ask for them.
    change_propagation(MsFlags::MS_SHARED)
}

fn mount_overlay(root: &Root) -> Result<(), RootfsError> {
    for path in [&root.upper, &root.work, &root.mount_point] {
        make_directory(path)?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", root.lower.display(), root.upper.display(), root.work.display());
    mount_one("overlay", &root.mount_point, "overlay", MsFlags::empty(), &options)
}

fn mount_kernel_file_systems(root: &Path) -> Result<(), RootfsError> {
    let none = MsFlags::empty();
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (kind, target, flags, options) in [
        ("proc", "proc", none, ""),
        ("sysfs", "sys", none, ""),
        ("tmpfs", "sys/fs/cgroup", none, "mode=755"),
        ("tmpfs", "dev", MsFlags::MS_NOSUID, "mode=755"),
        ("devpts", "dev/pts", none, "newinstance,ptmxmode=0666,mode=620,gid=5"),
        ("tmpfs", "dev/shm", quiet, "mode=1777"),
        ("mqueue", "dev/mqueue", quiet, ""),
        ("tmpfs", "run", quiet, "mode=755"),
        ("tmpfs", "tmp", quiet, "mode=1777"),
    ] {
        let target = root.join(target);
        make_directory(&target)?;
        mount_one(kind, &target, kind, flags, options)?;
    }
    Ok(())
}

fn make_devices(root: &Path) -> Result<(), RootfsError> {
    for name in DEVICES {
        let Ok(device) = fs::metadata(Path::new("/dev").join(name)) else { continue };
        let path = root.join("dev").join(name);
        if let Some(parent) = path.parent() {
            make_directory(parent)?;
        }
        let kind = SFlag::from_bits_truncate(device.mode() & SFlag::S_IFMT.bits());
        let mode = Mode::from_bits_truncate(device.mode() & 0o7777);
        mknod(&path, kind, Mode::empty(), device.rdev())
            .and_then(|()| {
                nix::sys::stat::fchmodat(
                    nix::fcntl::AT_FDCWD,
                    &path,
                    mode,
                    nix::sys::stat::FchmodatFlags::FollowSymlink,
                )
            })
            .map_err(|errno| RootfsError::Make { path, source: errno.into() })?;
    }
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let path = root.join("dev").join(name);
        symlink(target, &path).map_err(|source| RootfsError::Make { path, source })?;
    }
    Ok(())
}

fn mount_cgroups(root: &Path, hierarchies: &[Hierarchy]) -> Result<(), RootfsError> {
    let top = root.join("sys/fs/cgroup");
    for hierarchy in hierarchies {
        if hierarchy.kind == Kind::Unified {
            mount_one("cgroup2", &top, "cgroup2", MsFlags::empty(), "")?;
            continue;
        }
        let (directory, options) = hierarchy.remount();
        let target = top.join(&directory);
        make_directory(&target)?;
        mount_one("cgroup", &target, "cgroup", MsFlags::empty(), &options)?;
        for controller in hierarchy.controllers().iter().filter(|controller| **controller != directory) {
            let path = top.join(controller);
            symlink(&directory, &path).map_err(|source| RootfsError::Make { path, source })?;
        }
    }
    Ok(())
}

fn mount_bind(root: &Path, bind: &Bind) -> Result<(), RootfsError> {
    let target = inside(root, &bind.target);
    make_directory(&bind.source)?;
    make_directory(&target)?;
    let failed = |errno: nix::Error| RootfsError::Mount {
        what: bind.source.display().to_string(),
        target: target.clone(),
        source: errno.into(),
    };
    let none = None::<&str>;
    mount(Some(&bind.source), &target, none, MsFlags::MS_BIND, none).map_err(failed)?;
    if bind.read_only {
        // The kernel ignores MS_RDONLY on a new bind; it takes a second call.
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, &target, none, flags, none).map_err(failed)?;
    }
    Ok(())
}

fn pivot(root: &Path) -> Result<(), RootfsError> {
    // pivot_root(".", ".") stacks the old root over the new one, from where it is detached; no directory for it is
    // needed, see pivot_root(2).
    chdir(root)
        .and_then(|()| pivot_root(".", "."))
        .and_then(|()| umount2(".", MntFlags::MNT_DETACH))
        .and_then(|()| chdir("/"))
        .map_err(|errno| RootfsError::Pivot { path: root.to_owned(), source: errno.into() })
}

fn change_propagation(kind: MsFlags) -> Result<(), RootfsError> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | kind, none).map_err(|errno| RootfsError::Mount {
        what: "the propagation of all mounts".to_owned(),
        target: PathBuf::from("/"),
        source: errno.into(),
    })
}

fn mount_one(what: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> Result<(), RootfsError> {
    mount(Some(what), target, Some(kind), flags, Some(options)).map_err(|errno| RootfsError::Mount {
        what: format!("{what} ({options})"),
        target: target.to_owned(),
        source: errno.into(),
    })
}

fn make_directory(path: &Path) -> Result<(), RootfsError> {
    fs::create_dir_all(path).map_err(|source| RootfsError::Make { path: path.to_owned(), source })
}

fn write_file(path: &Path, content: &str, mode: u32) -> Result<(), RootfsError> {
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(|source| RootfsError::Make { path: path.to_owned(), source })
}

/// `path`, which is absolute inside, seen from outside.
fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
