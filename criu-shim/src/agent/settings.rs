//! What the agent is told when it is started.

use clap::Args;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Flags of `tideover-agent run`; each has an environment variable, because the DaemonSet fills them from the pod.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Name of this node, as Kubernetes knows it.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace in which Tideover is installed.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Address of this node at which other agents reach this one.
    #[arg(long, env = "HOST_IP")]
    pub host_ip: IpAddr,
    /// Port at that address.
    #[arg(long, env = "TIDEOVER_PORT", default_value_t = 7443)]
    pub port: u16,
    /// Port of this node at which metrics are served; left out, none are.
    #[arg(long, env = "TIDEOVER_METRICS_PORT")]
    pub metrics_port: Option<u16>,
    /// Address of this node at which metrics are served; left out, the one for other agents.
    #[arg(long, env = "TIDEOVER_METRICS_IP")]
    pub metrics_ip: Option<IpAddr>,
    /// Kubelet's root directory on the node.
    #[arg(long, env = "KUBELET_ROOT", default_value = "/var/lib/kubelet")]
    pub kubelet_root: PathBuf,
    /// Where journal and images are.
    #[arg(long, default_value = "/var/lib/tideover")]
    pub state: PathBuf,
    /// The most bytes that stored checkpoints may take, all together. Default 10 GiB.
    #[arg(long, env = "TIDEOVER_CHECKPOINT_QUOTA", default_value_t = 10 << 30)]
    pub checkpoint_quota: u64,
    /// The DaemonSet that this agent is of. Given, the agent cleans the node when it is stopped and that is gone.
    #[arg(long, env = "DAEMONSET_NAME")]
    pub daemonset: Option<String>,
    /// Started by the keeper, which starts the agent again when it is killed.
    #[arg(long, hide = true)]
    pub kept: bool,
}

impl Settings {
    /// Where other agents reach this one.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host_ip, self.port)
    }

    /// Where metrics are served, if they are.
    pub fn metrics(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.metrics_ip.unwrap_or(self.host_ip), self.metrics_port?))
    }

    /// Directory of the journal.
    pub fn journal(&self) -> PathBuf {
        self.state.join("journal")
    }

    /// Directory under which each Migration has its images.
    pub fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    /// Directory of stored checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.state.join("checkpoints")
    }

    /// Directory of one attempt's images.
    pub fn attempt_directory(&self, uid: &str, attempt: u32) -> PathBuf {
        self.images().join(Path::new(uid).file_name().unwrap_or_default()).join(attempt.to_string())
    }
}
