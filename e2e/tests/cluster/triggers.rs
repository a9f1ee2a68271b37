//! What starts a move, beside a drain.

use anyhow::{Result, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};

fn ticker(sandbox: &Sandbox, collector: &Collector, policy: &str) -> Result<Pod> {
    sandbox.apply(&manifests::policy("ticker", "ticker", policy))?;
    sandbox.apply(&Ticker { mib: 8, collector: collector.address() }.deployment("ticker"))?;
    let pod = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    Ok(pod)
}

fn moved_once(sandbox: &Sandbox, collector: &Collector, before: &Pod) -> Result<()> {
    migration::succeeded(sandbox, &before.name, LIMIT)?;
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.node != before.node, "the pod is still on {}", after.node);
    let newest = collector.account().newest;
    let account =
        until("ticks after the move", LIMIT, || Ok(Some(collector.account()).filter(|it| it.newest > newest + 100)))?;
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
    Ok(())
}

#[test]
fn a_cordon_alone_moves_the_pod_where_the_policy_says_so() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "cordon")?;
    let collector = Collector::listen(cluster.host_address())?;
    let pod = ticker(&sandbox, &collector, "  onMaintenance: {onCordon: true}\n")?;
    sandbox.kube().run(&["cordon", &pod.node])?;
    moved_once(&sandbox, &collector, &pod)?;
    sandbox.passed()
}

#[test]
fn a_node_maintenance_empties_its_node_and_uncordons_what_it_cordoned() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "maintenance")?;
    let collector = Collector::listen(cluster.host_address())?;
    let pod = ticker(&sandbox, &collector, "")?;
    let name = "e2e-maintenance";
    sandbox.kube().apply(&format!(
        "\
apiVersion: tideover.dev/v1alpha1
kind: NodeMaintenance
metadata: {{name: {name}}}
spec: {{node: {}, reason: kernel update}}
",
        pod.node
    ))?;
    let outcome = moved_once(&sandbox, &collector, &pod).and_then(|()| {
        until("the NodeMaintenance to say that the node is empty", LIMIT, || {
            let object = sandbox.kube().get(&["nodemaintenance", name])?.unwrap_or_default();
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            Ok(conditions.into_iter().find(|it| it["type"] == "Empty" && it["status"] == "True"))
        })
    });
    sandbox.kube().run(&["delete", "nodemaintenance", name, "--timeout=60s"])?;
    outcome?;
    let node = sandbox.kube().get(&["node", &pod.node])?.unwrap_or_default();
    ensure!(node["spec"]["unschedulable"] != true, "{} is still cordoned", pod.node);
    sandbox.passed()
}

#[test]
fn a_person_can_move_a_pod_by_hand_also_one_without_a_policy() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "by-hand")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&Ticker { mib: 8, collector: collector.address() }.deployment("ticker"))?;
    let pod = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    sandbox.create(&migration::manifest("by-hand", &pod.name))?;
    moved_once(&sandbox, &collector, &pod)?;
    sandbox.passed()
}
