//! Calling a move off before anything is frozen.

use anyhow::{Result, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};

#[test]
fn uncordon_before_the_freeze_cancels_the_move() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "uncordon")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  onMaintenance: {onCordon: true}\n"))?;
    sandbox.apply(&Ticker { mib: 8, collector: collector.address() }.deployment("ticker"))?;
    let pod = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    // With every other node cordoned there is nowhere to go: the move waits in Preparing for as long as the test needs. It begins
    // with the pod's own node, so that comes last.
    for node in cluster.workers().iter().filter(|node| **node != pod.node).chain([&pod.node]) {
        sandbox.kube().run(&["cordon", node])?;
    }
    migration::reached(&sandbox, &pod.name, "Preparing", LIMIT)?;
    sandbox.kube().run(&["uncordon", &pod.node])?;
    let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
    ensure!(
        ended["status"]["phase"] == "Cancelled",
        "the move is {}: {}",
        ended["status"]["phase"],
        migration::message(&ended)
    );
    ensure!(sandbox.ready_pod("ticker")?.uid == pod.uid, "the pod stayed");
    let reservations = sandbox.get(&["pods", "--selector=tideover.dev/reservation-for"])?.unwrap_or_default();
    ensure!(reservations["items"].as_array().is_none_or(Vec::is_empty), "a reservation is left: {reservations}");
    ensure!(collector.account().starts.len() == 1, "the program went on");
    sandbox.passed()
}

#[test]
fn deleting_the_migration_before_the_freeze_aborts_it() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "delete-migration")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&Ticker { mib: 8, collector: collector.address() }.deployment("ticker"))?;
    let pod = sandbox.ready_pod("ticker")?;
    for node in cluster.workers() {
        sandbox.kube().run(&["cordon", &node])?;
    }
    sandbox.create(&migration::manifest("short", &pod.name))?;
    migration::reached(&sandbox, &pod.name, "Preparing", LIMIT)?;
    sandbox.run(&["delete", "migration", "short", "--timeout=60s"])?;
    ensure!(sandbox.ready_pod("ticker")?.uid == pod.uid, "the pod stayed");
    until("the reservation to go", LIMIT, || {
        let left = sandbox.get(&["pods", "--selector=tideover.dev/reservation-for"])?.unwrap_or_default();
        Ok(left["items"].as_array().is_none_or(Vec::is_empty).then_some(()))
    })?;
    sandbox.passed()
}
