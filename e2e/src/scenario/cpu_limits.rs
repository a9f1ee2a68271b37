//! The cpu quotas that the kernel has for a pod, read on its node.

use anyhow::{Context, Result};

use super::cluster::Cluster;
use super::sandbox::Pod;
use super::wait::{LIMIT, until_true};

/// Quotas of a pod's cgroup and of those of its containers, the sandbox among them, sorted; as the kernel writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quotas(Vec<String>);

impl Quotas {
    /// Whether at least the pod and one container are limited.
    pub fn are_set(&self) -> bool {
        self.0.iter().filter(|quota| !is_unlimited(quota)).count() >= 2
    }
}

fn is_unlimited(quota: &str) -> bool {
    quota == "-1" || quota.starts_with("max ")
}

/// Reads them, v1 or v2.
///
/// # Errors
/// When the node does not answer, or has no cgroup of the pod.
pub fn quotas(cluster: &Cluster, pod: &Pod) -> Result<Quotas> {
    // Depending on its driver, kubelet names the cgroup by the UID or by the UID with other dashes.
    let uid = pod.uid.replace('-', "?");
    let script = format!(
        "find /sys/fs/cgroup/ -path '*pod{uid}*' \\( -name cpu.cfs_quota_us -o -name cpu.max \\) -exec cat {{}} +"
    );
    let said = cluster.node(&pod.node)?.exec(["/bin/sh", "-ec", &script])?.stdout;
    let mut quotas: Vec<String> = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
    quotas.sort();
    (!quotas.is_empty()).then_some(Quotas(quotas)).with_context(|| format!("{} has no cgroup of {}", pod.node, pod.uid))
}

/// Waits until the quotas of `pod` are as they were `before`: what a move has changed is put back when the pod runs already.
///
/// # Errors
/// When they are not, with what they are.
pub fn become_as_before(cluster: &Cluster, pod: &Pod, before: &Quotas) -> Result<()> {
    let mut now = None;
    let same = until_true("the quotas to be as before", LIMIT, || {
        let found = quotas(cluster, pod)?;
        let same = found == *before;
        now = Some(found);
        Ok(same)
    });
    same.with_context(|| format!("quotas were {before:?} and are {now:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_without_a_limit_does_not_count() {
        let quotas = |all: &[&str]| Quotas(all.iter().map(|quota| (*quota).to_owned()).collect());
        assert!(quotas(&["-1", "150000", "150000"]).are_set());
        assert!(quotas(&["150000 100000", "150000 100000", "max 100000"]).are_set());
        assert!(!quotas(&["-1", "-1", "150000"]).are_set());
    }
}
