//! What the target does before the freeze, so that the application does not wait for it.

use anyhow::{Result, bail};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration};

/// Moves in which the time from what is looked for to the freeze may be too short to see it.
const TRIES: usize = 5;

#[test]
fn criu_has_its_request_and_memory_somebody_who_brings_it_before_the_freeze() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "warm-target")?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 1}\n"))?;
    let ticker = Ticker { mib: 16, collector: collector.address() };
    sandbox.apply(&ticker.deployment("ticker"))?;
    for number in 1..=TRIES {
        let pod = sandbox.ready_pod("ticker")?;
        let before = collector.account().newest;
        until_true("ticks", LIMIT, || Ok(collector.account().newest > before + 100))?;
        let name = format!("move-{number}");
        let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, &name, &pod.name)?;
        let found = under_way.seen_in(Moment::Handover, |object| {
            let node = object["status"]["targetNode"].as_str()?;
            cluster.page_daemon(node).ok()?;
            cluster.criu_with_request(node).ok()
        })?;
        migration::succeeded(&sandbox, &pod.name, LIMIT)?;
        if found.is_some() {
            return sandbox.passed();
        }
        println!("{name}: the freeze came before either was seen");
    }
    bail!("in {TRIES} moves CRIU had no request before the freeze, or memory nobody who brings it")
}
