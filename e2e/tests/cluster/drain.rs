//! Plain `kubectl drain` of a node with a protected pod.

use anyhow::{Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::store::{KEYS, Store};
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};

/// Memory of the ticker whose memory is looked at, MiB.
const MEMORY: u64 = 32;
/// Memory of the ticker whose name must be free first, MiB.
const STAGED: u64 = 256;
/// Pages of it that are looked at in a tick.
const CHECKED: u64 = 128;
/// Memory of the ticker that shares it, MiB.
const SHARED: u64 = 64;

#[test]
fn a_drain_moves_a_store_under_load_and_loses_nothing() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "drain-store")?;
    sandbox.apply(&manifests::policy("store", "store", ""))?;
    let store = Store::start(&sandbox)?;
    let before = store.identity(&store.pod.name)?;
    let user = sandbox.run(&["exec", &store.pod.name, "--", "redis-cli", "CONFIG", "GET", "logfile"])?;
    ensure!(user.contains("/data/redis.log"), "redis logs to a file that stays open: {user}");

    let drained = Drain::of_node(sandbox.kube(), &store.pod.node, &[])?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

    let moved = sandbox.ready_pod("store")?;
    ensure!(moved.node != store.pod.node, "the pod is still on {}", moved.node);
    ensure!(moved.restarts == 0, "the container was restarted {} times", moved.restarts);
    let after = store.identity(&moved.name)?;
    ensure!(after.run_id == before.run_id, "another process runs: {} was {}", after.run_id, before.run_id);
    ensure!(after.uptime >= before.uptime, "the uptime went back from {} to {}", before.uptime, after.uptime);
    ensure!(after.commands > before.commands, "the counters went back");
    ensure!(after.keys >= before.keys && after.keys >= KEYS, "keys: {} before, {} after", before.keys, after.keys);

    store.written_past(store.acknowledged()?)?;
    println!("{}", store.verify()?);
    let volume = format!("/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/data", moved.uid);
    let log = cluster.node(&moved.node)?.exec(["cat", &format!("{volume}/redis.log")])?.stdout;
    let log = String::from_utf8_lossy(&log);
    ensure!(log.matches("Server initialized").count() == 1, "the log moved and shows one start: {log}");
    migration::succeeded(&sandbox, &store.pod.name, LIMIT)?;
    let managed = sandbox.run(&["get", "migrations", "-o", "jsonpath={.items[*].metadata.managedFields}"])?;
    ensure!(managed.trim().is_empty(), "the API server keeps who set which field of the Migration: {managed}");
    sandbox.passed()
}

#[test]
fn a_drain_moves_a_pod_that_nothing_owns_under_the_same_name() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "drain-bare")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("bare", "bare", ""))?;
    let ticker = Ticker { mib: 16, collector: collector.address() };
    sandbox.apply(&manifests::with_init_container(&ticker.pod("bare")))?;
    let before = sandbox.ready_pod("bare")?;
    let ticks = until("ticks", LIMIT, || Ok(Some(collector.account().newest).filter(|&newest| newest > 100)))?;

    // Without --force kubectl drains no node that has a pod without a controller.
    let drained = Drain::of_node(sandbox.kube(), &before.node, &["--force"])?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

    let after = sandbox.ready_pod("bare")?;
    ensure!(after.name == before.name && after.uid != before.uid, "same name, another object");
    ensure!(after.node != before.node, "the pod is still on {}", after.node);
    let account = until("ticks from the new node", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.senders.len() > 1 && account.newest > ticks + 100))
    })?;
    // A rehearsal that ran would count on from the cut, and one that started cold would begin anew.
    ensure!(account.starts.len() == 1, "the program started {} times", account.starts.len());
    ensure!(account.repeated == 0, "{} ticks came twice: two copies ran", account.repeated);
    ensure!(account.senders.len() == 2, "ticks came from {:?}", account.senders);
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    ensure!(migration::went_through(&moved, "Rehearsing"), "the restore was not rehearsed: {}", moved["status"]);
    let paused = moved["status"]["source"]["timings"]["cutMillis"].as_f64().unwrap_or_default();
    ensure!(paused > 0.0, "no cut was taken for the rehearsal: {}", moved["status"]["source"]);
    println!("paused for the cut: {paused:.1} ms");
    let pods = sandbox.get(&["pods"])?.unwrap_or_default();
    ensure!(pods["items"].as_array().is_some_and(|pods| pods.len() == 1), "more than the pod is left: {pods}");
    sandbox.passed()
}

#[test]
fn the_memory_of_a_pod_that_nothing_owns_crosses_before_its_freeze_and_comes_back_whole() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "drain-bare-memory")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("bare", "bare", ""))?;
    let ticker = Ticker { mib: STAGED as usize, collector: collector.address() };
    sandbox.apply(&manifests::with_checked_pages(&ticker.pod("bare"), CHECKED))?;
    let before = sandbox.ready_pod("bare")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 500)))?;

    let drained = Drain::of_node(sandbox.kube(), &before.node, &["--force"])?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

    // It ends itself at the first page that is not what it was, so by then it has seen each of them again.
    let (moved_at, all) = (collector.account().newest, STAGED * 256 / CHECKED + 200);
    let account = until("it to look at all of its memory", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.newest > moved_at + all))
    })?;
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    let (source, target) = (&moved["status"]["source"], &moved["status"]["target"]);
    ensure!(source["engine"] == "WriteProtect", "memory was copied in the freeze: {}", source["notes"]);
    let (sent, in_freeze) = (source["preCopied"]["bytes"].as_u64(), source["timings"]["bytes"].as_u64());
    ensure!(
        sent > Some(STAGED << 20) && in_freeze < Some(STAGED << 16),
        "{sent:?} bytes before, {in_freeze:?} in the freeze"
    );
    println!("in the freeze {in_freeze:?} bytes, before it {sent:?}: {} {}", source["timings"], target["timings"]);
    sandbox.passed()
}

#[test]
fn memory_clock_files_and_output_go_on_after_the_move() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "drain-ticker")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", ""))?;
    let ticker = Ticker { mib: MEMORY as usize, collector: collector.address() };
    // kubelet runs this in the replacement too, before it creates the container that the state goes into.
    let manifest = manifests::with_checked_memory(&ticker.deployment("ticker"));
    sandbox.apply(&manifests::with_init_container(&manifest))?;
    let before = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 1_500)))?;

    let drained = Drain::of_node(sandbox.kube(), &before.node, &[])?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

    let after = sandbox.ready_pod("ticker")?;
    let account = collector.goes_on(2_000)?;
    ensure!(account.monotonic_back == 0, "CLOCK_MONOTONIC went back by {} ns", account.monotonic_back);
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    let source = &moved["status"]["source"];
    ensure!(source["engine"] == "WriteProtect", "memory was copied in the freeze: {}", source["notes"]);
    let rounds = source["rounds"].as_array().cloned().unwrap_or_default();
    ensure!(rounds.len() > 1, "rounds before the freeze: {rounds:?}");
    let (sent, in_freeze) = (rounds[0]["bytes"].as_u64(), source["timings"]["bytes"].as_u64());
    ensure!(
        sent > Some(MEMORY << 20) && in_freeze < Some(MEMORY << 19),
        "{sent:?} bytes before, {in_freeze:?} in the freeze"
    );
    let log = sandbox.log(&after.name)?;
    let (first, last) = (log.lines().next().unwrap_or_default(), log.lines().last().unwrap_or_default());
    ensure!(
        log.lines().count() >= 1 && last.starts_with("tick "),
        "output goes on in the new pod's log: {first} .. {last}"
    );
    ensure!(!log.contains("start "), "the output before the move is not repeated: {first}");
    sandbox.passed()
}

#[test]
fn shared_memory_crosses_before_the_freeze_and_comes_back_whole() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "drain-shared")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", ""))?;
    let ticker = Ticker { mib: SHARED as usize, collector: collector.address() };
    let manifest = manifests::with_checked_memory(&ticker.deployment("ticker"));
    sandbox.apply(&manifests::with_shared_memory(&manifest))?;
    let before = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 1_500)))?;

    let drained = Drain::of_node(sandbox.kube(), &before.node, &[])?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

    // It looks at 32 pages a tick and ends itself, so by then it has seen each of them again.
    let (moved_at, all) = (collector.account().newest, SHARED * 256 / 32 + 500);
    let account = until("it to look at all of its memory", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.newest > moved_at + all))
    })?;
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    let source = &moved["status"]["source"];
    ensure!(source["engine"] == "WriteProtect", "memory was copied in the freeze: {}", source["notes"]);
    let timings = &source["timings"];
    let (left_out, in_freeze) = (timings["sharedBytes"].as_u64(), timings["bytes"].as_u64());
    ensure!(
        left_out >= Some(SHARED << 20) && in_freeze < Some(SHARED << 19),
        "{left_out:?} bytes of shared memory were left out of the dump, {in_freeze:?} were sent in the freeze"
    );
    println!("shared memory of {SHARED} MiB: {timings}");
    sandbox.passed()
}
