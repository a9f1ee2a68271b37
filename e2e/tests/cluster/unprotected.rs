//! A pod without a policy.

use anyhow::{Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::manifests::Ticker;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};

#[test]
fn a_pod_without_a_policy_is_drained_as_kubernetes_always_did() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "unprotected")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&Ticker { mib: 1, collector: collector.address() }.deployment("plain"))?;
    let before = sandbox.ready_pod("plain")?;
    let drained = Drain::start(sandbox.kube(), &before.node, "app=plain")?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);
    let after = sandbox.ready_pod("plain")?;
    ensure!(after.node != before.node, "the pod is still on {}", after.node);
    until("a cold start elsewhere", LIMIT, || Ok(Some(()).filter(|()| collector.account().starts.len() == 2)))?;
    ensure!(migration::all(&sandbox)?.is_empty(), "nobody asked for a move");
    sandbox.passed()
}
