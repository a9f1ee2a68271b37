//! Where a lab keeps its things on the host.
//!
//! Owns every path outside the repository. Never reads or writes any of them.

use std::path::{Path, PathBuf};

use crate::topology::LabName;

/// What does not survive a reboot: process records, locks.
pub const RUN_ROOT: &str = "/run/tideover-lab";
/// What does: disks of the machines, certificates, the index.
pub const DATA_ROOT: &str = "/var/lib/tideover-lab";

/// The directories of one lab.
#[derive(Debug, Clone)]
pub struct Layout {
    name: LabName,
    run: PathBuf,
    data: PathBuf,
}

impl Layout {
    /// The layout of the lab called `name`.
    pub fn new(name: &LabName) -> Self {
        Self {
            name: name.clone(),
            run: Path::new(RUN_ROOT).join(name.as_str()),
            data: Path::new(DATA_ROOT).join(name.as_str()),
        }
    }

    /// Directory of process records.
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Directory of everything on disk.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Held by `up`, `down` and everything that changes the lab. Beside the run directory and not in it, because
    /// `down` removes the directory while it holds the lock.
    pub fn lock(&self) -> PathBuf {
        Path::new(RUN_ROOT).join(format!("{}.lock", self.name))
    }

    /// The topology that the lab was made with.
    pub fn topology(&self) -> PathBuf {
        self.data.join("lab.json")
    }

    /// The `lab` program that started the lab; `exec` and the machines' launcher use it, so that a rebuild in the
    /// work tree does not change a running lab, and so that tests need not know where cargo put it.
    pub fn program(&self) -> PathBuf {
        self.data.join("bin").join("lab")
    }

    /// Certificates and keys.
    pub fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    /// The disk of one machine.
    pub fn disk(&self, machine: &str) -> Disk {
        Disk { root: self.data.join("machines").join(machine) }
    }

    /// The record of a machine's first process.
    pub fn record(&self, machine: &str) -> PathBuf {
        self.run.join(format!("{machine}.process.json"))
    }

    /// What a machine's launcher is told.
    pub fn spec(&self, machine: &str) -> PathBuf {
        self.run.join(format!("{machine}.spec.json"))
    }
}

/// The lock of the index of all labs.
pub fn index_lock() -> PathBuf {
    Path::new(RUN_ROOT).join(".index.lock")
}

/// The index of all labs: which name has which number.
pub fn index_file() -> PathBuf {
    Path::new(DATA_ROOT).join("index.json")
}

/// The directories that make a machine's disk.
#[derive(Debug, Clone)]
pub struct Disk {
    root: PathBuf,
}

impl Disk {
    /// All of it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the machine changed in its root file system.
    pub fn upper(&self) -> PathBuf {
        self.root.join("upper")
    }

    /// overlayfs' own work directory.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Where the root file system is put together.
    pub fn mount_point(&self) -> PathBuf {
        self.root.join("root")
    }

    /// Directories that must lie on the real disk because overlayfs cannot stand on overlayfs.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.root.join("volumes").join(name)
    }

    /// The logs of the machine's services (`/var/log` inside).
    pub fn log(&self) -> PathBuf {
        self.volume("log")
    }

    /// What the supervisor tells about its services (`/run/lab` inside).
    pub fn services(&self) -> PathBuf {
        self.root.join("services")
    }

    /// Output of the launcher and of the supervisor itself.
    pub fn console(&self) -> PathBuf {
        self.root.join("console.log")
    }
}
