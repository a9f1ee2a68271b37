//! Pods whose controller makes another once they are gone, and not before: those of StatefulSets and Jobs.

use anyhow::{Context, Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::wait::until_true;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains};

/// Memory of the ticker, MiB.
const MEMORY: usize = 64;
/// Ticks in which it has looked at all of that, and some more.
const ALL_OF_IT: u64 = MEMORY as u64 * 256 / 64 + 1_000;

/// A ticker with files in an emptyDir, owned by a controller.
struct Owned {
    cluster: &'static Cluster,
    sandbox: Sandbox,
    collector: Collector,
    pod: Pod,
}

impl Owned {
    fn start(name: &str, manifest: fn(Ticker, &str) -> String) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let collector = Collector::listen(cluster.host_address())?;
        sandbox.apply(&manifests::policy(name, name, ""))?;
        sandbox.apply(&manifest(Ticker { mib: MEMORY, collector: collector.address() }, name))?;
        let pod = sandbox.ready_pod(name)?;
        let owned = Self { cluster, sandbox, collector, pod };
        owned.goes_on(2_500)?;
        Ok(owned)
    }

    /// Waits for so many ticks more, of the one program that was ever started.
    fn goes_on(&self, ticks: u64) -> Result<()> {
        let begun = self.collector.account().newest;
        until_true("ticks", LIMIT, || {
            let account = self.collector.account();
            ensure!(account.starts.len() < 2, "it began anew: {account:?}");
            Ok(account.newest > begun + ticks)
        })?;
        let account = self.collector.account();
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        Ok(())
    }

    /// A file in the volume of the pod.
    fn path(pod: &Pod, file: &str) -> String {
        format!("/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/data/{file}", pod.uid)
    }

    fn read(&self, pod: &Pod, file: &str) -> Result<Vec<u8>> {
        Ok(self.cluster.node(&pod.node)?.exec(["cat", &Self::path(pod, file)])?.stdout)
    }

    /// Drains the pod's node without force, and sees that all of it goes on elsewhere, in the pod that is returned.
    fn moves_by_drain(&self) -> Result<Pod> {
        let app = self.pod_label();
        let seed = self.read(&self.pod, "seed")?;
        ensure!(seed.len() == 4 << 20, "the file has {} bytes", seed.len());
        let last = self.collector.account().newest;
        let drained = Drain::of_node(self.sandbox.kube(), &self.pod.node, &[])?.finish(LIMIT)?;
        ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

        let after = self.sandbox.ready_pod(app)?;
        ensure!(after.uid != self.pod.uid && after.node != self.pod.node, "{:?}, then {after:?}", self.pod);
        ensure!(after.restarts == 0, "the container was restarted {} times", after.restarts);
        self.goes_on(ALL_OF_IT)?;
        let account = self.collector.account();
        ensure!(account.senders.len() == 2, "ticks came from {:?}", account.senders);
        ensure!(account.monotonic_back == 0, "CLOCK_MONOTONIC went back by {} ns", account.monotonic_back);

        // The init container has made another on the target, before the state came.
        ensure!(self.read(&after, "seed")? == seed, "another file is there than the one that was");
        let log = String::from_utf8(self.read(&after, "ticks")?).context("the log")?;
        // The last line may be being written.
        let (log, _) = log.rsplit_once('\n').unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let whole = lines.iter().zip(0_u64..).all(|(line, second)| *line == format!("tick {}", second * 1_000));
        ensure!(whole && lines.len() as u64 > last / 1_000 + 1, "a file of before the move does not go on: {log}");

        let moved = migration::succeeded(&self.sandbox, &self.pod.name, LIMIT)?;
        let status = &moved["status"];
        ensure!(status["strategy"] == "DeleteFirst", "the strategy is {}", status["strategy"]);
        ensure!(migration::went_through(&moved, "Rehearsing"), "the restore was not rehearsed: {status}");
        ensure!(status["source"]["engine"] == "WriteProtect", "memory was copied in the freeze: {}", status["source"]);
        println!("frozen: {} {}", status["source"]["timings"], status["target"]["timings"]);
        println!("the longest gap: {} ms", account.longest_gap / 1_000_000);
        Ok(after)
    }

    fn pod_label(&self) -> &str {
        self.sandbox.namespace().trim_start_matches("e2e-")
    }
}

#[test]
fn a_drain_moves_a_stateful_sets_pod_with_its_name_memory_and_files() -> Result<()> {
    let owned = Owned::start("same-name-set", Ticker::stateful_set)?;
    ensure!(owned.pod.name == "same-name-set-0", "the pod is {}", owned.pod.name);
    let after = owned.moves_by_drain()?;
    ensure!(after.name == owned.pod.name, "{} became {}", owned.pod.name, after.name);
    until_true("the StatefulSet to have its pod", LIMIT, || {
        let set = owned.sandbox.get(&["statefulset", "same-name-set"])?.context("the StatefulSet")?;
        Ok(set["status"]["readyReplicas"] == 1 && set["status"]["replicas"] == 1)
    })?;
    // What was restored under the name is moved once more like any other.
    owned.sandbox.run(&["uncordon", &owned.pod.node])?;
    owned.sandbox.create(&migration::manifest("again", &after.name))?;
    migration::succeeded(&owned.sandbox, &after.name, LIMIT)?;
    let again = owned.sandbox.ready_pod("same-name-set")?;
    ensure!(again.name == after.name && again.node != after.node && again.restarts == 0, "{after:?}, then {again:?}");
    owned.goes_on(ALL_OF_IT)?;
    remains::are_gone(owned.cluster, LIMIT)?;
    owned.sandbox.passed()
}

#[test]
fn a_jobs_pod_that_a_drain_moves_ends_with_success_and_is_counted_once() -> Result<()> {
    let owned = Owned::start("moved-job", Ticker::job)?;
    let after = owned.moves_by_drain()?;
    let job =
        || Ok::<_, anyhow::Error>(owned.sandbox.get(&["job", "moved-job"])?.context("the Job")?["status"].clone());
    // With a backoffLimit of 0 one failure would be its end.
    until_true("the Job to count its pod", LIMIT, || {
        let now = job()?;
        ensure!(now["failed"].is_null() && now["succeeded"].is_null(), "{now}");
        Ok(now["active"] == 1)
    })?;

    let end = Owned::path(&after, "end");
    owned.cluster.node(&after.node)?.exec(["touch", &end])?;
    until_true("the Job to end", LIMIT, || {
        let ended = job()?;
        ensure!(ended["failed"].is_null(), "a failure was counted: {ended}");
        Ok(ended["completionTime"].is_string())
    })?;
    let ended = job()?;
    ensure!(ended["succeeded"] == 1 && ended["failed"].is_null(), "{ended}");
    let pods = owned.sandbox.pods("moved-job")?;
    ensure!(pods.len() == 1 && pods[0].uid == after.uid, "{after:?}, then {pods:?}");
    let account = owned.collector.account();
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
    remains::are_gone(owned.cluster, LIMIT)?;
    owned.sandbox.passed()
}
