//! A program that writes its memory faster than it can be copied: what the policy says happens, and nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::scenario::cpu_limits::{self, Quotas};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::{Cluster, Collector, Sandbox, migration, until};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
/// The Migration of every scenario.
const MOVE: &str = "move";
/// More than one thread can use, so that it limits nothing and is there to be kept.
const CPUS: &str = "1500m";

/// A program that writes all the time, protected by a policy, and a move of it.
struct Busy {
    sandbox: Sandbox,
    collector: Collector,
    pod: Pod,
    /// Before the move.
    quotas: Quotas,
    cluster: &'static Cluster,
}

impl Busy {
    /// `policy` is what the policy says of migration; at each tick `pages` of `mib` MiB are written.
    fn start(name: &str, policy: &str, mib: usize, pages: usize, cpus: &str) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let collector = Collector::listen(cluster.host_address())?;
        sandbox.apply(&manifests::policy("busy", "busy", &format!("  migration: {policy}\n")))?;
        let ticker = Ticker { mib, collector: collector.address() }.deployment("busy");
        sandbox.apply(&manifests::with_cpu_limit(&manifests::with_written_memory(&ticker, pages), cpus))?;
        let pod = sandbox.ready_pod("busy")?;
        until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 20)))?;
        let quotas = cpu_limits::quotas(cluster, &pod)?;
        ensure!(quotas.are_set(), "the container or its pod has no quota: {quotas:?}");
        Ok(Self { sandbox, collector, pod, quotas, cluster })
    }

    /// Moves it and returns the Migration at its end.
    fn moved(&self) -> Result<Value> {
        self.sandbox.create(&migration::manifest(MOVE, &self.pod.name))?;
        migration::ended(&self.sandbox, &self.pod.name, LIMIT)
    }

    /// It counts on, in one copy that was started once.
    fn counts_on(&self) -> Result<()> {
        let seen = self.collector.account().newest;
        let account = until("more ticks", LIMIT, || {
            Ok(Some(self.collector.account()).filter(|account| account.newest > seen + 20))
        })?;
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        Ok(())
    }

    /// It runs on another node, under the limits that it had.
    fn runs_elsewhere_as_before(&self) -> Result<()> {
        let after = self.sandbox.ready_pod("busy")?;
        ensure!(after.node != self.pod.node, "the pod is still on {}", after.node);
        self.counts_on()?;
        let quotas = cpu_limits::quotas(self.cluster, &after)?;
        ensure!(quotas == self.quotas, "quotas were {:?} and are {quotas:?}", self.quotas);
        Ok(())
    }
}

fn says(migration: &Value, words: &str) -> bool {
    let notes = migration["status"]["source"]["notes"].as_array().into_iter().flatten();
    notes.filter_map(Value::as_str).any(|note| note.contains(words))
}

#[test]
fn a_move_that_does_not_converge_is_given_up_and_the_source_runs_on_as_before() -> Result<()> {
    let policy =
        "{maxDowntime: 10ms, maxAttempts: 1, preCopy: {onNonConvergence: GiveUp, autoConverge: true, maxRounds: 60}}";
    // Every page at every tick: each round sends all of it.
    let busy = Busy::start("converge-give-up", policy, 48, 48 << 8, CPUS)?;
    let ended = busy.moved()?;
    let status = &ended["status"];
    ensure!(status["phase"] == "Failed", "the move is {}: {}", status["phase"], migration::message(&ended));
    ensure!(status["failures"][0]["reason"] == "NotConverging", "{}", status["failures"]);
    let sentence = status["failures"][0]["message"].as_str().unwrap_or_default();
    ensure!(sentence.contains("10 ms are allowed"), "the sentence does not say what was allowed: {sentence}");
    ensure!(!migration::went_through(&ended, "Handover"), "a replacement was made: {}", status["phases"]);
    ensure!(status["source"]["timings"].is_null(), "the pod was frozen: {}", status["source"]);
    ensure!(says(&ended, "slowed down"), "it was not slowed down first: {}", status["source"]["notes"]);
    let pod = busy.sandbox.ready_pod("busy")?;
    ensure!(pod.uid == busy.pod.uid && pod.restarts == 0, "another pod runs: {pod:?}");
    busy.counts_on()?;
    let quotas = cpu_limits::quotas(busy.cluster, &pod)?;
    ensure!(quotas == busy.quotas, "quotas were {:?} and are {quotas:?}", busy.quotas);
    busy.sandbox.passed()
}

#[test]
fn a_move_that_does_not_converge_proceeds_where_the_policy_says_so() -> Result<()> {
    let policy = "{maxDowntime: 10ms, preCopy: {onNonConvergence: Proceed}}";
    let busy = Busy::start("converge-proceed", policy, 48, 48 << 8, CPUS)?;
    let ended = busy.moved()?;
    ensure!(ended["status"]["phase"] == "Succeeded", "{}", migration::message(&ended));
    ensure!(says(&ended, "the freeze may take"), "nothing says that it is longer: {}", ended["status"]["source"]);
    busy.runs_elsewhere_as_before()?;
    busy.sandbox.passed()
}

#[test]
fn a_container_that_may_be_slowed_down_converges_and_has_its_cpu_time_afterwards() -> Result<()> {
    let policy =
        "{maxDowntime: 400ms, maxAttempts: 1, preCopy: {onNonConvergence: GiveUp, autoConverge: true, maxRounds: 60}}";
    // About a gigabyte a second, each page not soon again: with less cpu time fewer pages are written during a round.
    let busy = Busy::start("converge-auto", policy, 256, 400, CPUS)?;
    let ended = busy.moved()?;
    ensure!(ended["status"]["phase"] == "Succeeded", "{}", migration::message(&ended));
    let convergence = &ended["status"]["source"]["convergence"];
    let percent = convergence["cpuPercent"].as_u64();
    ensure!(percent.is_some_and(|percent| percent < 100), "it was not slowed down: {convergence}");
    let predicted = convergence["predictedFreezeMillis"].as_f64().context("nothing was predicted")?;
    let freeze = ended["status"]["source"]["timings"]["freezeMillis"].as_f64().context("no freeze")?;
    println!("{percent:?} % of its cpu time, {predicted:.0} ms predicted, {freeze:.0} ms frozen");
    busy.runs_elsewhere_as_before()?;
    busy.sandbox.passed()
}

#[test]
fn a_small_cpu_limit_is_the_same_after_the_move() -> Result<()> {
    let busy = Busy::start("small-cpu-limit", "{maxAttempts: 1}", 16, 0, "100m")?;
    let ended = busy.moved()?;
    ensure!(ended["status"]["phase"] == "Succeeded", "{}", migration::message(&ended));
    let timings = [&ended["status"]["source"]["timings"], &ended["status"]["target"]["timings"]];
    println!("dump {} ms, restore {} ms", timings[0]["dumpMillis"], timings[1]["restoreMillis"]);
    busy.runs_elsewhere_as_before()?;
    busy.sandbox.passed()
}
