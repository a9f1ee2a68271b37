//! `kill -9` of the operator and of either agent, in every phase: exactly one running copy, no state lost.
//!
//! The ticker is the witness. It goes on counting from where it was: a second copy, or a copy that was taken back to an
//! older state, repeats a number; a cold start tells another start time.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::scenario::manifests::Ticker;
use e2e::scenario::victim::Victim;
use e2e::scenario::{Cluster, Collector, Sandbox, migration, until};

const LIMIT: Duration = Duration::from_secs(300);

/// When the victim is ended.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// As soon as the Migration is in this phase.
    Phase(&'static str),
    /// So long after the source's journal says that a freeze begins. The freeze of this program takes some hundreds of
    /// milliseconds, so these moments fall into dump, transfer, restore, commit, and after it.
    IntoFreeze(Duration),
}

const MOMENTS: [Moment; 9] = [
    Moment::Phase("Preparing"),
    Moment::Phase("PreCopying"),
    Moment::Phase("Handover"),
    Moment::IntoFreeze(Duration::ZERO),
    Moment::IntoFreeze(Duration::from_millis(60)),
    Moment::IntoFreeze(Duration::from_millis(150)),
    Moment::IntoFreeze(Duration::from_millis(300)),
    Moment::IntoFreeze(Duration::from_millis(600)),
    Moment::Phase("Committing"),
];

fn one_copy_goes_on(name: &str, victim: Victim) -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), name)?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&Ticker { mib: 96, collector: collector.address() }.deployment("ticker"))?;
    sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    for (number, moment) in MOMENTS.into_iter().enumerate() {
        kill_at(cluster, &sandbox, &format!("move-{number}"), victim, moment)
            .and_then(|()| still_one(&sandbox, &collector))
            .with_context(|| format!("{victim:?} killed at {moment:?}"))?;
    }
    Ok(())
}

/// Moves the ticker, ends the victim at `moment`, and waits for the end of the move, whatever it is.
fn kill_at(cluster: &Cluster, sandbox: &Sandbox, name: &str, victim: Victim, moment: Moment) -> Result<()> {
    let pod = sandbox.ready_pod("ticker")?;
    sandbox.create(&migration::manifest(name, &pod.name))?;
    let object = match moment {
        Moment::Phase(phase) => migration::reached(sandbox, &pod.name, phase, LIMIT)?,
        Moment::IntoFreeze(delay) => {
            let journal = cluster.node(&pod.node)?.path("/var/lib/tideover/journal")?;
            let begun = freeze_begins(journal)?;
            // The moment itself is what is tested: this is the one place where a time is not a condition.
            while begun.elapsed() < delay {
                std::hint::spin_loop();
            }
            sandbox.get(&["migration", name])?.context("the Migration is gone")?
        }
    };
    match victim {
        Victim::Operator => cluster.kill_operator()?,
        Victim::SourceAgent => cluster.kill_agent(&pod.node)?,
        Victim::TargetAgent => {
            let target = object["status"]["targetNode"].as_str().map(ToOwned::to_owned);
            let target = match target {
                Some(target) => target,
                None => until("a target", LIMIT, || {
                    let object = sandbox.get(&["migration", name])?.unwrap_or_default();
                    Ok(object["status"]["targetNode"].as_str().map(ToOwned::to_owned))
                })?,
            };
            cluster.kill_agent(&target)?;
        }
    }
    let ended = migration::ended(sandbox, &pod.name, LIMIT)?;
    println!("{victim:?} killed at {moment:?}: {} {}", ended["status"]["phase"], migration::message(&ended));
    Ok(())
}

/// The moment at which the source's journal gets an entry.
fn freeze_begins(journal: PathBuf) -> Result<Instant> {
    let start = Instant::now();
    while start.elapsed() < LIMIT {
        let entries = std::fs::read_dir(&journal).with_context(|| format!("list {}", journal.display()))?;
        if entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "json")) {
            return Ok(Instant::now());
        }
        std::thread::yield_now();
    }
    anyhow::bail!("no freeze began in {} s", LIMIT.as_secs())
}

fn still_one(sandbox: &Sandbox, collector: &Collector) -> Result<()> {
    sandbox.ready_pod("ticker")?;
    let newest = collector.account().newest;
    let account = until("the ticker to go on", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.newest > newest + 500))
    })?;
    ensure!(account.starts.len() == 1, "the program was started cold");
    ensure!(account.repeated == 0, "{} numbers came twice", account.repeated);
    Ok(())
}

#[test]
fn the_operator_may_die_at_any_moment() -> Result<()> {
    one_copy_goes_on("kill-operator", Victim::Operator)
}

#[test]
fn the_sources_agent_may_die_at_any_moment() -> Result<()> {
    one_copy_goes_on("kill-source", Victim::SourceAgent)
}

#[test]
fn the_targets_agent_may_die_at_any_moment() -> Result<()> {
    one_copy_goes_on("kill-target", Victim::TargetAgent)
}
