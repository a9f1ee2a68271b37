//! Targets that can't run what they are given: the source goes on with its state, and somebody says why.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::{Cluster, Collector, Sandbox, migration, until};

const LIMIT: Duration = Duration::from_secs(240);

/// Takes the program that the tickers run out of a node's images, and puts it back.
pub(super) const PROGRAM_AWAY: &str = "find /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots -path '*/fs/probe' -type f \
     | while read -r file; do mv \"$file\" \"$file.away\"; done";
pub(super) const PROGRAM_BACK: &str = "find /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots -path '*/fs/probe.away' -type f \
     | while read -r file; do mv \"$file\" \"${file%.away}\"; done";

/// A change to every node but the source, taken back when dropped.
pub(super) struct Changed<'a> {
    cluster: &'a Cluster,
    nodes: Vec<String>,
    undo: &'static str,
}

impl<'a> Changed<'a> {
    pub(super) fn new(cluster: &'a Cluster, but: &str, change: &str, undo: &'static str) -> Result<Self> {
        let nodes = cluster.workers().into_iter().filter(|node| node != but).collect();
        let changed = Self { cluster, nodes, undo };
        for node in &changed.nodes {
            cluster.node(node)?.exec(["/bin/sh", "-ec", change])?;
        }
        Ok(changed)
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        for name in &self.nodes {
            let undone = self.cluster.node(name).and_then(|node| Ok(node.exec(["/bin/sh", "-ec", self.undo])?));
            if let Err(error) = undone {
                eprintln!("{name} stays changed: {error:#}");
            }
        }
    }
}

fn source_goes_on(name: &str, change: &str, undo: &'static str, words: &str) -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), name)?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 2, retryDelay: 1s}\n"))?;
    sandbox.apply(&Ticker { mib: 8, collector: collector.address() }.deployment("ticker"))?;
    let pod = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    let changed = Changed::new(cluster, &pod.node, change, undo)?;

    let drained = Drain::start(sandbox.kube(), &pod.node, "app=ticker")?.finish(LIMIT)?;
    drop(changed);
    ensure!(drained.code != Some(0), "the drain can't have emptied the node: {}", drained.said);
    ensure!(drained.said.contains(words), "the drain does not say why: {}", drained.said);
    let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let message = migration::message(&ended);
    ensure!(message.contains(words), "the Migration does not say why: {message}");

    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.uid == pod.uid && after.restarts == 0, "another pod, or a restart");
    let newest = collector.account().newest;
    let account = until("the ticker to go on", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.newest > newest + 500))
    })?;
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
    until(
        "one pod to be left",
        LIMIT,
        || Ok(Some(()).filter(|()| sandbox.pods("ticker").is_ok_and(|it| it.len() == 1))),
    )
}

#[test]
fn a_missing_file_on_the_target_is_named_and_the_source_goes_on() -> Result<()> {
    source_goes_on("missing-file", PROGRAM_AWAY, PROGRAM_BACK, "probe")
}

#[test]
fn another_cpu_feature_set_is_refused_before_the_freeze() -> Result<()> {
    source_goes_on(
        "cpu-features",
        "sed 's/ sse4_2 / /' /proc/cpuinfo > /run/cpuinfo && mount --bind /run/cpuinfo /proc/cpuinfo",
        "umount /proc/cpuinfo && rm /run/cpuinfo",
        "sse4_2",
    )
}

#[test]
fn a_full_disk_on_the_target_costs_nothing_but_the_attempt() -> Result<()> {
    source_goes_on(
        "full-disk",
        "mkdir -p /var/lib/tideover/images && mount -t tmpfs -o size=1m tmpfs /var/lib/tideover/images",
        "umount -l /var/lib/tideover/images",
        "space",
    )
}
