//! Ends of a supervised application in the middle of a move: the move goes on with what there is, and so do the rules.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, Sandbox, migration};
use jiff::Timestamp;

use super::restart::{crash, ticker, told};

const LIMIT: Duration = Duration::from_secs(120);
/// Longer than a move takes.
const DELAY: Duration = Duration::from_secs(20);
/// By which a start may be later than its delay says: the program is told to start, fills its memory, and tells when it began.
const LATE: Duration = Duration::from_secs(5);

#[test]
fn a_crash_while_memory_is_copied_is_answered_and_what_runs_then_is_moved() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "restart-pre-copy")?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    // The first round takes three seconds, and so does one with all memory of the program that comes after it.
    let rules =
        "  migration: {maxAttempts: 1, preCopy: {bandwidthLimit: 16Mi}}\n  restart: {policy: Always, delay: 20ms}\n";
    sandbox.apply(&manifests::policy("ticker", "ticker", rules))?;
    let deployment = Ticker { mib: 48, collector: collector.address() }.deployment("ticker");
    sandbox.apply(&manifests::with_checked_memory(&deployment))?;
    let before = sandbox.ready_pod("ticker")?;
    until_true("ticks", LIMIT, || Ok(collector.account().newest > 100))?;

    let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, "move", &before.name)?;
    under_way.seen_in(Moment::Copying, |_| Some(()))?.context("no memory was copied before the handover")?;
    crash(cluster, &before, "probe")?;
    until_true("the next run", LIMIT, || Ok(collector.account().starts.len() == 2))?;
    let still = sandbox.get(&["migration", "move"])?.context("the Migration is gone")?;
    ensure!(still["status"]["phase"] == "PreCopying", "it crashed too late: {}", still["status"]["phases"]);
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    ensure!(moved["status"]["attempt"] == 1, "{}", moved["status"]["failures"]);

    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.node != before.node && after.restarts == 0, "{before:?}, then {after:?}");
    // By then it has looked at each page of its memory, and would have ended itself.
    let (moved_at, pages) = (collector.account().ticks, 48 << 8);
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
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "restart-delay")?;
    let collector = Collector::listen(cluster.host_address())?;
    let rules = format!("  restart: {{policy: Always, delay: {}s}}\n", DELAY.as_secs());
    let before = ticker(&sandbox, &collector, &rules)?;
    let crashing = Timestamp::now();
    crash(cluster, &before, "probe")?;
    let crashed = Timestamp::now();
    sandbox.create(&migration::manifest("move", &before.name))?;
    migration::succeeded(&sandbox, &before.name, LIMIT)?;
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.node != before.node && after.restarts == 0, "{before:?}, then {after:?}");
    let account = collector.account();
    ensure!(account.starts.len() == 1, "the move took longer than the delay, or did not wait for it: {account:?}");

    until_true("ticks on the target", LIMIT, || {
        let account = collector.account();
        Ok(account.starts.len() > 1 && account.senders.last().is_some_and(|last| last.to_string() == after.ip))
    })?;
    let newest = collector.account().ticks;
    until_true("more of them", LIMIT, || Ok(collector.account().ticks > newest + 500))?;
    let account = collector.account();
    ensure!(account.starts.len() == 2 && account.repeated == 0, "it was started more than once: {account:?}");
    let started = Timestamp::from_nanosecond(account.starts[1].into())?;
    let (least, most) = (started.duration_since(crashed), started.duration_since(crashing));
    println!("started {most:#} after the crash");
    ensure!(most >= DELAY.try_into()?, "it started before its delay was over: {least:#} to {most:#}");
    ensure!(least <= (DELAY + LATE).try_into()?, "the delay began anew: {least:#} to {most:#}");
    until_true("the Event", LIMIT, || {
        let events = [told(&sandbox, &before, "RestartedInPlace")?, told(&sandbox, &after, "RestartedInPlace")?];
        Ok(matches!(events.concat().as_slice(), [one] if one.contains("started again in place after 20s")))
    })?;
    sandbox.passed()
}
