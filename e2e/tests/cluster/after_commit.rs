//! A restore that fails after the commit: the state is kept until somebody mends the cause or gives it up.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::manifests::Ticker;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};
use serde_json::Value;

use super::failed_restore::{Changed, PROGRAM_AWAY, PROGRAM_BACK};

/// How long news of the Migration is waited for at a time.
const NEWS: Duration = Duration::from_secs(1);
/// Moves that may be over before the target is broken.
const TRIES: usize = 5;

/// A pod that nothing owns, committed to a target that can't run it.
pub(super) struct Stuck<'a> {
    pub(super) sandbox: Sandbox,
    pub(super) collector: Collector,
    pub(super) changed: Changed<'a>,
    pub(super) target: String,
    /// The Migration.
    name: String,
}

impl Stuck<'_> {
    /// Breaks the target when the pod is about to be frozen: what is committed there is restored only when the name is
    /// free and the new pod has its sandbox, a second and more after that.
    pub(super) fn new(name: &str, manifest: fn(Ticker) -> String, prepare: fn(&Sandbox) -> Result<()>) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let collector = Collector::listen(cluster.host_address())?;
        sandbox.apply(&manifest(Ticker { mib: 64, collector: collector.address() }))?;
        until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
        prepare(&sandbox)?;
        for number in 1..=TRIES {
            let (pod, name) = (sandbox.ready_pod("ticker")?, format!("move-{number}"));
            sandbox.create(&migration::manifest(&name, &pod.name))?;
            migration::reached(&sandbox, &pod.name, "Freezing", LIMIT)?;
            let changed = Changed::new(cluster, &pod.node, PROGRAM_AWAY, PROGRAM_BACK)?;
            let ended = until("the restore to fail", LIMIT, || {
                let object = sandbox.get(&["migration", &name])?.context("the Migration is gone")?;
                let failing = condition(&object, "RestoreFailing").as_deref() == Some("True");
                Ok(Some(object).filter(|object| failing || migration::has_ended(object)))
            })?;
            if ended["status"]["phase"] == "Succeeded" {
                println!("move {number}: the target was broken too late");
                continue;
            }
            let message = migration::message(&ended);
            ensure!(message.contains("probe"), "the Migration does not say what is missing: {message}");
            let advice = format!("kubectl delete migration {name}");
            ensure!(message.contains(&advice), "it does not say what can be done: {message}");
            let target = ended["status"]["owner"]["node"].as_str().context("no owner")?.to_owned();
            ensure!(target != pod.node, "the owner is still {target}");
            let events = ["events", "--field-selector=reason=RestoreFailing,type=Warning"];
            until("a warning", LIMIT, || {
                let events = sandbox.get(&events)?.unwrap_or_default();
                Ok(events["items"].as_array().is_some_and(|all| !all.is_empty()).then_some(()))
            })?;
            return Ok(Self { sandbox, collector, changed, target, name });
        }
        bail!("in {TRIES} moves the target was never broken in time")
    }
}

fn condition(migration: &Value, type_: &str) -> Option<String> {
    let all = migration["status"]["conditions"].as_array()?;
    all.iter().find(|one| one["type"] == type_)?["status"].as_str().map(ToOwned::to_owned)
}

fn alone(ticker: Ticker) -> String {
    ticker.pod("ticker")
}

#[test]
fn a_restore_whose_cause_is_mended_goes_on_with_the_state() -> Result<()> {
    let Stuck { sandbox, collector, changed, target, .. } = Stuck::new("restore-mended", alone, |_| Ok(()))?;
    drop(changed);
    let ended = migration::succeeded(&sandbox, "ticker", LIMIT)?;
    ensure!(condition(&ended, "RestoreFailing").as_deref() == Some("False"), "{}", ended["status"]["conditions"]);
    ensure!(sandbox.ready_pod("ticker")?.node == target, "the pod runs elsewhere");
    collector.goes_on(500)?;
    sandbox.passed()
}

#[test]
fn deleting_the_migration_of_a_restore_that_fails_starts_the_application_cold() -> Result<()> {
    let cluster = Cluster::ready()?;
    let Stuck { sandbox, collector, changed, target, name } = Stuck::new("restore-given-up", alone, |_| Ok(()))?;
    // It stays until the replacement is gone, and not a moment longer: it was deleted. Only a watch sees all of its states.
    let watch = Watch::start(&sandbox)?;
    sandbox.run(&["delete", "migration", &name, "--wait=false"])?;
    let given_up = until("the state to be given up", LIMIT, || {
        let object = watch.next(NEWS)?.filter(|object| object["metadata"]["name"] == *name);
        Ok(object.filter(|object| condition(object, "GivenUp").as_deref() == Some("True")))
    })?;
    ensure!(migration::message(&given_up).contains("starts cold"), "{}", migration::message(&given_up));
    until("the Migration to be gone", LIMIT, || Ok(sandbox.get(&["migration", &name])?.is_none().then_some(())))?;
    let node = cluster.node(&target)?;
    until("the images to be removed", LIMIT, || {
        let left = node.exec(["find", "/var/lib/tideover/images", "-mindepth", "1"])?.stdout;
        Ok(left.is_empty().then_some(()))
    })?;
    drop(changed);
    let account = until("a cold start", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.starts.len() == 2 && account.newest > 100))
    })?;
    ensure!(account.repeated == 0, "{account:?}");
    ensure!(sandbox.pods("ticker")?.len() == 1, "one pod");
    sandbox.passed()
}
