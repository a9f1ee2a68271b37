//! Pods with several containers: all of them move at one cut, or none does.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::manifests::{self, Second, Ticker};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::wait::until_true;
use e2e::scenario::{Cluster, Collector, Sandbox, migration, remains, until};

use super::failed_restore::{Changed, PROGRAM_AWAY, PROGRAM_BACK};
use super::rolled_back::{settled, unchanged};

const LIMIT: Duration = Duration::from_secs(180);

/// Two tickers in one pod, each with a collector.
struct Pair {
    cluster: &'static Cluster,
    sandbox: Sandbox,
    collectors: [Collector; 2],
    pod: Pod,
}

impl Pair {
    fn start(name: &str, policy: &str, second: Second) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let collectors = [Collector::listen(cluster.host_address())?, Collector::listen(cluster.host_address())?];
        sandbox.apply(&manifests::policy("pair", "pair", policy))?;
        let [ticker, beside] = [(24, &collectors[0]), (8, &collectors[1])]
            .map(|(mib, collector)| Ticker { mib, collector: collector.address() });
        sandbox.apply(&manifests::pair("pair", ticker, beside, second))?;
        let pod = sandbox.ready_pod("pair")?;
        let pair = Self { cluster, sandbox, collectors, pod };
        pair.go_on(2_000)?;
        Ok(pair)
    }

    /// Waits until each ticker has done so many ticks more, and sees that it is the one that it was.
    fn go_on(&self, ticks: u64) -> Result<()> {
        for collector in &self.collectors {
            let before = collector.account().newest;
            until_true("ticks of both", LIMIT, || Ok(collector.account().newest > before + ticks))?;
            let account = collector.account();
            // A cut that was not one for both makes one see the other's count go back, end itself, and start again.
            ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        }
        Ok(())
    }

    fn moves_by_drain(self) -> Result<()> {
        let drained = Drain::of_node(self.sandbox.kube(), &self.pod.node, &[])?.finish(LIMIT)?;
        ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);
        let after = self.sandbox.ready_pod("pair")?;
        ensure!(after.node != self.pod.node && after.restarts == 0, "{:?}, then {after:?}", self.pod);
        self.go_on(2_000)?;
        for collector in &self.collectors {
            let account = collector.account();
            ensure!(account.senders.len() == 2, "ticks came from {:?}", account.senders);
            ensure!(account.monotonic_back == 0, "CLOCK_MONOTONIC went back by {} ns", account.monotonic_back);
        }
        let moved = migration::succeeded(&self.sandbox, &self.pod.name, LIMIT)?;
        let containers = &moved["status"]["containers"];
        ensure!(*containers == serde_json::json!(["beside", "ticker"]), "these moved: {containers}");
        println!("frozen: {}", moved["status"]["source"]["timings"]);
        let again = self.moves_again(&after)?;
        self.ends_with_its_containers(&again)?;
        remains::are_gone(self.cluster, LIMIT)?;
        self.sandbox.passed()
    }

    /// What was restored below a stand-in is frozen, dumped and ended like any other.
    fn moves_again(&self, before: &Pod) -> Result<Pod> {
        self.sandbox.create(&migration::manifest("again", &before.name))?;
        migration::succeeded(&self.sandbox, &before.name, LIMIT)?;
        let after = self.sandbox.ready_pod("pair")?;
        ensure!(after.node != before.node && after.restarts == 0, "{before:?}, then {after:?}");
        self.go_on(2_000)?;
        Ok(after)
    }

    /// containerd knows the container that was created first by a process that only stands in its place: its end must be seen, its
    /// programs must be reached, and a restart must be like any other.
    fn ends_with_its_containers(&self, pod: &Pod) -> Result<()> {
        let inside = self.sandbox.run(&["exec", &pod.name, "-c", "beside", "--", "/probe", "--help"])?;
        ensure!(inside.contains("tick"), "another program was reached: {inside}");
        let node = self.cluster.node(&pod.node)?;
        node.exec(["/bin/sh", "-ec", "pkill -KILL -f -- '[-]-ours=/shared/beside'"])?;
        let starts = || self.collectors[1].account().starts.len();
        until_true("the container to be started again", LIMIT, || Ok(starts() > 1))?;
        Ok(())
    }
}

#[test]
fn two_containers_go_on_at_one_cut_where_a_drain_moves_their_pod() -> Result<()> {
    Pair::start("several", "", Second::Container)?.moves_by_drain()
}

#[test]
fn a_sidecar_goes_on_at_one_cut_with_the_container_that_it_is_beside() -> Result<()> {
    Pair::start("sidecar", "", Second::Sidecar)?.moves_by_drain()
}

#[test]
fn an_attempt_that_is_rolled_back_leaves_both_containers_running() -> Result<()> {
    let pair = Pair::start("several-back", "  migration: {maxAttempts: 1}\n", Second::Container)?;
    let insides = settled(&pair.pod)?;
    let changed = Changed::new(pair.cluster, &pair.pod.node, PROGRAM_AWAY, PROGRAM_BACK)?;
    pair.sandbox.create(&migration::manifest("move", &pair.pod.name))?;
    let ended = migration::ended(&pair.sandbox, &pair.pod.name, LIMIT)?;
    drop(changed);
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let message = migration::message(&ended);
    ensure!(message.contains("container ") && message.contains("probe"), "the container is not named: {message}");
    let timings = &ended["status"]["source"]["timings"];
    ensure!(timings["freezeMillis"].as_f64() > Some(0.0), "it was never frozen: {}", ended["status"]["source"]);
    let after = pair.sandbox.ready_pod("pair")?;
    ensure!(after.uid == pair.pod.uid && after.restarts == 0, "{:?}, then {after:?}", pair.pod);
    unchanged(&pair.pod, &insides)?;
    pair.go_on(2_000)?;
    until("one pod to be left", LIMIT, || {
        Ok(Some(()).filter(|()| pair.sandbox.pods("pair").is_ok_and(|pods| pods.len() == 1)))
    })?;
    remains::are_gone(pair.cluster, LIMIT)?;
    until_true(
        "nobody to stand in for a container",
        LIMIT,
        || Ok(remains::processes(pair.cluster, "criu-shim")? == 0),
    )?;
    pair.sandbox.passed()
}
