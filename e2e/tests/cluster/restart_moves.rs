//! Ends of a supervised application in the middle of a move: the move goes on with what there is, and so do the rules.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::{Moment, phase_throughout};
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration};
use jiff::Timestamp;
use serde_json::Value;

use super::restart::{crash, ticker, told};

/// Memory of the program that crashes while it is copied, MiB.
const COPIED: usize = 64;
/// The first is longer than a move takes, the second is for slower machines.
const DELAYS: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(59)];

#[test]
fn a_crash_while_memory_is_copied_is_answered_and_what_runs_then_is_moved() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-pre-copy")?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    // The first round takes four seconds, and so does one with all memory of the program that comes after it.
    let rules =
        "  migration: {maxAttempts: 1, preCopy: {bandwidthLimit: 16Mi}}\n  restart: {policy: Always, delay: 20ms}\n";
    sandbox.apply(&manifests::policy("ticker", "ticker", rules))?;
    let deployment = Ticker { mib: COPIED, collector: collector.address() }.deployment("ticker");
    sandbox.apply(&manifests::with_checked_memory(&deployment))?;
    let before = sandbox.ready_pod("ticker")?;
    until_true("ticks", LIMIT, || Ok(collector.account().newest > 100))?;

    let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, "move", &before.name)?;
    under_way.seen_in(Moment::Copying, |_| Some(()))?.context("no memory was copied before the handover")?;
    let crashing = Timestamp::now();
    crash(cluster, &before, "probe")?;
    until_true("the next run", LIMIT, || Ok(collector.account().starts.len() == 2))?;
    let started = Timestamp::from_nanosecond(collector.account().starts[1].into())?;
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    ensure!(moved["status"]["attempt"] == 1, "{}", moved["status"]["failures"]);
    let phase = phase_throughout(&moved, crashing, started);
    ensure!(phase.as_deref() == Some("PreCopying"), "it crashed too late: {}", moved["status"]["phases"]);

    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.node != before.node && after.restarts == 0, "{before:?}, then {after:?}");
    // By then it has looked at each page of its memory, and would have ended itself.
    let (moved_at, pages) = (collector.account().ticks, (COPIED as u64) << 8);
    until_true("ticks on the target", LIMIT, || Ok(collector.account().ticks > moved_at + pages / 32 + 500))?;
    let account = collector.account();
    ensure!(account.starts.len() == 2 && account.repeated == 0, "{account:?}");
    let events = told(&sandbox, &before, "RestartedInPlace")?;
    ensure!(events.len() == 1 && events[0].contains("restart 1, by policy"), "{events:?}");
    ensure!(told(&sandbox, &after, "RestartedInPlace")?.is_empty(), "the target tells of the source's restart again");
    sandbox.passed()
}

#[test]
fn a_move_during_a_delay_takes_what_is_left_of_it_along() -> Result<()> {
    for delay in DELAYS {
        if moved_during(delay)? {
            return Ok(());
        }
        println!("the move was not over within {delay:?}");
    }
    bail!("no move was over before its application was due")
}

/// Moves an application that waits to be started. Says whether the move was over before.
fn moved_during(delay: Duration) -> Result<bool> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-delay")?;
    let collector = Collector::listen(cluster.host_address())?;
    let rules = format!("  restart: {{policy: Always, delay: {}s}}\n", delay.as_secs());
    let before = ticker(&sandbox, &collector, &rules)?;
    let crashing = Timestamp::now();
    crash(cluster, &before, "probe")?;
    sandbox.create(&migration::manifest("move", &before.name))?;
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.node != before.node && after.restarts == 0, "{before:?}, then {after:?}");

    until_true("ticks on the target", LIMIT, || {
        let account = collector.account();
        Ok(account.starts.len() > 1 && account.senders.last().is_some_and(|last| last.to_string() == after.ip))
    })?;
    let newest = collector.account().ticks;
    until_true("more of them", LIMIT, || Ok(collector.account().ticks > newest + 500))?;
    let account = collector.account();
    ensure!(account.starts.len() == 2 && account.repeated == 0, "it was started more than once: {account:?}");
    let started = Timestamp::from_nanosecond(account.starts[1].into())?;
    println!("started {:#} after the crash", started.duration_since(crashing));
    ensure!(started.duration_since(crashing) >= delay.try_into()?, "it started before its delay was over");
    let (frozen, over) = (entered(&moved, "Freezing")?, entered(&moved, "Succeeded")?);
    if started < over {
        sandbox.passed()?;
        return Ok(false);
    }
    ensure!(
        started.duration_since(frozen) < delay.try_into()?,
        "the delay began anew: frozen {frozen}, started {started}"
    );
    until_true("the Event", LIMIT, || {
        let events = [told(&sandbox, &before, "RestartedInPlace")?, told(&sandbox, &after, "RestartedInPlace")?];
        let said = format!("started again in place after {}s", delay.as_secs());
        Ok(matches!(events.concat().as_slice(), [one] if one.contains(&said)))
    })?;
    sandbox.passed()?;
    Ok(true)
}

/// When the move entered `phase` last.
fn entered(migration: &Value, phase: &str) -> Result<Timestamp> {
    let entries = migration["status"]["phases"].as_array().context("no phases")?;
    let entry = entries.iter().rfind(|entry| entry["phase"] == phase).with_context(|| format!("never {phase}"))?;
    Ok(entry["at"].as_str().context("a phase without a time")?.parse()?)
}
