//! An API server that does not answer while a pod is frozen: nobody knows who owns the application, so nobody runs it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::lab::{Node, ServiceAction};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};

/// How long it stays so once the restore has begun. Longer than an agent waits for an answer (3 s), so that it has to ask
/// again.
const OUTAGE: Duration = Duration::from_secs(5);
/// Memory of the ticker, MiB: the API server hangs long before all of it has crossed.
const MEMORY: usize = 512;
/// Moves whose dump may be over before the API server hangs.
const TRIES: usize = 5;

/// A service that hangs, until this is dropped.
struct Hung<'a> {
    node: &'a Node,
    service: &'static str,
}

impl<'a> Hung<'a> {
    fn begin(node: &'a Node, service: &'static str) -> Result<Self> {
        node.service(service, ServiceAction::Stop)?;
        Ok(Self { node, service })
    }
}

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.node.service(self.service, ServiceAction::Continue) {
            eprintln!("{} of {} still hangs: {error:#}", self.service, self.node.name());
        }
    }
}

#[test]
fn a_pod_stays_frozen_while_the_api_server_does_not_answer() -> Result<()> {
    let cluster = Cluster::ready()?;
    let control_plane = cluster.node(&cluster.lab().topology().control_plane().name)?;
    let sandbox = Sandbox::new(cluster.kube(), "api-server")?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    let ticker = Ticker { mib: MEMORY, collector: collector.address() };
    sandbox.apply(&manifests::with_scattered_memory(&ticker.deployment("ticker")))?;
    sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    for number in 1..=TRIES {
        let pod = sandbox.ready_pod("ticker")?;
        let name = format!("move-{number}");
        let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, &name, &pod.name)?;
        let hung = under_way.seen_in(Moment::Dumping, |_| Some(Hung::begin(&control_plane, "kube-apiserver")))?;
        let signs = under_way.signs();
        let frozen_at = match hung.transpose()? {
            // Where the restore had begun, the commit may have been made before.
            Some(hung) if !signs.disks.restoring => Some(stays_frozen(&collector, &under_way, hung)?),
            _ => None,
        };
        let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
        println!("the move {}: {}", ended["status"]["phase"], migration::message(&ended));
        let after = sandbox.ready_pod("ticker")?;
        let moved = ended["status"]["phase"] == "Succeeded";
        ensure!(
            moved == (after.node != pod.node),
            "the pod is on {}, the move {}",
            after.node,
            ended["status"]["phase"]
        );
        let seen = frozen_at.unwrap_or_else(|| collector.account().newest);
        let account = until("the ticker to go on", LIMIT, || {
            Ok(Some(collector.account()).filter(|account| account.newest > seen + 500))
        })?;
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        if frozen_at.is_some() {
            return sandbox.passed();
        }
    }
    bail!("in {TRIES} moves the API server never hung in a dump")
}

/// Ends `hung` after a while in which nobody could know who runs. Returns the number of the last tick before.
fn stays_frozen(collector: &Collector, under_way: &UnderWay<'_>, hung: Hung<'_>) -> Result<u64> {
    // What is restored was dumped, so the source is frozen by then; its last ticks have arrived when no more come.
    until("the restore to begin", LIMIT, || Ok(Some(()).filter(|()| under_way.signs().disks.restoring)))?;
    let mut before = None;
    let frozen_at = until("the last tick", LIMIT, || {
        let newest = collector.account().newest;
        Ok(Some(newest).filter(|newest| before.replace(*newest) == Some(*newest)))
    })?;
    // How long nobody answers is what is tested.
    std::thread::sleep(OUTAGE);
    let signs = under_way.signs();
    let newest = collector.account().newest;
    drop(hung);
    ensure!(newest == frozen_at, "{} ticks came while nobody could know who runs", newest - frozen_at);
    ensure!(signs.disks.journal, "the source was thawed or ended while nobody could know who runs: {signs:?}");
    Ok(frozen_at)
}
