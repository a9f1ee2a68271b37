//! `kill -9` of the operator and of either agent, in every phase, and of CRIU at its work: exactly one running copy, no state
//! lost.
//!
//! The ticker is the witness. It goes on counting from where it was: a second copy, or a copy that was taken back to an
//! older state, repeats a number; a cold start tells another start time.

pub(super) mod strike;

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains, until};
use strike::{Who, strike};

/// How many moves a moment may take until a strike in it is proven.
const TRIES: usize = 8;
/// Memory of the ticker, MiB: dump, transfer and restore take some hundred milliseconds each.
const MEMORY: usize = 96;
/// Memory, MiB, that CRIU writes and reads for so long that it is found at its work.
const READ: usize = 512;

fn one_copy_goes_on(name: &str, who: Who, moments: &[Moment], mib: usize) -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), name)?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {retryDelay: 1s}\n"))?;
    let ticker = Ticker { mib, collector: collector.address() };
    sandbox.apply(&manifests::with_scattered_memory(&ticker.deployment("ticker")))?;
    sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    let mut moves = (1..).map(|number| format!("move-{number}"));
    for &moment in moments {
        let struck = moves.by_ref().take(TRIES).find_map(|name| {
            let proven = one_move(cluster, &sandbox, &watch, &collector, &name, (who, moment));
            proven.map(|proven| proven.then_some(())).transpose()
        });
        match struck {
            Some(struck) => struck.with_context(|| format!("{who:?} killed at {moment:?}"))?,
            None => bail!("in {TRIES} moves {who:?} was never killed in {moment:?}"),
        }
    }
    sandbox.passed()
}

/// One move with a strike, and one copy after it. Says whether the strike was in `moment`.
fn one_move(
    cluster: &Cluster,
    sandbox: &Sandbox,
    watch: &Watch,
    collector: &Collector,
    name: &str,
    (who, moment): (Who, Moment),
) -> Result<bool> {
    let pod = sandbox.ready_pod("ticker")?;
    let outcome = strike(cluster, sandbox, watch, name, &pod, (who, moment))?;
    let status = &outcome.object["status"];
    println!(
        "{who:?} at {moment:?}: {}, the object said {}; attempt {} {}: {}",
        if outcome.proven { "struck" } else { "too late" },
        outcome.phase.as_deref().unwrap_or("nothing for certain"),
        status["attempt"],
        status["phase"].as_str().unwrap_or_default(),
        migration::message(&outcome.object),
    );
    still_one(sandbox, collector)?;
    if outcome.proven && moment == Moment::Taken {
        // The agent that comes after can't know whether they were told to run, so there is no way back.
        ensure!(status["attempt"] == 1 && status["phase"] == "Succeeded", "what was taken did not go forward");
    }
    if outcome.proven && who.is_criu() {
        // What a CRIU that died has left in the way of another one would fail every further attempt.
        ensure!(status["phase"] == "Succeeded", "no attempt after that one has succeeded");
    }
    Ok(outcome.proven)
}

fn still_one(sandbox: &Sandbox, collector: &Collector) -> Result<()> {
    sandbox.ready_pod("ticker")?;
    let newest = collector.account().newest;
    let account = until("the ticker to go on", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.newest > newest + 500))
    })?;
    ensure!(account.starts.len() == 1, "the program was started cold");
    ensure!(account.repeated == 0, "{} numbers came twice", account.repeated);
    until(
        "one pod to be left",
        LIMIT,
        || Ok(Some(()).filter(|()| sandbox.pods("ticker").is_ok_and(|it| it.len() == 1))),
    )
}

#[test]
fn the_operator_may_die_at_any_moment() -> Result<()> {
    one_copy_goes_on("kill-operator", Who::Operator, &Moment::ALL, MEMORY)
}

#[test]
fn the_sources_agent_may_die_at_any_moment() -> Result<()> {
    one_copy_goes_on("kill-source", Who::SourceAgent, &Moment::ALL, MEMORY)
}

#[test]
fn the_targets_agent_may_die_at_any_moment() -> Result<()> {
    let moments = [&Moment::ALL[..], &[Moment::Taken]].concat();
    one_copy_goes_on("kill-target", Who::TargetAgent, &moments, MEMORY)
}

/// CRIU dies at its work: that attempt succeeds, or the next one of the same move, and nothing is left then on any node, not even a process
/// that was half restored.
fn nothing_is_left(name: &str, who: Who, moments: &[Moment]) -> Result<()> {
    one_copy_goes_on(name, who, moments, READ)?;
    let cluster = Cluster::ready()?;
    remains::are_gone(cluster, LIMIT)?;
    until_true("the last process to be gone", LIMIT, || Ok(remains::processes(cluster, "probe")? == 0))
}

#[test]
fn criu_may_die_in_its_dump() -> Result<()> {
    // From its images on it holds the processes, and no more. What runs without that hold runs beside its copy.
    nothing_is_left("kill-dump", Who::SourceCriu, &[Moment::Dumping, Moment::Restoring])
}

#[test]
fn criu_may_die_in_its_restore() -> Result<()> {
    nothing_is_left("kill-restore", Who::TargetCriu, &[Moment::Restoring])
}
