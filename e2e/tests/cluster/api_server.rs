//! An API server that does not answer while a pod is frozen. What the target had taken before goes on without it; where the
//! attempt was not decided, nobody knows who owns the application, so nobody runs it.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use e2e::lab::{Node, ServiceAction};
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::{Moment, Owner, Signs};
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};

/// How long it stays so. Longer than an agent waits for an answer (3 s), so that it has to ask again.
const OUTAGE: Duration = Duration::from_secs(5);
/// Memory of the ticker, MiB, all of which a dump looks at: the API server hangs before that is over.
const MEMORY: usize = 512;
/// How long a dump and a restore of it may take; what is taken is looked at once more where it takes longer.
const LATE: Duration = Duration::from_secs(20);
/// Moves in which the API server may hang too late.
const TRIES: usize = 10;

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
fn what_is_taken_goes_on_while_the_api_server_does_not_answer() -> Result<()> {
    let cluster = Cluster::ready()?;
    let control_plane = cluster.node(&cluster.lab().topology().control_plane().name)?;
    let sandbox = Sandbox::new(cluster.kube(), "api-server-taken")?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    let ticker = Ticker { mib: MEMORY, collector: collector.address() };
    sandbox.apply(&manifests::with_scattered_memory(&ticker.deployment("ticker")))?;
    sandbox.ready_pod("ticker")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    for number in 1..=TRIES {
        let pod = sandbox.ready_pod("ticker")?;
        let senders = collector.account().senders.len();
        let name = format!("move-{number}");
        let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, &name, &pod.name)?;
        let hung = under_way.seen_in(Moment::Dumping, |object| {
            (Signs::of(object).owner == Owner::Taken).then(|| Hung::begin(&control_plane, "kube-apiserver"))
        })?;
        let went_on = match hung.transpose()? {
            // It hung before there was anything to commit.
            Some(hung) if !under_way.signs().disks.restoring => goes_on(&collector, senders, &under_way, hung)?,
            _ => false,
        };
        let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
        println!("the move {}: {}", ended["status"]["phase"], migration::message(&ended));
        collector.goes_on(500)?;
        if went_on {
            ensure!(ended["status"]["phase"] == "Succeeded", "{}", ended["status"]);
            return sandbox.passed();
        }
    }
    bail!("in {TRIES} moves the API server never hung in a dump, or what followed took too long")
}

/// Ends `hung` when ticks have come from one more address than `senders`. `false`: it took so long that the target had to look
/// once more at what it had taken.
fn goes_on(collector: &Collector, senders: usize, under_way: &UnderWay<'_>, hung: Hung<'_>) -> Result<bool> {
    let went_on =
        until("ticks from the target", LATE, || Ok(Some(()).filter(|()| collector.account().senders.len() > senders)));
    let signs = under_way.signs();
    drop(hung);
    ensure!(signs.disks.journal, "the source was thawed or ended, and could not know who runs: {signs:?}");
    Ok(went_on.inspect_err(|error| println!("{error:#}")).is_ok())
}

#[test]
fn a_pod_that_nothing_owns_stays_frozen_while_the_api_server_does_not_answer() -> Result<()> {
    let cluster = Cluster::ready()?;
    let control_plane = cluster.node(&cluster.lab().topology().control_plane().name)?;
    let sandbox = Sandbox::new(cluster.kube(), "api-server-bare")?;
    let collector = Collector::listen(cluster.host_address())?;
    let watch = Watch::start(&sandbox)?;
    let ticker = Ticker { mib: MEMORY, collector: collector.address() };
    sandbox.apply(&manifests::with_scattered_memory(&ticker.pod("bare")))?;
    sandbox.ready_pod("bare")?;
    until("ticks", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > 100)))?;
    for number in 1..=TRIES {
        let pod = sandbox.ready_pod("bare")?;
        let name = format!("move-{number}");
        let mut under_way = UnderWay::begin(cluster, &sandbox, &watch, &name, &pod.name)?;
        // The cut for the rehearsal is a dump too.
        let hung = under_way.seen_in(Moment::Dumping, |object| {
            (Signs::of(object).phase == "Freezing").then(|| Hung::begin(&control_plane, "kube-apiserver"))
        })?;
        let frozen_at = match hung.transpose()? {
            // It hung before there was anything to commit.
            Some(hung) if !under_way.signs().disks.dumped => Some(stays_frozen(&collector, &under_way, hung)?),
            _ => None,
        };
        let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
        println!("the move {}: {}", ended["status"]["phase"], migration::message(&ended));
        let after = sandbox.ready_pod("bare")?;
        let moved = ended["status"]["phase"] == "Succeeded";
        ensure!(moved == (after.node != pod.node), "{} is on {}: {}", after.name, after.node, ended["status"]);
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
    // What has landed was dumped, so the source is frozen by then; its last ticks have arrived when no more come.
    until("the dump to land", LIMIT, || {
        let disks = under_way.signs().disks;
        Ok(Some(()).filter(|()| disks.dumped && disks.landed > 0))
    })?;
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
