//! Source and target that lose each other: while memory is copied, in the freeze, and after the commit.

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::{Moment, Signs};
use e2e::scenario::parted::Parted;
use e2e::scenario::sandbox::Pod;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains};
use serde_json::Value;

use super::rolled_back::{settled, unchanged};

/// Memory of the program that is copied before the freeze, MiB: bringing it takes some hundred milliseconds.
const COPIED: usize = 512;
/// Memory of the program whose freeze lasts, MiB.
const FROZEN: usize = 256;
/// Moves that may be past a moment before the link is cut.
const TRIES: usize = 5;

struct Pair {
    cluster: &'static Cluster,
    sandbox: Sandbox,
    collector: Collector,
    watch: Watch,
}

impl Pair {
    fn start(name: &str, policy: &str, deployment: impl FnOnce(&Collector) -> String) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let collector = Collector::listen(cluster.host_address())?;
        let watch = Watch::start(&sandbox)?;
        sandbox.apply(&manifests::policy("ticker", "ticker", policy))?;
        sandbox.apply(&deployment(&collector))?;
        sandbox.ready_pod("ticker")?;
        until_true("ticks", LIMIT, || Ok(collector.account().newest > 100))?;
        Ok(Self { cluster, sandbox, collector, watch })
    }

    /// Begins a move, and parts its nodes at `moment`; nothing where that was over before. The link stays cut until the move
    /// has ended, whatever its end is. Says whether the move was still in the moment once the link was cut.
    fn parted_at(&self, name: &str, pod: &Pod, moment: Moment) -> Result<(Value, bool)> {
        let mut under_way = UnderWay::begin(self.cluster, &self.sandbox, &self.watch, name, &pod.name)?;
        let parted = under_way.seen_in(moment, |object| {
            let target = object["status"]["targetNode"].as_str()?;
            Some(Parted::new(self.cluster, &pod.node, target))
        })?;
        let disks = under_way.signs().disks;
        let parted = parted.transpose()?;
        let later = self.sandbox.get(&["migration", name])?.context("the Migration is gone")?;
        let in_time = parted.is_some() && moment.holds(&Signs { disks, ..Signs::of(&later) });
        let ended = migration::ended(&self.sandbox, &pod.name, LIMIT)?;
        println!("{moment:?}: {} {}", ended["status"]["phase"], migration::message(&ended));
        drop(parted);
        Ok((ended, in_time))
    }

    /// The pod is the one that it was, and its program goes on.
    fn goes_on(&self, before: &Pod) -> Result<()> {
        let after = self.sandbox.ready_pod("ticker")?;
        ensure!(after.uid == before.uid && after.restarts == 0, "{before:?}, then {after:?}");
        self.one_copy()
    }

    fn one_copy(&self) -> Result<()> {
        let newest = self.collector.account().newest;
        until_true("the ticker to go on", LIMIT, || Ok(self.collector.account().newest > newest + 500))?;
        let account = self.collector.account();
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        Ok(())
    }
}

#[test]
fn a_link_that_is_cut_costs_an_attempt_before_the_commit_and_nothing_after_it() -> Result<()> {
    let slowly = "  migration: {maxAttempts: 1, preCopy: {bandwidthLimit: 16Mi}}\n";
    let pair = Pair::start("link", slowly, |collector| {
        let deployment = Ticker { mib: COPIED, collector: collector.address() }.deployment("ticker");
        manifests::with_checked_memory(&deployment)
    })?;
    let before = pair.sandbox.ready_pod("ticker")?;
    pair.collector.take_gap();
    let (ended, in_time) = pair.parted_at("in-a-round", &before, Moment::Copying)?;
    ensure!(in_time, "the round was over before the link was cut");
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let reason = &ended["status"]["failures"][0]["reason"];
    ensure!(reason == "TransferFailed" || reason == "AgentUnreachable", "{}", ended["status"]["failures"]);
    ensure!(ended["status"]["source"]["timings"].is_null(), "it was frozen: {}", ended["status"]["source"]);
    pair.goes_on(&before)?;
    println!("longest gap beside the failed round: {:?}", pair.collector.take_gap().length);
    remains::are_gone(pair.cluster, LIMIT)?;

    pair.sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 1}\n"))?;
    for number in 1..=TRIES {
        let before = pair.sandbox.ready_pod("ticker")?;
        let (ended, in_time) = pair.parted_at(&format!("after-commit-{number}"), &before, Moment::Bringing)?;
        ensure!(ended["status"]["phase"] == "Succeeded", "the move is {}", ended["status"]["phase"]);
        let after = pair.sandbox.ready_pod("ticker")?;
        ensure!(after.node != before.node && after.restarts == 0, "{before:?}, then {after:?}");
        // By then it has looked at each page of its memory.
        let (ticks, pages) = (pair.collector.account().ticks, (COPIED as u64) << 8);
        until_true("it to look at all of its memory", LIMIT, || {
            Ok(pair.collector.account().ticks > ticks + pages / 32 + 500)
        })?;
        pair.one_copy()?;
        if in_time {
            remains::are_gone(pair.cluster, LIMIT)?;
            return pair.sandbox.passed();
        }
    }
    bail!("in {TRIES} moves the link was never cut while memory was brought")
}

#[test]
fn a_link_that_is_cut_in_the_freeze_leaves_the_source_as_it_was() -> Result<()> {
    let pair = Pair::start("link-freeze", "  migration: {maxAttempts: 1}\n", |collector| {
        let deployment = Ticker { mib: FROZEN, collector: collector.address() }.deployment("ticker");
        manifests::with_scattered_memory(&deployment)
    })?;
    for number in 1..=TRIES {
        let before = pair.sandbox.ready_pod("ticker")?;
        let insides = settled(&before)?;
        pair.collector.take_gap();
        let (ended, in_time) = pair.parted_at(&format!("move-{number}"), &before, Moment::Transferring)?;
        if !in_time {
            pair.one_copy()?;
            continue;
        }
        ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
        let reason = &ended["status"]["failures"][0]["reason"];
        ensure!(reason == "TransferFailed" || reason == "AgentUnreachable", "{}", ended["status"]["failures"]);
        pair.goes_on(&before)?;
        ensure!(!ended["status"]["source"]["timings"].is_null(), "it was not frozen: {}", ended["status"]["source"]);
        println!("it stood still for {:?}", pair.collector.take_gap().length);
        unchanged(&before, &insides)?;
        remains::are_gone(pair.cluster, LIMIT)?;
        return pair.sandbox.passed();
    }
    bail!("in {TRIES} moves the link was never cut while the state crossed")
}
