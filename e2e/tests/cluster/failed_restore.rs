//! Targets that can't run what they are given: the source goes on with its state, and somebody says why.

use anyhow::{Result, bail, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::flip::{self, Flip, Flipper};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};
use serde_json::Value;

/// Moves in which a bit may be flipped too late, before the test gives up.
const TRIES: usize = 5;

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

/// Moves a ticker while every target is changed, and sees that it stays. Returns the Migration.
fn source_goes_on(
    name: &str,
    ticker: impl FnOnce(Ticker) -> String,
    change: &str,
    undo: &'static str,
    words: &str,
) -> Result<Value> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), name)?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 2, retryDelay: 1s}\n"))?;
    sandbox.apply(&ticker(Ticker { mib: 8, collector: collector.address() }))?;
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

    goes_on(&sandbox, &collector, &pod)?;
    sandbox.passed()?;
    Ok(ended)
}

/// The ticker is the one that it was, with its state, and there is no other.
fn goes_on(sandbox: &Sandbox, collector: &Collector, pod: &Pod) -> Result<()> {
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.uid == pod.uid && after.restarts == 0, "another pod, or a restart");
    collector.goes_on(500)?;
    until(
        "one pod to be left",
        LIMIT,
        || Ok(Some(()).filter(|()| sandbox.pods("ticker").is_ok_and(|it| it.len() == 1))),
    )
}

fn deployment(ticker: Ticker) -> String {
    ticker.deployment("ticker")
}

#[test]
fn a_missing_file_on_the_target_is_named_and_the_source_goes_on() -> Result<()> {
    source_goes_on("missing-file", deployment, PROGRAM_AWAY, PROGRAM_BACK, "probe").map(drop)
}

#[test]
fn a_bare_pod_whose_rehearsal_fails_is_not_touched() -> Result<()> {
    let bare = |ticker: Ticker| ticker.pod("ticker");
    let ended = source_goes_on("failed-rehearsal", bare, PROGRAM_AWAY, PROGRAM_BACK, "probe")?;
    ensure!(migration::message(&ended).contains("in the rehearsal"), "it failed elsewhere: {}", ended["status"]);
    ensure!(!migration::went_through(&ended, "Freezing"), "the go was given after a bad rehearsal");
    Ok(())
}

#[test]
fn another_cpu_feature_set_is_refused_before_the_freeze() -> Result<()> {
    source_goes_on(
        "cpu-features",
        deployment,
        "sed 's/ sse4_2 / /' /proc/cpuinfo > /run/cpuinfo && mount --bind /run/cpuinfo /proc/cpuinfo",
        "umount /proc/cpuinfo && rm /run/cpuinfo",
        "sse4_2",
    )
    .map(drop)
}

#[test]
fn a_full_disk_on_the_target_costs_nothing_but_the_attempt() -> Result<()> {
    source_goes_on(
        "full-disk",
        deployment,
        "mkdir -p /var/lib/tideover/images && mount -t tmpfs -o size=1m tmpfs /var/lib/tideover/images",
        "umount -l /var/lib/tideover/images",
        "space",
    )
    .map(drop)
}

/// A bit of the ticker's memory changes on the target's disk while it lands there, in a move whose ticker is `manifest`.
fn a_flipped_bit_is_named(name: &str, manifest: impl Fn(Ticker) -> String) -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), name)?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 1}\n"))?;
    sandbox.apply(&manifest(Ticker { mib: 96, collector: collector.address() }))?;
    for number in 1..=TRIES {
        let pod = sandbox.ready_pod("ticker")?;
        let ticks = collector.account().newest;
        until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > ticks + 100)))?;
        let others = cluster.workers().into_iter().filter(|node| *node != pod.node);
        let flipper =
            Flipper::start(others.map(|node| Ok(cluster.node(&node)?.path(flip::IMAGES)?)).collect::<Result<_>>()?);
        let drained = Drain::start(sandbox.kube(), &pod.node, "app=ticker")?.finish(LIMIT);
        let flipped = flipper.finish()?;
        let (drained, ended) = (drained?, migration::ended(&sandbox, &pod.name, LIMIT)?);
        if ended["status"]["phase"] == "Succeeded" {
            let early = flipped.as_ref().is_some_and(|flip| flip.while_landing);
            ensure!(!early, "a program with another memory than it had was restored: {flipped:?}");
            println!("move {number}: the bit was flipped too late, or not at all: {flipped:?}");
            sandbox.kube().run(&["uncordon", &pod.node])?;
            continue;
        }
        let said = "is corrupted on the target's disk";
        ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
        let message = migration::message(&ended);
        ensure!(message.contains("images/pages-") && message.contains(said), "not the reason: {message}");
        let reason = &ended["status"]["failures"][0]["reason"];
        ensure!(reason == "Corrupted", "the reason is {reason}");
        ensure!(drained.code != Some(0) && drained.said.contains(said), "the drain does not say why: {}", drained.said);
        goes_on(&sandbox, &collector, &pod)?;
        return sandbox.passed();
    }
    bail!("no bit was flipped in time in {TRIES} moves")
}

#[test]
fn a_bit_that_changes_on_the_targets_disk_is_noticed_before_the_restore() -> Result<()> {
    // What crosses before the freeze is not among CRIU's images, and the rest would land in a moment.
    a_flipped_bit_is_named("flipped", |ticker| manifests::with_scattered_memory(&ticker.deployment("ticker")))
}

#[test]
fn a_bit_that_changes_on_the_targets_disk_is_noticed_before_the_only_copy_is_committed() -> Result<()> {
    a_flipped_bit_is_named("flipped-bare", |ticker| manifests::with_scattered_memory(&ticker.pod("ticker")))
}

#[test]
fn a_bit_that_changes_after_the_commit_keeps_the_state_until_it_is_mended() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "flipped-late")?;
    let collector = Collector::listen(cluster.host_address())?;
    let ticker = Ticker { mib: 96, collector: collector.address() };
    sandbox.apply(&manifests::with_scattered_memory(&ticker.pod("ticker")))?;
    for number in 1..=TRIES {
        let pod = sandbox.ready_pod("ticker")?;
        let ticks = collector.account().newest;
        until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > ticks + 100)))?;
        let name = format!("move-{number}");
        sandbox.create(&migration::manifest(&name, "ticker"))?;
        let status =
            || Ok::<_, anyhow::Error>(sandbox.get(&["migration", &name])?.unwrap_or_default()["status"].take());
        let target = until("the commit", LIMIT, || {
            Ok(status()?["owner"]["node"].as_str().filter(|owner| *owner != pod.node).map(ToOwned::to_owned))
        })?;
        let flipped = Flip::of_pages(&cluster.node(&target)?.path(flip::IMAGES)?)?;
        let newest = collector.account().newest;
        let refused = until("the restore to be refused or done", LIMIT, || {
            let status = status()?;
            let refused = status["target"]["failure"]["reason"] == "Corrupted";
            Ok(Some(refused).filter(|_| refused || status["phase"] == "Succeeded"))
        })?;
        let Some(flipped) = flipped.filter(|_| refused) else {
            println!("move {number}: the bit was flipped too late");
            continue;
        };
        ensure!(collector.account().newest == newest, "the program runs on with another memory than it had");
        flipped.undo()?;
        migration::succeeded(&sandbox, "ticker", LIMIT)?;
        let account = until("the ticker to go on", LIMIT, || {
            Ok(Some(collector.account()).filter(|account| account.newest > newest + 500))
        })?;
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        return sandbox.passed();
    }
    bail!("no bit was flipped in time in {TRIES} moves")
}
