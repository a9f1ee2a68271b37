//! Pods with several containers whose replacement needs their name: they are committed before any of it is there.

use anyhow::{Result, bail, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains};

use super::after_commit::Stuck;
use super::failed_restore::{Changed, PROGRAM_AWAY, PROGRAM_BACK};
use super::killed::strike::{Who, strike};
use super::several::{Several, THREE, TWO};

/// How many moves a moment may take until a strike in it is proven.
const TRIES: usize = 6;

/// Of a StatefulSet.
fn in_a_set(manifest: &str) -> String {
    manifest
        .replace("kind: Deployment", "kind: StatefulSet")
        .replace("  replicas: 1", "  replicas: 1\n  serviceName: set")
}

/// A pod that nothing owns, of a redis in `store` and a ticker, whose program alone can be taken away from a node.
fn store_first(ticker: Ticker) -> String {
    manifests::with_store(&ticker.pod("ticker"))
}

/// The same, the other way round: for the ticker, a stand-in is created.
fn store_last(ticker: Ticker) -> String {
    manifests::with_store_last(&ticker.pod("ticker"))
}

fn ask(sandbox: &Sandbox, words: &[&str]) -> Result<String> {
    let asked = [&["exec", "ticker", "-c", "store", "--", "redis-cli"], words].concat();
    Ok(sandbox.run(&asked)?.trim().to_owned())
}

#[test]
fn a_stateful_sets_pod_with_a_sidecar_and_two_containers_goes_on_at_one_cut() -> Result<()> {
    let several = Several::start("several-set", "", 24, &THREE, in_a_set)?;
    let after = several.moves_by_drain()?;
    ensure!(after.name == several.pod.name && after.uid != several.pod.uid, "{:?}, then {after:?}", several.pod);
    let again = several.moves_again(&after)?;
    ensure!(again.name == after.name, "{after:?}, then {again:?}");
    for moved in migration::all(&several.sandbox)? {
        let status = &moved["status"];
        ensure!(status["strategy"] == "DeleteFirst", "the strategy is {}", status["strategy"]);
        ensure!(migration::went_through(&moved, "Rehearsing"), "the restore was not rehearsed: {status}");
        ensure!(status["attempt"] == 1, "it took {} attempts: {}", status["attempt"], status["failures"]);
    }
    several.leaves_nothing()
}

#[test]
fn a_target_agent_that_dies_after_the_commit_of_several_containers_costs_none_of_them_its_state() -> Result<()> {
    let several = Several::start("several-set-killed", "", 24, &TWO, in_a_set)?;
    let watch = Watch::start(&several.sandbox)?;
    for number in 1..=TRIES {
        let (pod, name) = (several.sandbox.ready_pod("several")?, format!("move-{number}"));
        let struck = (Who::TargetAgent, Moment::Committed);
        let outcome = strike(several.cluster, &several.sandbox, &watch, &name, &pod, struck)?;
        println!("{}: {}", if outcome.proven { "struck" } else { "too late" }, migration::message(&outcome.object));
        ensure!(outcome.object["status"]["phase"] == "Succeeded", "{}", outcome.object["status"]);
        let after = several.sandbox.ready_pod("several")?;
        ensure!(after.node != pod.node && after.name == pod.name, "{pod:?}, then {after:?}");
        several.go_on(1_000)?;
        if outcome.proven {
            return several.leaves_nothing();
        }
    }
    bail!("in {TRIES} moves the agent was never killed right after the commit");
}

/// A rehearsal in which the ticker can't be restored.
fn rehearsal_fails(name: &str, manifest: fn(Ticker) -> String) -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), name)?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 1}\n"))?;
    sandbox.apply(&manifest(Ticker { mib: 24, collector: collector.address() }))?;
    let pod = sandbox.ready_pod("ticker")?;
    collector.goes_on(1_000)?;
    let changed = Changed::new(cluster, &pod.node, PROGRAM_AWAY, PROGRAM_BACK)?;
    sandbox.create(&migration::manifest("move", &pod.name))?;
    let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
    drop(changed);
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let message = migration::message(&ended);
    ensure!(message.contains("in the rehearsal, container ticker: "), "it is not named: {message}");
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.uid == pod.uid && after.restarts == 0, "{pod:?}, then {after:?}");
    collector.goes_on(1_000)?;
    remains::are_gone(cluster, LIMIT)?;
    sandbox.passed()
}

#[test]
fn a_rehearsal_that_fails_for_the_container_created_first_leaves_all_where_they_are() -> Result<()> {
    rehearsal_fails("several-rehearsal-first", store_last)
}

#[test]
fn a_rehearsal_that_fails_for_the_container_created_last_leaves_all_where_they_are() -> Result<()> {
    rehearsal_fails("several-rehearsal-last", store_first)
}

/// A restore that fails for the ticker after the commit: nothing runs before it is mended, and then all go on.
fn restore_fails(name: &str, manifest: fn(Ticker) -> String) -> Result<()> {
    let remember = |sandbox: &Sandbox| {
        let said = ask(sandbox, &["set", "word", "kept"])?;
        ensure!(said == "OK", "redis says {said}");
        Ok(())
    };
    let Stuck { sandbox, collector, changed, target, .. } = Stuck::new(name, manifest, remember)?;
    ensure!(ask(&sandbox, &["ping"]).is_err(), "the other container runs without it");
    drop(changed);
    migration::succeeded(&sandbox, "ticker", LIMIT)?;
    collector.goes_on(500)?;
    ensure!(sandbox.ready_pod("ticker")?.node == target, "the pod runs elsewhere");
    let word = ask(&sandbox, &["get", "word"])?;
    ensure!(word == "kept", "redis has forgotten what it was told: {word:?}");
    sandbox.passed()
}

#[test]
fn a_restore_that_fails_after_the_commit_for_the_container_created_first_is_made_good_for_all() -> Result<()> {
    restore_fails("several-stuck-first", store_last)
}

#[test]
fn a_restore_that_fails_after_the_commit_for_the_container_created_last_is_made_good_for_all() -> Result<()> {
    restore_fails("several-stuck-last", store_first)
}
