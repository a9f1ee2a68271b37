//! Refuses to start where something is missing, with a sentence that says what to do.
//!
//! Owns the list of what the lab needs of the host. Checks everything before it refuses, so that one answer names all.

use std::fmt;
use std::path::{Path, PathBuf};

/// What is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// The user is not root.
    Root,
    /// A namespace kind, by its name below /proc/self/ns.
    Namespace(&'static str),
    /// userfaultfd(2).
    Userfaultfd,
    /// A program, and the Debian package or place it comes from.
    Tool {
        /// The program.
        name: &'static str,
        /// How to get it.
        remedy: &'static str,
    },
    /// The host cannot mount overlay file systems.
    Overlay,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => write!(f, "not root: run this as root, for example with sudo"),
            Self::Namespace(kind) => {
                write!(f, "the kernel has no {kind} namespaces: use one built with {}", option_of(kind))
            }
            Self::Userfaultfd => write!(f, "the kernel has no userfaultfd: use one built with CONFIG_USERFAULTFD"),
            Self::Tool { name, remedy } => write!(f, "{name} is not installed: {remedy}"),
            Self::Overlay => write!(f, "the kernel has no overlay file system: `modprobe overlay`"),
        }
    }
}

/// Everything that is missing, one sentence a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this machine cannot hold a lab:{}", .0.iter().map(|missing| format!("\n  {missing}")).collect::<String>())]
pub struct Refusal(pub Vec<Missing>);

/// What is known of the host.
trait Host {
    fn is_root(&self) -> bool;
    fn has_path(&self, path: &Path) -> bool;
    fn finds(&self, program: &str) -> bool;
    fn file_systems(&self) -> String;
}

const NAMESPACES: [(&str, &str); 7] = [
    ("net", "/proc/self/ns/net"),
    ("mnt", "/proc/self/ns/mnt"),
    ("pid", "/proc/self/ns/pid"),
    ("uts", "/proc/self/ns/uts"),
    ("ipc", "/proc/self/ns/ipc"),
    ("cgroup", "/proc/self/ns/cgroup"),
    ("time", "/proc/self/ns/time"),
];

/// The kernel's build option for a namespace kind.
fn option_of(kind: &str) -> String {
    match kind {
        "mnt" => "CONFIG_NAMESPACES".to_owned(),
        "cgroup" => "CONFIG_CGROUPS".to_owned(),
        other => format!("CONFIG_{}_NS", other.to_ascii_uppercase()),
    }
}

/// Its presence means that the kernel has userfaultfd(2).
const USERFAULTFD: &str = "/proc/sys/vm/unprivileged_userfaultfd";

const TOOLS: [(&str, &str); 10] = [
    ("debootstrap", "`apt-get install debootstrap`"),
    ("go", "see https://go.dev/doc/install"),
    ("cargo", "see https://rustup.rs"),
    ("cc", "`apt-get install gcc libc6-dev`"),
    ("patchelf", "`apt-get install patchelf`"),
    ("ip", "`apt-get install iproute2`"),
    ("tc", "`apt-get install iproute2`"),
    ("unshare", "`apt-get install util-linux`"),
    ("setpriv", "`apt-get install util-linux`"),
    ("chroot", "`apt-get install coreutils`"),
];

/// Checks this host.
///
/// # Errors
/// With everything that is missing.
pub fn check() -> Result<(), Refusal> {
    let missing = missing_on(&ThisHost);
    if missing.is_empty() { Ok(()) } else { Err(Refusal(missing)) }
}

fn missing_on(host: &impl Host) -> Vec<Missing> {
    let mut missing = Vec::new();
    if !host.is_root() {
        missing.push(Missing::Root);
    }
    let absent = NAMESPACES.iter().filter(|(_, path)| !host.has_path(Path::new(path)));
    missing.extend(absent.map(|(kind, _)| Missing::Namespace(kind)));
    if !host.has_path(Path::new(USERFAULTFD)) {
        missing.push(Missing::Userfaultfd);
    }
    // A kernel that has it as a module loads that at the first mount, but only where the module is installed.
    let has_overlay = host.file_systems().split_ascii_whitespace().any(|name| name == "overlay");
    if !has_overlay && !host.finds("modprobe") {
        missing.push(Missing::Overlay);
    }
    let absent = TOOLS.iter().filter(|(name, _)| !host.finds(name));
    missing.extend(absent.map(|(name, remedy)| Missing::Tool { name, remedy }));
    missing
}

struct ThisHost;

impl Host for ThisHost {
    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn has_path(&self, path: &Path) -> bool {
        path.exists()
    }

    fn finds(&self, program: &str) -> bool {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory: PathBuf| directory.join(program)).any(|file| file.is_file())
    }

    fn file_systems(&self) -> String {
        std::fs::read_to_string("/proc/filesystems").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake {
        root: bool,
        without: &'static str,
    }

    impl Host for Fake {
        fn is_root(&self) -> bool {
            self.root
        }
        fn has_path(&self, path: &Path) -> bool {
            path != Path::new(self.without)
        }
        fn finds(&self, program: &str) -> bool {
            program != self.without
        }
        fn file_systems(&self) -> String {
            "nodev\toverlay\n".to_owned()
        }
    }

    #[test]
    fn a_complete_host_misses_nothing() {
        assert!(missing_on(&Fake { root: true, without: "" }).is_empty());
    }

    #[test]
    fn each_missing_thing_is_named_with_its_remedy() {
        for (without, expected) in [
            ("/proc/self/ns/time", "CONFIG_TIME_NS"),
            (USERFAULTFD, "CONFIG_USERFAULTFD"),
            ("debootstrap", "apt-get install debootstrap"),
            ("patchelf", "apt-get install patchelf"),
        ] {
            let missing = missing_on(&Fake { root: true, without });
            assert_eq!(missing.len(), 1);
            assert!(missing[0].to_string().contains(expected), "{}", missing[0]);
        }
    }

    #[test]
    fn everything_missing_is_told_at_once() {
        let missing = missing_on(&Fake { root: false, without: "go" });
        let text = Refusal(missing).to_string();
        assert!(text.contains("root") && text.contains("go.dev"), "{text}");
    }
}
