//! `kill -9` of the page daemon: before the commit it costs the attempt, after it the application's memory, and never is memory
//! that is missing taken for zeros.

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::sandbox::Pod;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::victim::Victim;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains, until};
use serde_json::Value;

/// Memory of the program, MiB: it takes a second or so to be brought.
const MEMORY: usize = 2048;
/// Pages of it that the program looks at in each tick: so many that it comes across missing ones before the agent has seen that
/// the daemon is gone.
const LOOKED_AT: u64 = 2_000;
/// Moves that may be over before the daemon was killed in time.
const TRIES: usize = 6;

/// A program with much memory, of which it looks at every page.
struct Large {
    cluster: &'static Cluster,
    sandbox: Sandbox,
    collector: Collector,
    watch: Watch,
}

impl Large {
    fn start(name: &str) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let collector = Collector::listen(cluster.host_address())?;
        let watch = Watch::start(&sandbox)?;
        sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 1}\n"))?;
        let deployment = Ticker { mib: MEMORY, collector: collector.address() }.deployment("ticker");
        sandbox.apply(&manifests::with_checked_pages(&deployment, LOOKED_AT))?;
        sandbox.ready_pod("ticker")?;
        until_true("ticks", LIMIT, || Ok(collector.account().newest > 100))?;
        Ok(Self { cluster, sandbox, collector, watch })
    }

    /// Begins a move, and finds its page daemon, which is started before anything is frozen; nothing where that was over too soon.
    fn under_way<'a>(&'a self, name: &'a str, pod: &Pod) -> Result<(UnderWay<'a>, Option<Victim>)> {
        let mut under_way = UnderWay::begin(self.cluster, &self.sandbox, &self.watch, name, &pod.name)?;
        let daemon = under_way.seen_in(Moment::Handover, |object| {
            self.cluster.page_daemon(object["status"]["targetNode"].as_str()?).ok()
        })?;
        Ok((under_way, daemon))
    }

    /// Ends the page daemon of a move before its freeze. Returns the pod and the Migration at its end.
    fn struck_before_the_commit(&self) -> Result<(Pod, Value)> {
        for number in 1..=TRIES {
            let (pod, name) = (self.sandbox.ready_pod("ticker")?, format!("move-{number}"));
            let killed = self.under_way(&name, &pod)?.1.map(|daemon| daemon.kill()).transpose()?;
            let ended = migration::ended(&self.sandbox, &pod.name, LIMIT)?;
            if killed == Some(true) {
                return Ok((pod, ended));
            }
            println!("{name}: no page daemon was found before the freeze");
        }
        bail!("in {TRIES} moves no page daemon was found before the freeze")
    }

    /// Ends the page daemon of one move as soon as the program runs on the target and the daemon is seen to bring memory: before
    /// that, CRIU's restore would fail for it, and be tried again. Says whether that was early enough for the program to be ended.
    fn strike_after_the_commit(&self, name: &str, pod: &Pod) -> Result<bool> {
        let (mut under_way, daemon) = self.under_way(name, pod)?;
        let runs = || self.collector.account().senders.last().is_some_and(|newest| newest.to_string() != pod.ip);
        let killed = match daemon {
            Some(daemon) => under_way.seen_in(Moment::Bringing, |_| runs().then(|| daemon.kill()))?.transpose()?,
            None => None,
        };
        migration::succeeded(&self.sandbox, &pod.name, LIMIT)?;
        let (ticks, pages) = (self.collector.account().ticks, (MEMORY as u64) << 8);
        let cold = until("a cold start, or a look at all memory", LIMIT, || {
            let account = self.collector.account();
            let whole = account.ticks > ticks + pages / LOOKED_AT + 500;
            Ok((account.starts.len() == 2).then_some(true).or(whole.then_some(false)))
        })?;
        ensure!(!cold || killed == Some(true), "it was started cold, and nothing was killed");
        Ok(cold)
    }

    /// Waits until the Migration and the Events of the pod say that the state is lost.
    fn is_told(&self, name: &str, pod: &Pod) -> Result<()> {
        let about = format!("reason=StateLost,involvedObject.kind=Pod,involvedObject.uid={}", pod.uid);
        until_true("the Migration to say that the state is lost", LIMIT, || {
            let object = self.sandbox.get(&["migration", name])?.context("the Migration is gone")?;
            let conditions = object["status"]["conditions"].as_array();
            let told = conditions.into_iter().flatten().find(|one| one["type"] == "StateLost");
            Ok(told.is_some_and(|told| told["status"] == "True") && object["status"]["phase"] == "Succeeded")
        })?;
        until_true("an Event of the pod that says so", LIMIT, || {
            Ok(!self.sandbox.run(&["get", "events", "--field-selector", &about, "--output", "name"])?.is_empty())
        })
    }
}

#[test]
fn a_page_daemon_that_dies_before_the_commit_costs_the_attempt() -> Result<()> {
    let large = Large::start("page-daemon-early")?;
    let (before, ended) = large.struck_before_the_commit()?;
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let failure = &ended["status"]["failures"][0];
    ensure!(failure["reason"] == "RestoreFailed", "the reason is {failure}");
    println!("{}", failure["message"]);
    let after = large.sandbox.ready_pod("ticker")?;
    ensure!(after.uid == before.uid && after.restarts == 0, "{before:?}, then {after:?}");
    let newest = large.collector.account().newest;
    until_true("the source to go on", LIMIT, || Ok(large.collector.account().newest > newest + 500))?;
    let account = large.collector.account();
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
    remains::are_gone(large.cluster, LIMIT)?;
    large.sandbox.passed()
}

#[test]
fn a_page_daemon_that_dies_while_it_brings_memory_ends_the_container_and_kubelet_starts_it_cold() -> Result<()> {
    let large = Large::start("page-daemon-late")?;
    for number in 1..=TRIES {
        let before = large.sandbox.ready_pod("ticker")?;
        if !large.strike_after_the_commit(&format!("move-{number}"), &before)? {
            println!("move {number}: the page daemon had brought everything before it was killed");
            continue;
        }
        // The program is there before kubelet says so.
        let after = until("kubelet to have started it again", LIMIT, || {
            Ok(large.sandbox.pods("ticker")?.into_iter().find(|pod| pod.ready && pod.restarts > 0))
        })?;
        ensure!(after.node != before.node && after.restarts == 1, "{before:?}, then {after:?}");
        let object = large.sandbox.get(&["pod", &after.name])?.context("no pod")?;
        let last = &object["status"]["containerStatuses"][0]["lastState"]["terminated"];
        // By itself it ends with 1, when a page is not what it was.
        ensure!(last["exitCode"] == 137, "it was not the agent that ended it: {last}");
        large.is_told(&format!("move-{number}"), &after)?;
        let log = large.sandbox.run(&["logs", &after.name, "--previous"])?;
        ensure!(!log.contains("of the memory is"), "it has read what was not there: {log}");
        let ticks = large.collector.account().ticks;
        until_true("the cold copy to go on", LIMIT, || Ok(large.collector.account().ticks > ticks + 500))?;
        let account = large.collector.account();
        ensure!(account.starts.len() == 2 && account.repeated == 0, "{account:?}");
        remains::are_gone(large.cluster, LIMIT)?;
        return large.sandbox.passed();
    }
    bail!("in {TRIES} moves the page daemon was never killed in time")
}
