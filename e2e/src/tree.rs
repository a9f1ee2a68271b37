//! The Debian tree that every machine's root file system stands on.
//!
//! Owns the suite and the packages. Made once with debootstrap, then never written: machines see it below an overlay.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::apt;
use crate::cache::{Cache, CacheError, Inputs};
use crate::command::{self, CommandError};

/// Debian's unstable suite: only there are criu 4, containerd 2 and redis of the same year. bookworm's debootstrap
/// knows it.
pub(crate) const SUITE: &str = "sid";

/// What a node needs beyond Debian's minimal base, and the programs that the lab's images are made from.
const PACKAGES: [&str; 20] = [
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "criu",
    "crun",
    "etcd-server",
    "ethtool",
    "iproute2",
    "iptables",
    "kmod",
    "nftables",
    "postgresql-18",
    "procps",
    "redis-server",
    "redis-tools",
    "runc",
    "socat",
    "util-linux",
];

/// Where Debian's archive keys are, from the package debian-archive-keyring.
pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// debootstrap failed.
    #[error("make the Debian tree; its whole story is in {log}")]
    Debootstrap {
        /// debootstrap's messages.
        log: PathBuf,
        /// With the end of them.
        #[source]
        source: CommandError,
    },
    /// A file of the tree could not be removed.
    #[error("tidy {path}")]
    Tidy {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The result could not be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// The tree, and what names its content.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Its root on the host.
    pub path: PathBuf,
    /// What it is made from; for what is made from the tree.
    pub inputs: Inputs,
}

/// Makes the tree unless the cache has it, telling each of debootstrap's lines to `on_line`.
///
/// # Errors
/// With debootstrap's message.
pub fn ensure(cache: &Cache, on_line: impl FnMut(&str)) -> Result<Tree, TreeError> {
    let inputs = Inputs::of([SUITE].iter().chain(&PACKAGES).map(|part| part.as_bytes()));
    let entry = cache.entry(&format!("debian-{SUITE}-{}", inputs.short()), inputs.clone());
    let tree = Tree { path: entry.path().to_owned(), inputs };
    if entry.is_current() {
        return Ok(tree);
    }
    let partial = cache.partial("debian")?;
    let log = entry.path().with_extension("log");
    command::run_logged(&mut debootstrap(&partial, apt::debian_mirror().as_deref()), &log, on_line)
        .map_err(|source| TreeError::Debootstrap { log, source })?;
    tidy(&partial)?;
    entry.install(&partial)?;
    Ok(tree)
}

fn debootstrap(target: &Path, mirror: Option<&str>) -> std::process::Command {
    // In a mount and pid namespace of its own: debootstrap mounts /proc in the tree and starts package scripts, and
    // neither may survive it, nor it us.
    let mut command = command::program("setpriv", ["--pdeathsig", "KILL", "unshare"]);
    command.args(["--mount", "--pid", "--fork", "--kill-child", "debootstrap"]);
    command.arg("--variant=minbase").arg(format!("--include={}", PACKAGES.join(",")));
    if Path::new(KEYRING).exists() {
        command.arg(format!("--keyring={KEYRING}"));
    }
    command.arg(SUITE).arg(target);
    command.args(mirror);
    command
}

/// Removes what debootstrap leaves for a system that would be kept up to date.
fn tidy(tree: &Path) -> Result<(), TreeError> {
    for directory in ["var/cache/apt", "var/lib/apt/lists", "debootstrap", "run", "tmp"] {
        let path = tree.join(directory);
        let failed = |source| TreeError::Tidy { path: path.clone(), source };
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    for directory in ["run", "tmp"] {
        let path = tree.join(directory);
        fs::create_dir(&path).map_err(|source| TreeError::Tidy { path, source })?;
    }
    // Debian's own containerd settings are of the old format and would hide ours.
    for file in ["etc/containerd/config.toml", "etc/machine-id"] {
        let path = tree.join(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(TreeError::Tidy { path, source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

/// `path` inside `tree` as a path of the host, every symbolic link on the way resolved inside the tree: an absolute
/// link of the tree must not lead into the host. Gives up on more than 40 links, as the kernel does.
pub fn resolve(tree: &Path, path: &Path) -> PathBuf {
    let mut pending: Vec<_> = parts(path);
    let mut resolved = PathBuf::new();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        resolved.push(&part);
        let Ok(target) = fs::read_link(tree.join(&resolved)) else { continue };
        links += 1;
        if links > 40 {
            break;
        }
        resolved = if target.is_absolute() {
            PathBuf::new()
        } else {
            resolved.parent().map(Path::to_owned).unwrap_or_default()
        };
        pending.extend(parts(&target));
    }
    tree.join(resolved)
}

/// The names in `path`, last first.
fn parts(path: &Path) -> Vec<std::ffi::OsString> {
    use std::path::Component;
    let name = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_resolved_inside_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::create_dir_all(tree.join("usr/lib")).unwrap();
        fs::write(tree.join("usr/lib/real.so.1"), "x").unwrap();
        symlink("/usr/lib", tree.join("lib")).unwrap();
        symlink("real.so.1", tree.join("usr/lib/name.so")).unwrap();
        symlink("../usr/lib/name.so", tree.join("usr/other")).unwrap();
        for path in ["/lib/name.so", "/usr/lib/real.so.1", "/usr/other", "/lib/../lib/name.so"] {
            assert_eq!(resolve(tree, Path::new(path)), tree.join("usr/lib/real.so.1"), "{path}");
        }
    }

    #[test]
    fn a_circle_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        resolve(dir.path(), Path::new("/a"));
    }
}
