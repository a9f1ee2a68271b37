//! Which machines a lab has, and their names and addresses.
//!
//! Owns all naming and numbering; everything follows from the lab's name, its index and the number of workers, so
//! that two labs never meet. Never touches the host.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The most workers one lab can have; a worker's number is an octet of its addresses.
pub const MAX_WORKERS: u8 = 99;
/// The most labs on one host; the index is an octet of the addresses, and pods use `10.(128 + index).0.0/16`.
pub const MAX_LABS: u8 = 64;

/// Service addresses. Every lab has the same: they exist only inside a lab's network namespaces.
pub const SERVICE_CIDR: &str = "10.96.0.0/16";
/// The API server's Service.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The name server's Service.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// The cluster's DNS domain.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

const CONTROL_PLANE: &str = "control-plane";
const WORKER_PREFIX: &str = "worker-";

/// A lab's name: a lower-case letter, then letters, digits and dashes, at most 24 characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

/// Why a text is no lab name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no lab name: use a lower-case letter, then at most 23 lower-case letters, digits or dashes")]
pub struct BadName(pub String);

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LabName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let starts = text.starts_with(|c: char| c.is_ascii_lowercase());
        let rest = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if starts && rest && text.len() <= 24 { Ok(Self(text.to_owned())) } else { Err(BadName(text.to_owned())) }
    }
}

impl TryFrom<String> for LabName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// etcd, API server, controller-manager, scheduler; no kubelet.
    ControlPlane,
    /// A Kubernetes node, numbered from 1.
    Worker(u8),
}

/// One machine of a lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Host name, and node name of a worker.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its address on the lab's network.
    pub address: Ipv4Addr,
}

impl Machine {
    /// The switch's end of the machine's cable; at most 15 characters, as the kernel wants.
    pub fn port(&self) -> String {
        match self.role {
            Role::ControlPlane => "port-cp".to_owned(),
            Role::Worker(number) => format!("port-w{number}"),
        }
    }
}

/// A lab's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The lab's name.
    pub name: LabName,
    /// The lab's number on this host, below [`MAX_LABS`].
    pub index: u8,
    /// How many workers, 1 to [`MAX_WORKERS`].
    pub workers: u8,
}

impl Topology {
    /// The control plane, then the workers in order.
    pub fn machines(&self) -> Vec<Machine> {
        std::iter::once(self.control_plane()).chain(self.workers()).collect()
    }

    /// The control plane's machine.
    pub fn control_plane(&self) -> Machine {
        Machine { name: CONTROL_PLANE.to_owned(), role: Role::ControlPlane, address: self.address(10) }
    }

    /// The workers in order.
    pub fn workers(&self) -> impl Iterator<Item = Machine> + '_ {
        (1..=self.workers).map(|number| Machine {
            name: format!("{WORKER_PREFIX}{number}"),
            role: Role::Worker(number),
            address: self.address(100 + number),
        })
    }

    /// The machine called `name`.
    pub fn machine(&self, name: &str) -> Option<Machine> {
        self.machines().into_iter().find(|machine| machine.name == name)
    }

    /// The host's address on the lab's network.
    pub fn host_address(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// The lab's network, `a.b.c.0/24`.
    pub fn network(&self) -> String {
        format!("{}/24", self.address(0))
    }

    /// The addresses of all pods, a /16.
    pub fn pod_cidr(&self) -> String {
        format!("10.{}.0.0/16", 128 + self.index)
    }

    /// The addresses of the pods of worker `number`, a /24.
    pub fn pod_cidr_of(&self, number: u8) -> String {
        format!("10.{}.{number}.0/24", 128 + self.index)
    }

    /// Where the API server is reached from the host and from the machines.
    pub fn api_url(&self) -> String {
        format!("https://{}:{API_PORT}", self.control_plane().address)
    }

    /// The hardware address of a machine's interface: locally administered, and the same at every start, because the
    /// others remember it for half a minute.
    pub fn hardware_address(&self, machine: &Machine) -> String {
        let [a, b, c, d] = machine.address.octets();
        format!("02:4c:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    /// The network namespace of the lab's switch.
    pub fn switch(&self) -> NetworkNamespace {
        NetworkNamespace(format!("{}-switch", self.name))
    }

    /// The network namespace of a machine.
    pub fn namespace_of(&self, machine: &Machine) -> NetworkNamespace {
        NetworkNamespace(format!("{}-{}", self.name, machine.name))
    }

    /// The host's end of its cable to the switch.
    pub fn host_interface(&self) -> String {
        format!("tolab{}", self.index)
    }

    /// The lab's directory in each cgroup hierarchy, relative to the hierarchy's root.
    pub fn cgroup(&self) -> String {
        cgroup_of(&self.name)
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.index, last)
    }
}

/// The directory in each cgroup hierarchy that belongs to the lab called `name`.
pub fn cgroup_of(name: &LabName) -> String {
    format!("tideover-lab-{name}")
}

/// A named network namespace, as `ip netns` keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkNamespace(String);

impl NetworkNamespace {
    /// The name for `ip netns`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The file that holds the namespace open.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

/// Whether the network namespace `candidate` can only be one of the lab `name`; for sweeping up after a lab whose
/// topology was lost.
pub fn is_namespace_of(name: &LabName, candidate: &str) -> bool {
    let Some(rest) = candidate.strip_prefix(name.as_str()).and_then(|rest| rest.strip_prefix('-')) else {
        return false;
    };
    let numbered = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    rest == "switch" || rest == CONTROL_PLANE || rest.strip_prefix(WORKER_PREFIX).is_some_and(numbered)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn lab(name: &str, index: u8) -> Topology {
        Topology { name: name.parse().unwrap(), index, workers: 3 }
    }

    #[test]
    fn names_are_checked() {
        for good in ["tideover", "a", "lab-2"] {
            assert!(good.parse::<LabName>().is_ok(), "{good}");
        }
        for bad in ["", "2lab", "Lab", "a/b", "..", "a.b", "a-name-that-is-much-too-long-for-us"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_labs_share_no_name_and_no_address() {
        let (one, two) = (lab("one", 0), lab("two", 1));
        let of = |lab: &Topology| {
            let mut all: HashSet<String> = lab
                .machines()
                .iter()
                .flat_map(|machine| {
                    [
                        lab.hardware_address(machine),
                        machine.address.to_string(),
                        lab.namespace_of(machine).as_str().to_owned(),
                    ]
                })
                .collect();
            all.extend([lab.network(), lab.pod_cidr(), lab.host_interface(), lab.cgroup(), lab.switch().0]);
            all
        };
        assert!(of(&one).is_disjoint(&of(&two)));
    }

    #[test]
    fn interface_names_fit_the_kernel() {
        let mut largest = lab("x", MAX_LABS - 1);
        largest.workers = MAX_WORKERS;
        assert!(largest.host_interface().len() <= 15);
        assert!(largest.machines().iter().all(|machine| machine.port().len() <= 15));
    }

    #[test]
    fn a_machine_is_found_by_its_name() {
        let lab = lab("lab", 4);
        assert_eq!(lab.machine("worker-2").unwrap().role, Role::Worker(2));
        assert_eq!(lab.machine("control-plane").unwrap().address, Ipv4Addr::new(10, 77, 4, 10));
        assert_eq!(lab.machine("worker-4"), None);
    }

    #[test]
    fn sweeping_one_lab_spares_another_with_a_longer_name() {
        let name: LabName = "lab".parse().unwrap();
        for ours in ["lab-switch", "lab-control-plane", "lab-worker-12"] {
            assert!(is_namespace_of(&name, ours), "{ours}");
        }
        for other in ["lab-two-switch", "lab-worker-", "lab-worker-1x", "other-switch", "lab", "lab-two-worker-1"] {
            assert!(!is_namespace_of(&name, other), "{other}");
        }
    }
}
