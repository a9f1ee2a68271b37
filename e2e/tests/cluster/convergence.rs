//! A program that writes its memory faster than it can be copied: what the policy says happens, and nothing else.

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::cpu_limits::{self, Quotas};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};
use serde_json::Value;

/// The Migration of every scenario.
const MOVE: &str = "move";
/// More than one thread can use, so that it limits nothing and is there to be kept.
const CPUS: &str = "1500m";
/// Shorter than any freeze: no machine converges.
const NEVER: &str = "1ms";
/// Memory of a program that takes much longer to cross than a freeze takes beside it, MiB.
const MUCH: usize = 512;
/// Moves in which the machine may be slower than it was just before.
const TRIES: usize = 4;

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
        rule(&sandbox, policy)?;
        let ticker = Ticker { mib, collector: collector.address() }.deployment("busy");
        let ticker = manifests::with_cpu_limit(&manifests::with_written_memory(&ticker, pages), cpus);
        // Those that copy its memory must not keep it from writing.
        sandbox.apply(&manifests::with_cpu_request(&ticker, cpus))?;
        let pod = sandbox.ready_pod("busy")?;
        until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 20)))?;
        let quotas = cpu_limits::quotas(cluster, &pod)?;
        ensure!(quotas.are_set(), "the container or its pod has no quota: {quotas:?}");
        Ok(Self { sandbox, collector, pod, quotas, cluster })
    }

    /// Moves it by the Migration `name`, and returns that at its end.
    fn moved(&self, name: &str) -> Result<Value> {
        self.sandbox.create(&migration::manifest(name, &self.pod.name))?;
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
        cpu_limits::become_as_before(self.cluster, &after, &self.quotas)
    }
}

/// Makes `policy` what is said of migration.
fn rule(sandbox: &Sandbox, policy: &str) -> Result<()> {
    sandbox.apply(&manifests::policy("busy", "busy", &format!("  migration: {policy}\n"))).map(drop)
}

fn says(migration: &Value, words: &str) -> bool {
    let notes = migration["status"]["source"]["notes"].as_array().into_iter().flatten();
    notes.filter_map(Value::as_str).any(|note| note.contains(words))
}

#[test]
fn a_move_that_does_not_converge_is_given_up_and_the_source_runs_on_as_before() -> Result<()> {
    let policy = format!(
        "{{maxDowntime: {NEVER}, maxAttempts: 1, preCopy: {{onNonConvergence: GiveUp, autoConverge: true, maxRounds: 60}}}}"
    );
    // Every page at every tick: each round sends all of it.
    let busy = Busy::start("converge-give-up", &policy, 48, 48 << 8, CPUS)?;
    busy.sandbox.create(&migration::manifest(MOVE, &busy.pod.name))?;
    let injector =
        until("somebody who works in the process", LIMIT, || Ok(busy.cluster.injector(&busy.pod.node).ok()))?;
    let agent = busy.cluster.agent(&busy.pod.node)?;
    until("it is apart from the agent", LIMIT, || {
        Ok(Some(()).filter(|()| injector.is_apart_from(&agent).is_ok_and(|apart| apart)))
    })?;
    let ended = migration::ended(&busy.sandbox, &busy.pod.name, LIMIT)?;
    until("its end", LIMIT, || Ok(Some(()).filter(|()| injector.has_ended())))?;
    let status = &ended["status"];
    ensure!(status["phase"] == "Failed", "the move is {}: {}", status["phase"], migration::message(&ended));
    ensure!(status["failures"][0]["reason"] == "NotConverging", "{}", status["failures"]);
    let sentence = status["failures"][0]["message"].as_str().unwrap_or_default();
    ensure!(sentence.contains("1 ms are allowed"), "the sentence does not say what was allowed: {sentence}");
    ensure!(!migration::went_through(&ended, "Handover"), "a replacement was made: {}", status["phases"]);
    ensure!(status["source"]["timings"].is_null(), "the pod was frozen: {}", status["source"]);
    ensure!(says(&ended, "slowed down"), "it was not slowed down first: {}", status["source"]["notes"]);
    let pod = busy.sandbox.ready_pod("busy")?;
    ensure!(pod.uid == busy.pod.uid && pod.restarts == 0, "another pod runs: {pod:?}");
    busy.counts_on()?;
    cpu_limits::become_as_before(busy.cluster, &pod, &busy.quotas)?;
    busy.sandbox.passed()
}

#[test]
fn a_move_that_does_not_converge_proceeds_where_the_policy_says_so() -> Result<()> {
    let policy = format!("{{maxDowntime: {NEVER}, preCopy: {{onNonConvergence: Proceed}}}}");
    let busy = Busy::start("converge-proceed", &policy, 48, 48 << 8, CPUS)?;
    let ended = busy.moved(MOVE)?;
    ensure!(ended["status"]["phase"] == "Succeeded", "{}", migration::message(&ended));
    ensure!(says(&ended, "the freeze may take"), "nothing says that it is longer: {}", ended["status"]["source"]);
    busy.runs_elsewhere_as_before()?;
    busy.sandbox.passed()
}

#[test]
fn a_container_that_may_be_slowed_down_converges_and_has_its_cpu_time_afterwards() -> Result<()> {
    let ask = format!("{{maxDowntime: {NEVER}, maxAttempts: 1, preCopy: {{onNonConvergence: GiveUp}}}}");
    // It writes all the time, each page not soon again: with less cpu time fewer pages are written during a round.
    let busy = Busy::start("converge-auto", &ask, MUCH, MUCH << 5, CPUS)?;
    for number in 1..=TRIES {
        rule(&busy.sandbox, &ask)?;
        // How long a freeze would be on this machine at this time, a move says that is given up.
        let asked = busy.moved(&format!("ask-{number}"))?;
        ensure!(asked["status"]["failures"][0]["reason"] == "NotConverging", "{}", asked["status"]);
        let wish = half_of_what_is_written(&asked["status"]["source"])?;
        rule(
            &busy.sandbox,
            &format!(
                "{{maxDowntime: {wish:.0}ms, maxAttempts: 1, \
                 preCopy: {{onNonConvergence: GiveUp, autoConverge: true, maxRounds: 100}}}}"
            ),
        )?;
        let ended = busy.moved(&format!("move-{number}"))?;
        let status = &ended["status"];
        let convergence = &status["source"]["convergence"];
        println!("{wish:.0} ms wished for: {}, {convergence}", migration::message(&ended));
        if status["failures"][0]["reason"] == "NotConverging" {
            continue;
        }
        ensure!(status["phase"] == "Succeeded", "the move is {}", status["phase"]);
        let percent = convergence["cpuPercent"].as_u64();
        ensure!(percent.is_some_and(|percent| percent < 100), "it was not slowed down: {convergence}");
        busy.runs_elsewhere_as_before()?;
        return busy.sandbox.passed();
    }
    bail!("{TRIES} moves did not converge")
}

/// Milliseconds of a freeze in which half of what is written during a round would cross, going by `source`, the report of a move
/// whose rounds gained nothing: too few where the program has all of its cpu time, and more than enough where it has a tenth.
fn half_of_what_is_written(source: &Value) -> Result<f64> {
    let predicted = source["convergence"]["predictedFreezeMillis"].as_f64().context("nothing was predicted")?;
    let sent = source["convergence"]["sentPerSecond"].as_f64().context("no rate is known")?;
    let last = source["rounds"].as_array().and_then(|rounds| rounds.last()?["bytes"].as_f64()).context("no rounds")?;
    Ok(predicted - last / sent * 1e3 / 2.0)
}

#[test]
fn a_small_cpu_limit_is_the_same_after_the_move() -> Result<()> {
    let busy = Busy::start("small-cpu-limit", "{maxAttempts: 1}", 16, 0, "100m")?;
    let ended = busy.moved(MOVE)?;
    ensure!(ended["status"]["phase"] == "Succeeded", "{}", migration::message(&ended));
    let timings = [&ended["status"]["source"]["timings"], &ended["status"]["target"]["timings"]];
    println!("dump {} ms, restore {} ms", timings[0]["dumpMillis"], timings[1]["restoreMillis"]);
    busy.runs_elsewhere_as_before()?;
    busy.sandbox.passed()
}
