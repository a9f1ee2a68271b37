//! A CRIU that hangs in its restore, once the target has taken the attempt: it gives it back, and the source goes on.

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::{Moment, Owner, Signs};
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::victim::Stopped;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains, until};

/// Moves whose CRIU may be found too late, before the test gives up.
const TRIES: usize = 5;

#[test]
fn what_was_taken_is_given_back_where_criu_hangs() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "hung-restore")?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 1}\n"))?;
    let ticker = Ticker { mib: 16, collector: collector.address() };
    sandbox.apply(&ticker.deployment("ticker"))?;
    for number in 1..=TRIES {
        let pod = sandbox.ready_pod("ticker")?;
        let before = collector.account().newest;
        until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > before + 100)))?;
        let name = format!("move-{number}");
        let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, &name, &pod.name)?;
        // The one that waits for its request. runc has asked another for its version before that.
        let criu = under_way
            .seen_in(Moment::Freezing, |object| cluster.criu(object["status"]["targetNode"].as_str()?).ok())?;
        let Some(criu) = criu else {
            println!("{name}: CRIU was not found in time");
            continue;
        };
        let stopped = Stopped::new(criu)?;
        let object = || sandbox.get(&["migration", &name])?.context("the Migration is gone");
        let owner = until("the last of the state to land", LIMIT, || {
            let object = object()?;
            let (owner, staged) = (Signs::of(&object).owner, object["status"]["target"]["step"] == "Staged");
            Ok(Some(owner).filter(|owner| staged || matches!(owner, Owner::Target | Owner::Source)))
        })?;
        if owner != Owner::Taken {
            drop(stopped);
            println!("{name}: CRIU was stopped too late");
            migration::succeeded(&sandbox, &pod.name, LIMIT)?;
            continue;
        }
        let frozen = collector.account().newest;
        let message = until("the attempt to be given back", LIMIT, || {
            let newest = collector.account().newest;
            let object = object()?;
            let message = object["status"]["failures"][0]["message"].as_str().map(ToOwned::to_owned);
            ensure!(Signs::of(&object).owner != Owner::Taken || newest <= frozen + 5, "the source runs on, frozen");
            Ok(message)
        })?;
        ensure!(message.contains("were not rebuilt within"), "{message}");
        until("the source to go on beside the CRIU that hangs", LIMIT, || {
            Ok(Some(()).filter(|()| collector.account().newest > frozen + 100))
        })?;
        drop(stopped);
        let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
        ensure!(ended["status"]["phase"] == "Failed", "{}", migration::message(&ended));
        ensure!(sandbox.ready_pod("ticker")?.uid == pod.uid, "another pod is there");
        let account = collector.account();
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        remains::are_gone(cluster, LIMIT)?;
        return sandbox.passed();
    }
    bail!("no CRIU was stopped in time in {TRIES} moves")
}
