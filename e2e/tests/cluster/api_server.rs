//! An API server that does not answer while a pod is frozen: nobody knows who owns the application, so nobody runs it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::lab::{Node, ServiceAction};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, Sandbox, migration, until};

const LIMIT: Duration = Duration::from_secs(120);
/// How long it stays so once the restore has begun. Longer than an agent waits for an answer (3 s), so that it has to ask
/// again.
const OUTAGE: Duration = Duration::from_secs(5);
/// Memory of the ticker, MiB: the API server hangs long before all of it has crossed.
const MEMORY: usize = 512;

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
    let pod = sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;

    let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, "move", &pod.name)?;
    let hung = under_way.seen_in(Moment::Dumping, |_| Some(Hung::begin(&control_plane, "kube-apiserver")))?;
    let hung = hung.context("the dump was never seen")??;
    let signs = under_way.signs();
    ensure!(!signs.disks.restoring, "the API server hung too late: the commit may have been made: {signs:?}");
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

    let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
    println!("the move {}: {}", ended["status"]["phase"], migration::message(&ended));
    let account = until("the ticker to go on", LIMIT, || {
        Ok(Some(collector.account()).filter(|account| account.newest > frozen_at + 500))
    })?;
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
    let after = sandbox.ready_pod("ticker")?;
    let moved = ended["status"]["phase"] == "Succeeded";
    ensure!(moved == (after.node != pod.node), "the pod is on {}, the move {}", after.node, ended["status"]["phase"]);
    sandbox.passed()
}
