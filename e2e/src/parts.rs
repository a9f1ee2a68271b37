//! What the machines of a lab are made from, and what every one of them has: a root, a network, a name, logs.
//!
//! Owns what the control plane and the workers have in common. What runs on them is theirs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::layout::Layout;
use crate::machine::cgroup::Hierarchy;
use crate::machine::spec::{Bind, Cgroups, ClockOffsets, MachineSpec, Root, SERVICES_DIRECTORY};
use crate::pki::Pki;
use crate::topology::{Machine, Topology};

/// Where Kubernetes' programs are inside every machine.
const KUBERNETES: &str = "/usr/local/lib/kubernetes";
/// Where keys and what holds some are inside every machine.
const SECRETS: &str = "/etc/kubernetes";

/// What machines are made from.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The lab's directories.
    pub layout: &'a Layout,
    /// The lab's shape.
    pub topology: &'a Topology,
    /// The lab's certificates.
    pub pki: &'a Pki,
    /// The shared Debian tree.
    pub tree: &'a Path,
    /// Kubernetes' programs on the host.
    pub kubernetes: &'a Path,
    /// The host's cgroup hierarchies.
    pub hierarchies: &'a [Hierarchy],
}

impl Parts<'_> {
    /// `machine`, with nothing on it that only some machines have: no secret, no service, the host's clocks.
    pub fn bare_machine(&self, machine: &Machine) -> MachineSpec {
        let disk = self.layout.disk(&machine.name);
        MachineSpec {
            hostname: machine.name.clone(),
            network: self.topology.namespace_of(machine).path(),
            cgroups: Cgroups {
                hierarchies: self.hierarchies.to_vec(),
                directory: Path::new(&self.topology.cgroup()).join(&machine.name),
            },
            clocks: ClockOffsets { monotonic: 0, boottime: 0 },
            root: Root {
                lower: self.tree.to_owned(),
                upper: disk.upper(),
                work: disk.work(),
                mount_point: disk.mount_point(),
            },
            binds: vec![
                Bind::read_only(self.kubernetes, KUBERNETES),
                Bind::writable(disk.log(), "/var/log"),
                Bind::writable(disk.services(), SERVICES_DIRECTORY),
            ],
            files: BTreeMap::from([
                ("/etc/hostname".into(), format!("{}\n", machine.name)),
                ("/etc/hosts".into(), format!("127.0.0.1 localhost\n{} {}\n", machine.address, machine.name)),
                // No name server: a machine never asks the outside world, and CoreDNS serves the cluster's names alone.
                ("/etc/resolv.conf".into(), String::new()),
            ]),
            secrets: BTreeMap::new(),
            defaults: BTreeMap::new(),
            directories: Vec::new(),
            services: Vec::new(),
        }
    }
}

/// One of Kubernetes' programs, inside a machine.
pub fn program(name: &str) -> String {
    format!("{KUBERNETES}/{name}")
}

/// A key, or a file that holds one, inside a machine.
pub fn secret(name: &str) -> PathBuf {
    Path::new(SECRETS).join(name)
}

/// `--name=<path of the secret>`.
pub fn secret_option(name: &str, file: &str) -> String {
    format!("--{name}={}", secret(file).display())
}
