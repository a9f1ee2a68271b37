//! What the control plane is: etcd, API server, controller-manager and scheduler as a machine description.
//!
//! Owns every setting of these four. It is a machine like the workers, so that one supervisor, one `kill` and one
//! `service` command serve all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::kubeconfig;
use crate::layout::Layout;
use crate::machine::cgroup::Hierarchy;
use crate::machine::spec::{Bind, Cgroups, ClockOffsets, MachineSpec, Root, SERVICES_DIRECTORY, Service};
use crate::pki::{Identity, Pki};
use crate::topology::{API_PORT, CLUSTER_DOMAIN, SERVICE_CIDR, Topology};
use crate::worker::KUBERNETES;

const SECRETS: &str = "/etc/kubernetes";
const ETCD: &str = "http://127.0.0.1:2379";

/// What the control plane is made from.
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
    /// Whether etcd waits for the disk. Without, tests run faster; with, benchmarks are honest.
    pub fsync: bool,
}

/// The control plane's machine.
pub fn spec(parts: &Parts<'_>) -> MachineSpec {
    let machine = parts.topology.control_plane();
    let disk = parts.layout.disk(&machine.name);
    let config = |user: &str, identity: &Identity| {
        kubeconfig::render(&parts.topology.api_url(), &parts.pki.authority, user, identity)
    };
    let pki = parts.pki;
    let files = BTreeMap::from([
        ("/etc/hostname".into(), format!("{}\n", machine.name)),
        ("/etc/hosts".into(), format!("127.0.0.1 localhost\n{} {}\n", machine.address, machine.name)),
        ("/etc/resolv.conf".into(), String::new()),
    ]);
    let secrets = BTreeMap::from([
        (secret("ca.crt"), pki.authority.clone()),
        (secret("ca.key"), pki.signer.key.clone()),
        (secret("api-server.crt"), pki.api_server.certificate.clone()),
        (secret("api-server.key"), pki.api_server.key.clone()),
        (secret("admin.crt"), pki.admin.certificate.clone()),
        (secret("admin.key"), pki.admin.key.clone()),
        (secret("service-accounts.pub"), pki.service_accounts.certificate.clone()),
        (secret("service-accounts.key"), pki.service_accounts.key.clone()),
        (secret("controller-manager.kubeconfig"), config("system:kube-controller-manager", &pki.controller_manager)),
        (secret("scheduler.kubeconfig"), config("system:kube-scheduler", &pki.scheduler)),
    ]);
    MachineSpec {
        hostname: machine.name.clone(),
        network: parts.topology.namespace_of(&machine).path(),
        cgroups: Cgroups {
            hierarchies: parts.hierarchies.to_vec(),
            directory: Path::new(&parts.topology.cgroup()).join(&machine.name),
        },
        clocks: ClockOffsets { monotonic: 0, boottime: 0 },
        root: Root {
            lower: parts.tree.to_owned(),
            upper: disk.upper(),
            work: disk.work(),
            mount_point: disk.mount_point(),
        },
        binds: vec![
            Bind::read_only(parts.kubernetes, KUBERNETES),
            Bind::writable(disk.volume("etcd"), "/var/lib/etcd"),
            Bind::writable(disk.log(), "/var/log"),
            Bind::writable(disk.services(), SERVICES_DIRECTORY),
        ],
        files,
        secrets,
        defaults: BTreeMap::new(),
        directories: vec![],
        services: vec![etcd(parts.fsync), api_server(parts.topology), controller_manager(parts.topology), scheduler()],
    }
}

fn etcd(fsync: bool) -> Service {
    let mut options = vec![
        "/usr/bin/etcd".to_owned(),
        "--data-dir=/var/lib/etcd/data".to_owned(),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
    ];
    if !fsync {
        options.push("--unsafe-no-fsync".to_owned());
    }
    Service::new("etcd", options)
}

fn api_server(topology: &Topology) -> Service {
    Service::new(
        "kube-apiserver",
        [
            program("kube-apiserver"),
            format!("--etcd-servers={ETCD}"),
            format!("--secure-port={API_PORT}"),
            "--bind-address=0.0.0.0".to_owned(),
            format!("--advertise-address={}", topology.control_plane().address),
            option("tls-cert-file", "api-server.crt"),
            option("tls-private-key-file", "api-server.key"),
            option("client-ca-file", "ca.crt"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            format!("--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
            option("service-account-key-file", "service-accounts.pub"),
            option("service-account-signing-key-file", "service-accounts.key"),
            // Logs and exec: kubelets' names resolve nowhere.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            option("kubelet-certificate-authority", "ca.crt"),
            option("kubelet-client-certificate", "admin.crt"),
            option("kubelet-client-key", "admin.key"),
            // Webhooks behind a Service are reached at their pods: this machine has no kube-proxy.
            "--enable-aggregator-routing=true".to_owned(),
        ],
    )
}

fn controller_manager(topology: &Topology) -> Service {
    Service::new(
        "kube-controller-manager",
        [
            program("kube-controller-manager"),
            option("kubeconfig", "controller-manager.kubeconfig"),
            "--controllers=*".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            option("service-account-private-key-file", "service-accounts.key"),
            option("root-ca-file", "ca.crt"),
            option("cluster-signing-cert-file", "ca.crt"),
            option("cluster-signing-key-file", "ca.key"),
            format!("--cluster-cidr={}", topology.pod_cidr()),
            // Every worker's share of the pod network is fixed by its number.
            "--allocate-node-cidrs=false".to_owned(),
        ],
    )
}

fn scheduler() -> Service {
    Service::new(
        "kube-scheduler",
        [program("kube-scheduler"), option("kubeconfig", "scheduler.kubeconfig"), "--leader-elect=false".to_owned()],
    )
}

fn program(name: &str) -> String {
    format!("{KUBERNETES}/{name}")
}

fn option(name: &str, file: &str) -> String {
    format!("--{name}={}", secret(file).display())
}

fn secret(name: &str) -> PathBuf {
    Path::new(SECRETS).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_waits_for_the_disk_only_when_asked() {
        let unsafe_flag = "--unsafe-no-fsync".to_owned();
        assert!(etcd(false).argv.contains(&unsafe_flag));
        assert!(!etcd(true).argv.contains(&unsafe_flag));
    }

    #[test]
    fn the_api_server_reaches_kubelets_and_webhooks_by_address() {
        let topology = Topology { name: "lab".parse().unwrap(), index: 2, workers: 1 };
        let arguments = api_server(&topology).argv;
        for needed in [
            "--kubelet-preferred-address-types=InternalIP",
            "--enable-aggregator-routing=true",
            "--advertise-address=10.77.2.10",
        ] {
            assert!(arguments.iter().any(|argument| argument == needed), "{needed}");
        }
    }
}
