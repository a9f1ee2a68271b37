//! What every cluster has beside the control plane: name resolution.
//!
//! Owns the manifests. Applying them again changes nothing.

use std::io::Write;
use std::process::Stdio;

use crate::lab::Lab;

const COREDNS: &str = include_str!("../manifests/coredns.yaml");

/// Why the cluster's own services are not installed.
#[derive(Debug, thiserror::Error)]
pub enum AddonsError {
    /// kubectl could not be run.
    #[error("run kubectl to install CoreDNS")]
    Run(#[source] std::io::Error),
    /// kubectl refused.
    #[error("install CoreDNS: {0}")]
    Refused(String),
}

/// Installs them.
///
/// # Errors
/// With kubectl's message.
pub fn apply(lab: &Lab) -> Result<(), AddonsError> {
    let mut command = lab.kubectl_command(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(AddonsError::Run)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(COREDNS.as_bytes()).map_err(AddonsError::Run)?;
    }
    let output = child.wait_with_output().map_err(AddonsError::Run)?;
    if output.status.success() {
        return Ok(());
    }
    Err(AddonsError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{CLUSTER_DOMAIN, DNS_SERVICE};

    #[test]
    fn the_manifest_has_the_address_and_domain_that_kubelets_hand_out() {
        assert!(COREDNS.contains(&format!("clusterIP: {DNS_SERVICE}\n")));
        assert!(COREDNS.contains(&format!("kubernetes {CLUSTER_DOMAIN} ")));
    }
}
