//! What an attempt that failed leaves in the processes that it had hold of: nothing.

use anyhow::{Result, ensure};
use e2e::scenario::cpu_limits;
use e2e::scenario::insides::Insides;
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::sandbox::Pod;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains, until};

use super::failed_restore::{Changed, PROGRAM_AWAY, PROGRAM_BACK};

/// A disk for what comes to a target. It must be free but for 256 MiB, beside what is expected of the program below.
const SMALL_DISK: &str =
    "mkdir -p /var/lib/tideover/images && mount -t tmpfs -o size=512m tmpfs /var/lib/tideover/images";
const NO_DISK: &str = "umount -l /var/lib/tideover/images";
/// Fills it. That it does not end well is what it is for.
const FILL: &str = "cat /dev/zero > /var/lib/tideover/images/filler 2>/dev/null || true";
/// Memory of the program, MiB.
const MEMORY: usize = 48;
/// Processes, of which it is one: so many that all of them are bound to one processor in the freeze.
const PROCESSES: usize = 12;
/// A quota that is more than one thread can use.
const CPUS: &str = "1500m";

/// What the kernel knows of the pod's processes, once two looks have found the same.
pub(super) fn settled(pod: &Pod) -> Result<Insides> {
    let mut before = None;
    until("the processes to be as they stay", LIMIT, || {
        let now = Insides::of(pod)?;
        let same = before.as_ref() == Some(&now);
        before = Some(now.clone());
        Ok(same.then_some(now))
    })
}

/// Waits until the kernel knows the same of them as `before`: what followed their memory goes when they run already.
pub(super) fn unchanged(pod: &Pod, before: &Insides) -> Result<()> {
    let mut differences = Vec::new();
    let same = until_true("the processes to be as before", LIMIT, || {
        differences = before.differences(&Insides::of(pod)?);
        Ok(differences.is_empty())
    });
    same.map_err(|error| error.context(format!("what is different: {differences:#?}")))
}

struct Source {
    cluster: &'static Cluster,
    sandbox: Sandbox,
    collector: Collector,
    pod: Pod,
    insides: Insides,
    quotas: cpu_limits::Quotas,
}

impl Source {
    fn start(name: &str, policy: &str) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let collector = Collector::listen(cluster.host_address())?;
        sandbox.apply(&manifests::policy("ticker", "ticker", &format!("  migration: {policy}\n")))?;
        let deployment = Ticker { mib: MEMORY, collector: collector.address() }.deployment("ticker");
        let deployment = manifests::with_processes(&manifests::with_checked_memory(&deployment), PROCESSES);
        sandbox.apply(&manifests::with_cpu_limit(&deployment, CPUS))?;
        let pod = sandbox.ready_pod("ticker")?;
        until_true("ticks", LIMIT, || Ok(collector.account().newest > 500))?;
        let (insides, quotas) = (settled(&pod)?, cpu_limits::quotas(cluster, &pod)?);
        ensure!(quotas.are_set(), "the container or its pod has no quota: {quotas:?}");
        Ok(Self { cluster, sandbox, collector, pod, insides, quotas })
    }

    /// It runs on, by itself, and no trace of the attempt is in it.
    fn runs_on_as_before(self) -> Result<()> {
        let after = self.sandbox.ready_pod("ticker")?;
        ensure!(after.uid == self.pod.uid && after.restarts == 0, "{:?}, then {after:?}", self.pod);
        unchanged(&self.pod, &self.insides)?;
        cpu_limits::become_as_before(self.cluster, &after, &self.quotas)?;
        let newest = self.collector.account().newest;
        // By then it has looked at each page of its memory, and would have ended itself.
        let all = MEMORY as u64 * 256 / 32 + 500;
        until_true("the ticker to go on", LIMIT, || Ok(self.collector.account().newest > newest + all))?;
        let account = self.collector.account();
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        remains::are_gone(self.cluster, LIMIT)?;
        self.sandbox.passed()
    }
}

#[test]
fn a_roll_back_from_the_freeze_leaves_nothing_in_the_source() -> Result<()> {
    let source = Source::start("rolled-back", "{maxAttempts: 1}")?;
    let changed = Changed::new(source.cluster, &source.pod.node, PROGRAM_AWAY, PROGRAM_BACK)?;
    source.sandbox.create(&migration::manifest("move", &source.pod.name))?;
    let ended = migration::ended(&source.sandbox, &source.pod.name, LIMIT)?;
    drop(changed);
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let timings = &ended["status"]["source"]["timings"];
    ensure!(timings["freezeMillis"].as_f64() > Some(0.0), "it was never frozen: {}", ended["status"]["source"]);
    ensure!(ended["status"]["source"]["engine"] == "WriteProtect", "its memory was not followed");
    source.runs_on_as_before()
}

#[test]
fn a_disk_that_fills_up_while_memory_lands_costs_the_attempt_and_leaves_nothing_in_the_source() -> Result<()> {
    let source = Source::start("disk-fills-up", "{maxAttempts: 1, preCopy: {bandwidthLimit: 4Mi}}")?;
    let watch = Watch::start(&source.sandbox)?;
    let changed = Changed::new(source.cluster, &source.pod.node, SMALL_DISK, NO_DISK)?;
    let mut under_way = UnderWay::begin(source.cluster, &source.sandbox, &watch, "move", &source.pod.name)?;
    let target =
        under_way.seen_in(Moment::Copying, |object| object["status"]["targetNode"].as_str().map(str::to_owned))?;
    let target = target.ok_or_else(|| anyhow::anyhow!("no memory has landed"))?;
    source.cluster.node(&target)?.exec(["/bin/sh", "-c", FILL])?;
    let ended = migration::ended(&source.sandbox, &source.pod.name, LIMIT)?;
    drop(changed);
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let failure = &ended["status"]["failures"][0];
    let message = failure["message"].as_str().unwrap_or_default();
    ensure!(failure["reason"] == "TransferFailed" && message.contains("No space left on device"), "{failure}");
    ensure!(ended["status"]["source"]["timings"].is_null(), "it was frozen: {}", ended["status"]["source"]);
    source.runs_on_as_before()
}
