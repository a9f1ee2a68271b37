//! Command line and environment.

use clap::Parser;
use std::net::SocketAddr;

/// The operator of Tideover: decides which pod moves, where and when; serves the webhooks; issues certificates.
#[derive(Clone, Debug, Parser)]
#[command(name = "tideover-operator", version)]
pub struct Settings {
    /// Namespace that the operator runs in: its Lease, CA and webhook Service are there.
    #[arg(long, env = "POD_NAMESPACE")]
    pub namespace: String,
    /// Name of this replica; it holds the Lease under it.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// User name of the operator; `system:serviceaccount:<namespace>:tideover-operator` where left out.
    #[arg(long, env = "SERVICE_ACCOUNT")]
    service_account: Option<String>,
    /// User name of the agents; `system:serviceaccount:<namespace>:tideover-agent` where left out.
    #[arg(long)]
    agent_service_account: Option<String>,
    /// Service of the webhooks.
    #[arg(long, default_value = "tideover-webhook")]
    pub webhook_service: String,
    /// Name of the MutatingWebhookConfiguration and of the ValidatingWebhookConfiguration.
    #[arg(long, default_value = "tideover")]
    pub webhook_configuration: String,
    /// Image of reservation pods: any whose program waits.
    #[arg(long, default_value = "registry.k8s.io/pause:3.10")]
    pub pause_image: String,
    /// Moves that may be under way at a time.
    #[arg(long, default_value_t = 5)]
    pub max_migrations: usize,
    /// Moves that may be under way at a time away from one node.
    #[arg(long, default_value_t = 2)]
    pub max_outbound: usize,
    /// Namespaces that the webhooks never see, separated by commas; the operator's own is one of them in any case.
    #[arg(long, value_delimiter = ',', default_value = "kube-system")]
    pub excluded_namespaces: Vec<String>,
    /// Where the webhooks are served, with TLS.
    #[arg(long, default_value = "0.0.0.0:9443")]
    pub webhook_address: SocketAddr,
    /// Where `/healthz` and `/readyz` are served, without TLS.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub health_address: SocketAddr,
}

impl Settings {
    /// User name of the operator, as the API server knows it.
    pub fn operator_user(&self) -> String {
        self.user(self.service_account.as_ref(), "tideover-operator")
    }

    /// User name of the agents, as the API server knows it.
    pub fn agent_user(&self) -> String {
        self.user(self.agent_service_account.as_ref(), "tideover-agent")
    }

    /// True of a namespace in which no pod can be moved, because admission would not know the replacement.
    pub fn excludes(&self, namespace: &str) -> bool {
        namespace == self.namespace || self.excluded_namespaces.iter().any(|excluded| excluded == namespace)
    }

    fn user(&self, given: Option<&String>, account: &str) -> String {
        given.cloned().unwrap_or_else(|| format!("system:serviceaccount:{}:{account}", self.namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_own_namespace_is_excluded_in_any_case() {
        let settings =
            Settings::parse_from(["x", "--namespace", "tide", "--identity", "a", "--excluded-namespaces", "b,c"]);
        assert!(["tide", "b", "c"].iter().all(|namespace| settings.excludes(namespace)));
        assert!(!settings.excludes("kube-system"));
    }

    #[test]
    fn users_follow_from_the_namespace() {
        let settings = Settings::parse_from(["x", "--namespace", "tide", "--identity", "a"]);
        assert_eq!(settings.operator_user(), "system:serviceaccount:tide:tideover-operator");
        assert_eq!(settings.agent_user(), "system:serviceaccount:tide:tideover-agent");
    }
}
