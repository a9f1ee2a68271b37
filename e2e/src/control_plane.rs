//! What the control plane is: etcd, API server, controller-manager and scheduler as a machine description.
//!
//! Owns every setting of these four. It is a machine like the workers, so that one supervisor, one `kill` and one
//! `service` command serve all.

use std::collections::BTreeMap;

use crate::kubeconfig;
use crate::machine::spec::{Bind, MachineSpec, Service};
use crate::parts::{Parts, program, secret, secret_option};
use crate::pki::Identity;
use crate::topology::{API_PORT, CLUSTER_DOMAIN, SERVICE_CIDR, Topology};

const ETCD: &str = "http://127.0.0.1:2379";

/// The control plane's machine. With `fsync` etcd waits for the disk: without, tests run faster; with, benchmarks are
/// honest.
pub fn spec(parts: &Parts<'_>, fsync: bool) -> MachineSpec {
    let machine = parts.topology.control_plane();
    let mut spec = parts.bare_machine(&machine);
    let config = |user: &str, identity: &Identity| {
        kubeconfig::render(&parts.topology.api_url(), &parts.pki.authority, user, identity)
    };
    let pki = parts.pki;
    spec.secrets = BTreeMap::from([
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
    spec.binds.push(Bind::writable(parts.layout.disk(&machine.name).volume("etcd"), "/var/lib/etcd"));
    spec.services = vec![etcd(fsync), api_server(parts.topology), controller_manager(parts.topology), scheduler()];
    spec
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
            secret_option("tls-cert-file", "api-server.crt"),
            secret_option("tls-private-key-file", "api-server.key"),
            secret_option("client-ca-file", "ca.crt"),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--service-cluster-ip-range={SERVICE_CIDR}"),
            format!("--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
            secret_option("service-account-key-file", "service-accounts.pub"),
            secret_option("service-account-signing-key-file", "service-accounts.key"),
            // Logs and exec: kubelets' names resolve nowhere.
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            secret_option("kubelet-certificate-authority", "ca.crt"),
            secret_option("kubelet-client-certificate", "admin.crt"),
            secret_option("kubelet-client-key", "admin.key"),
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
            secret_option("kubeconfig", "controller-manager.kubeconfig"),
            "--controllers=*".to_owned(),
            "--leader-elect=false".to_owned(),
            "--use-service-account-credentials=true".to_owned(),
            secret_option("service-account-private-key-file", "service-accounts.key"),
            secret_option("root-ca-file", "ca.crt"),
            secret_option("cluster-signing-cert-file", "ca.crt"),
            secret_option("cluster-signing-key-file", "ca.key"),
            format!("--cluster-cidr={}", topology.pod_cidr()),
            // Every worker's share of the pod network is fixed by its number.
            "--allocate-node-cidrs=false".to_owned(),
        ],
    )
}

fn scheduler() -> Service {
    Service::new(
        "kube-scheduler",
        [
            program("kube-scheduler"),
            secret_option("kubeconfig", "scheduler.kubeconfig"),
            "--leader-elect=false".to_owned(),
        ],
    )
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
