//! What a machine is made of, as data.
//!
//! Owns the format that `lab up` hands to the launcher. Never acts on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::machine::cgroup::Hierarchy;

/// Where the supervisor writes, inside the machine, what its services do: one JSON object, see
/// [`crate::machine::init::ServiceState`].
pub const SERVICES_DIRECTORY: &str = "/run/lab";

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Host name.
    pub hostname: String,
    /// The network namespace to live in.
    pub network: PathBuf,
    /// The cgroup hierarchies of the host, and the machine's directory relative to each one's root.
    pub cgroups: Cgroups,
    /// How far the machine's clocks are from the host's.
    pub clocks: ClockOffsets,
    /// The root file system.
    pub root: Root,
    /// Host directories seen inside.
    pub binds: Vec<Bind>,
    /// Files written at every start, path inside to content; mode 0644.
    pub files: BTreeMap<PathBuf, String>,
    /// Keys and what holds some, written at every start, path inside to content; mode 0600.
    pub secrets: BTreeMap<PathBuf, String>,
    /// Files written only where absent, path inside to content, mode 0644; the machine may change them.
    pub defaults: BTreeMap<PathBuf, String>,
    /// Directories made at every start.
    pub directories: Vec<PathBuf>,
    /// What runs, in this order.
    pub services: Vec<Service>,
}

/// The machine's place in the host's cgroup hierarchies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroups {
    /// All of them.
    pub hierarchies: Vec<Hierarchy>,
    /// Relative to each hierarchy's root.
    pub directory: PathBuf,
}

/// Seconds that a machine's clocks are ahead of the host's, see time_namespaces(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockOffsets {
    /// CLOCK_MONOTONIC, seconds.
    pub monotonic: i64,
    /// CLOCK_BOOTTIME, seconds.
    pub boottime: i64,
}

impl ClockOffsets {
    /// What /proc/PID/timens_offsets wants.
    pub fn to_proc(self) -> String {
        format!("monotonic {} 0\nboottime {} 0\n", self.monotonic, self.boottime)
    }
}

/// An overlay over a shared tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// The shared tree, never written.
    pub lower: PathBuf,
    /// The machine's changes.
    pub upper: PathBuf,
    /// overlayfs' own.
    pub work: PathBuf,
    /// Where it is put together on the host.
    pub mount_point: PathBuf,
}

/// A host directory or file seen inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// Inside, absolute.
    pub target: PathBuf,
    /// Whether the machine may not write to it.
    pub read_only: bool,
}

impl Bind {
    /// A writable bind.
    pub fn writable(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), read_only: false }
    }

    /// A bind that cannot be written through.
    pub fn read_only(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), target: target.into(), read_only: true }
    }
}

/// A program that the supervisor keeps running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name; its output goes to `/var/log/NAME.log`.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// A path that has to exist before it is started: another service's socket.
    pub needs: Option<PathBuf>,
}

impl Service {
    /// A service that needs nothing else.
    pub fn new<S: Into<String>>(name: &str, argv: impl IntoIterator<Item = S>) -> Self {
        Self { name: name.to_owned(), argv: argv.into_iter().map(Into::into).collect(), needs: None }
    }

    /// The same, started only once `path` exists.
    #[must_use]
    pub fn after(mut self, path: impl AsRef<Path>) -> Self {
        self.needs = Some(path.as_ref().to_owned());
        self
    }

    /// Where its output goes, inside the machine.
    pub fn log(&self) -> PathBuf {
        Path::new("/var/log").join(format!("{}.log", self.name))
    }
}
