//! What a worker is: a Kubernetes node as a machine description.
//!
//! Owns every setting of containerd, kubelet, kube-proxy and the pod network. A worker knows nothing of Tideover: what
//! an installer needs is what any distribution's node has, a containerd that reads drop-ins from
//! `/etc/containerd/conf.d` and comes back when it is ended.

use std::collections::BTreeMap;

use serde_json::json;

use crate::kubeconfig;
use crate::machine::spec::{Bind, ClockOffsets, MachineSpec, Service};
use crate::parts::{Parts, program, secret, secret_option};
use crate::pki::Identity;
use crate::topology::{CLUSTER_DOMAIN, DNS_SERVICE, Machine, Topology};

/// The address of containerd, for every client.
pub const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// What is said of all workers alike.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The image every pod's first container runs.
    pub pause_image: &'a str,
    /// The most open files that the host allows a process.
    pub open_files: u64,
}

/// Worker `number`, which is `machine`.
pub fn spec(
    parts: &Parts<'_>,
    settings: Settings<'_>,
    machine: &Machine,
    number: u8,
    kubelet: &Identity,
) -> MachineSpec {
    let disk = parts.layout.disk(&machine.name);
    let url = parts.topology.api_url();
    let authority = &parts.pki.authority;
    let node_user = format!("system:node:{}", machine.name);
    let mut spec = parts.bare_machine(machine);
    spec.files.extend([
        ("/etc/machine-id".into(), format!("{:016x}{number:016x}\n", u64::from(parts.topology.index) + 1)),
        ("/etc/cni/net.d/10-lab.conflist".into(), cni(&parts.topology.pod_cidr_of(number))),
    ]);
    spec.secrets = BTreeMap::from([
        (secret("kubelet.yaml"), kubelet_config(settings.open_files, machine)),
        (secret("kubelet.kubeconfig"), kubeconfig::render(&url, authority, &node_user, kubelet)),
        (secret("kubelet.crt"), kubelet.certificate.clone()),
        (secret("kubelet.key"), kubelet.key.clone()),
        (secret("ca.crt"), authority.clone()),
        (secret("proxy.yaml"), proxy_config(parts.topology, machine)),
        (secret("proxy.kubeconfig"), kubeconfig::render(&url, authority, "system:kube-proxy", &parts.pki.proxy)),
    ]);
    spec.binds.extend([
        Bind::writable(disk.volume("containerd"), "/var/lib/containerd"),
        Bind::writable(disk.volume("kubelet"), "/var/lib/kubelet"),
        // Large files of whatever is installed here; the overlay's upper layer would do, but only a plain directory
        // supports every operation that a file system of a real node does.
        Bind::writable(disk.volume("tideover"), "/var/lib/tideover"),
    ]);
    spec.clocks = clocks(number);
    // An administrator's file: what is changed here stays.
    spec.defaults = BTreeMap::from([("/etc/containerd/config.toml".into(), containerd_config(settings.pause_image))]);
    spec.directories = vec!["/etc/containerd/conf.d".into()];
    spec.services = services(machine);
    spec
}

/// Every worker's clocks are days apart, and the two clocks of one worker by another distance, so that a mistake with
/// either shows at once.
fn clocks(number: u8) -> ClockOffsets {
    let number = i64::from(number);
    ClockOffsets { monotonic: number * 1_000_003, boottime: number * 1_000_003 + 7_919 }
}

fn services(machine: &Machine) -> Vec<Service> {
    vec![
        Service::new("containerd", ["/usr/bin/containerd"]),
        Service::new(
            "kubelet",
            [
                program("kubelet"),
                secret_option("config", "kubelet.yaml"),
                secret_option("kubeconfig", "kubelet.kubeconfig"),
                format!("--node-ip={}", machine.address),
                "--v=2".to_owned(),
            ],
        )
        .after(CONTAINERD_SOCKET),
        Service::new("kube-proxy", [program("kube-proxy"), secret_option("config", "proxy.yaml")]),
    ]
}

fn containerd_config(pause_image: &str) -> String {
    // restrict_oom_score_adj: a host without CAP_SYS_RESOURCE may not lower the score of any process.
    format!(
        "\
version = 3
imports = ['/etc/containerd/conf.d/*.toml']

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{pause_image}'

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
"
    )
}

fn cni(pod_cidr: &str) -> String {
    // ptp and not bridge: all traffic between pods passes the node's routing, so Services reach a pod on the same node
    // without the module br_netfilter.
    let config = json!({
        "cniVersion": "1.0.0",
        "name": "lab",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": false,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": pod_cidr}]],
                    "routes": [{"dst": "0.0.0.0/0"}]
                }
            },
            {"type": "portmap", "capabilities": {"portMappings": true}, "backend": "nftables"}
        ]
    });
    format!("{config:#}\n")
}

fn kubelet_config(open_files: u64, machine: &Machine) -> String {
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "failSwapOn": false,
        "cgroupDriver": "cgroupfs",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": secret("ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": secret("kubelet.crt"),
        "tlsPrivateKeyFile": secret("kubelet.key"),
        "address": machine.address,
        "clusterDomain": CLUSTER_DOMAIN,
        "clusterDNS": [DNS_SERVICE],
        // The host may lack CAP_SYS_RESOURCE: no lower score, no higher limit.
        "oomScoreAdj": 0,
        "maxOpenFiles": open_files,
        // All workers share the host's disk; none may evict pods because of what the others fill.
        "localStorageCapacityIsolation": false,
        "evictionHard": {},
        "imageGCHighThresholdPercent": 100,
        // What is killed on purpose, over and over, comes back at once and not after minutes.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "1s"},
        "fileCheckFrequency": "1s",
        "syncFrequency": "10s",
        "nodeStatusUpdateFrequency": "4s",
    });
    format!("{config:#}\n")
}

fn proxy_config(topology: &Topology, machine: &Machine) -> String {
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": secret("proxy.kubeconfig")},
        "clusterCIDR": topology.pod_cidr(),
        "hostnameOverride": machine.name,
        // Zero leaves the kernel's connection tracking as it is; its limits belong to the host.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::layout::Layout;
    use crate::machine::cgroup::{Hierarchy, Kind};
    use crate::pki::Pki;

    fn identity(text: &str) -> Identity {
        Identity { certificate: format!("{text} certificate"), key: format!("{text} key") }
    }

    fn second_worker() -> MachineSpec {
        let topology = Topology { name: "lab".parse().unwrap(), index: 3, workers: 2 };
        let pki = Pki {
            authority: "authority".into(),
            signer: identity("signer"),
            api_server: identity("api"),
            admin: identity("admin"),
            controller_manager: identity("kcm"),
            scheduler: identity("scheduler"),
            proxy: identity("proxy"),
            service_accounts: identity("sa"),
            kubelets: vec![identity("one"), identity("two")],
        };
        let parts = Parts {
            layout: &Layout::new(&topology.name),
            topology: &topology,
            pki: &pki,
            tree: Path::new("/tree"),
            kubernetes: Path::new("/programs"),
            hierarchies: &[Hierarchy { mount: "/sys/fs/cgroup".into(), kind: Kind::Unified }],
        };
        let settings = Settings { pause_image: "docker.io/lab/pause:1", open_files: 20_000 };
        spec(&parts, settings, &topology.machine("worker-2").unwrap(), 2, &pki.kubelets[1])
    }

    #[test]
    fn a_worker_has_its_own_addresses_and_cgroup() {
        let spec = second_worker();
        assert!(spec.files[Path::new("/etc/cni/net.d/10-lab.conflist")].contains("10.131.2.0/24"));
        assert!(spec.secrets[Path::new("/etc/kubernetes/kubelet.yaml")].contains("10.77.3.102"));
        assert_eq!(spec.cgroups.directory, Path::new("tideover-lab-lab/worker-2"));
        assert_eq!(spec.network, Path::new("/run/netns/lab-worker-2"));
    }

    #[test]
    fn no_two_workers_share_a_clock() {
        assert_ne!(clocks(1).monotonic, clocks(2).monotonic);
        assert_ne!(clocks(1).boottime - clocks(1).monotonic, 0);
    }

    #[test]
    fn containerd_reads_drop_ins_and_keeps_an_administrator_s_changes() {
        let spec = second_worker();
        let config = &spec.defaults[Path::new("/etc/containerd/config.toml")];
        assert!(config.contains("imports = ['/etc/containerd/conf.d/*.toml']"));
        assert!(config.contains("sandbox = 'docker.io/lab/pause:1'"));
    }

    #[test]
    fn only_the_worker_s_own_key_is_inside() {
        let spec = second_worker();
        let all: String = spec.files.values().chain(spec.secrets.values()).cloned().collect();
        assert!(all.contains("two key"));
        for foreign in ["one key", "admin", "signer", "sa key"] {
            assert!(!all.contains(foreign), "{foreign}");
        }
    }
}
