//! Pods with several containers: all of them move at one cut, or none does.

use anyhow::{Context, Result, bail, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::manifests::{self, Member, Ticker};
use e2e::scenario::moment::Moment;
use e2e::scenario::sandbox::Pod;
use e2e::scenario::under_way::UnderWay;
use e2e::scenario::wait::until_true;
use e2e::scenario::watch::Watch;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, remains};
use serde_json::Value;

use super::failed_restore::{Changed, PROGRAM_AWAY, PROGRAM_BACK};
use super::killed::strike::{Who, strike};
use super::rolled_back::{settled, unchanged};

/// How many moves a moment may take until a strike in it is proven.
const TRIES: usize = 6;
/// Memory of each ticker where a moment of the freeze must last, MiB.
const MEMORY: usize = 64;

/// A container: its name, the one whose count it looks at, and whether it is a sidecar. They are created in this order.
pub(super) type Names = (&'static str, &'static str, bool);

pub(super) const TWO: [Names; 2] = [("beside", "ticker", false), ("ticker", "beside", false)];
/// Nobody looks at `beside`: it may begin anew.
pub(super) const THREE: [Names; 3] =
    [("proxy", "ticker", true), ("beside", "ticker", false), ("ticker", "proxy", false)];
/// The same of two.
const APART: [Names; 2] = [("beside", "ticker", false), ("ticker", "ticker", false)];

/// Tickers in one pod, each with a collector.
pub(super) struct Several {
    pub(super) cluster: &'static Cluster,
    pub(super) sandbox: Sandbox,
    members: Vec<(Member, Collector)>,
    pub(super) pod: Pod,
}

impl Several {
    pub(super) fn start(
        name: &str,
        policy: &str,
        mib: usize,
        names: &[Names],
        manifest: fn(&str) -> String,
    ) -> Result<Self> {
        let cluster = Cluster::ready()?;
        let sandbox = Sandbox::new(cluster.kube(), name)?;
        let member = |&(container, watches, sidecar): &Names| {
            let collector = Collector::listen(cluster.host_address())?;
            let ticker = Ticker { mib, collector: collector.address() };
            Ok((Member { container, watches, sidecar, ticker }, collector))
        };
        let members: Vec<_> = names.iter().map(member).collect::<Result<_>>()?;
        sandbox.apply(&manifests::policy("several", "several", policy))?;
        let all: Vec<_> = members.iter().map(|(member, _)| *member).collect();
        sandbox.apply(&manifest(&manifests::several("several", &all)))?;
        let pod = sandbox.ready_pod("several")?;
        let several = Self { cluster, sandbox, members, pod };
        several.go_on(2_000)?;
        Ok(several)
    }

    /// Waits until each ticker has done so many ticks more, and sees that it is the one that it was.
    pub(super) fn go_on(&self, ticks: u64) -> Result<()> {
        let each = self.members.iter().try_for_each(|(member, _)| self.goes_on(member.container, ticks, 1));
        each.map_err(|error| error.context(self.told()))
    }

    /// What is known of all of them: whose count went back shows in what another one says.
    fn told(&self) -> String {
        let pods = self.sandbox.pods("several").unwrap_or_default();
        let told = |(member, collector): &(Member, Collector)| {
            let container = member.container;
            let last = |pod: &Pod| self.sandbox.run(&["logs", &pod.name, "-c", container, "--previous", "--tail=5"]);
            let words: Vec<_> = pods.iter().map(last).collect();
            format!("{container}: {:?}, and before its last start it said {words:?}\n", collector.account())
        };
        self.members.iter().map(told).collect()
    }

    /// The same of one that was started cold so many times.
    fn goes_on(&self, container: &str, ticks: u64, starts: usize) -> Result<()> {
        let collector = self.collector(container)?;
        let before = collector.account().ticks;
        until_true(format!("ticks of {container}"), LIMIT, || Ok(collector.account().ticks > before + ticks))?;
        let account = collector.account();
        // A cut that was not one for all makes one see another's count go back, end itself, and start again.
        ensure!(account.starts.len() == starts && account.repeated == 0, "{container}: {account:?}");
        Ok(())
    }

    fn collector(&self, container: &str) -> Result<&Collector> {
        let found = self.members.iter().find(|(member, _)| member.container == container);
        found.map(|(_, collector)| collector).with_context(|| format!("no container {container}"))
    }

    /// Drains the pod's node, and sees that all of it goes on elsewhere.
    pub(super) fn moves_by_drain(&self) -> Result<Pod> {
        let drained = Drain::of_node(self.sandbox.kube(), &self.pod.node, &[])?.finish(LIMIT)?;
        ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);
        let moved = migration::succeeded(&self.sandbox, &self.pod.name, LIMIT)?;
        let after = self.is_moved(&self.pod, &moved)?;
        for (member, collector) in &self.members {
            let account = collector.account();
            ensure!(account.senders.len() == 2, "ticks of {} came from {:?}", member.container, account.senders);
            ensure!(account.monotonic_back == 0, "CLOCK_MONOTONIC went back by {} ns", account.monotonic_back);
        }
        self.sandbox.kube().run(&["uncordon", &self.pod.node])?;
        Ok(after)
    }

    /// What was restored below a stand-in is frozen, dumped and ended like any other.
    pub(super) fn moves_again(&self, before: &Pod) -> Result<Pod> {
        self.sandbox.create(&migration::manifest("again", &before.name))?;
        let moved = migration::succeeded(&self.sandbox, &before.name, LIMIT)?;
        self.is_moved(before, &moved)
    }

    fn is_moved(&self, before: &Pod, moved: &Value) -> Result<Pod> {
        let after = self.sandbox.ready_pod("several")?;
        ensure!(after.node != before.node && after.restarts == 0, "{before:?}, then {after:?}");
        self.go_on(2_000)?;
        let containers: Vec<_> = self.members.iter().map(|(member, _)| member.container).collect();
        ensure!(moved["status"]["containers"] == serde_json::json!(containers), "{}", moved["status"]["containers"]);
        println!("frozen: {}", moved["status"]["source"]["timings"]);
        Ok(after)
    }

    /// Ends the application of one container. A program that supervises it is left alone.
    fn end(&self, pod: &Pod, container: &str) -> Result<()> {
        let line = format!("pkill -KILL -f -- '^/probe .*[-]-ours=[a-z/]*/{container}'");
        self.cluster.node(&pod.node)?.exec(["/bin/sh", "-ec", &line])?;
        Ok(())
    }

    /// Waits until nothing is left on the nodes but what runs, and nothing of that once the pod is deleted.
    pub(super) fn leaves_nothing(self) -> Result<()> {
        remains::are_gone(self.cluster, LIMIT)?;
        self.sandbox.run(&["delete", "deployments,statefulsets", "--all"])?;
        nobody_stands_in(self.cluster)?;
        self.sandbox.passed()
    }
}

fn nobody_stands_in(cluster: &Cluster) -> Result<()> {
    until_true("nobody to stand in for a container", LIMIT, || Ok(remains::processes(cluster, "criu-shim")? == 0))
}

fn as_it_is(manifest: &str) -> String {
    manifest.to_owned()
}

/// The counts are in what all containers of a pod have at `/dev/shm`.
fn in_shared_memory(manifest: &str) -> String {
    manifest.replace("=/shared/", "=/dev/shm/")
}

#[test]
fn two_containers_go_on_at_one_cut_where_a_drain_moves_their_pod() -> Result<()> {
    let several = Several::start("several", "", 24, &TWO, as_it_is)?;
    let after = several.moves_by_drain()?;
    let again = several.moves_again(&after)?;
    // containerd knows the container that was created first by a process that only stands in its place: its end must be seen, its
    // programs must be reached, and a restart must be like any other.
    let inside = several.sandbox.run(&["exec", &again.name, "-c", "beside", "--", "/probe", "--help"])?;
    ensure!(inside.contains("tick"), "another program was reached: {inside}");
    several.end(&again, "beside")?;
    let starts = || Ok::<_, anyhow::Error>(several.collector("beside")?.account().starts.len());
    until_true("the container to be started again", LIMIT, || Ok(starts()? > 1))?;
    until_true("kubelet to count that", LIMIT, || Ok(several.sandbox.ready_pod("several")?.restarts > 0))?;
    several.leaves_nothing()
}

#[test]
fn a_sidecar_and_two_containers_under_supervision_go_on_at_one_cut() -> Result<()> {
    let rules = "  restart: {policy: Always, delay: 20ms}\n";
    let several = Several::start("sidecar", rules, 8, &THREE, in_shared_memory)?;
    let after = several.moves_by_drain()?;
    several.end(&after, "beside")?;
    until_true("the next run", LIMIT, || Ok(several.collector("beside")?.account().starts.len() == 2))?;
    several.goes_on("beside", 1_000, 2)?;
    for container in ["proxy", "ticker"] {
        several.goes_on(container, 1_000, 1)?;
    }
    let restarts = several.sandbox.ready_pod("several")?.restarts;
    ensure!(restarts == 0, "kubelet has started {restarts} containers again");
    several.leaves_nothing()
}

#[test]
fn a_limit_for_each_container_that_all_of_them_exceed_together_is_not_in_the_way() -> Result<()> {
    let several = Several::start("several-limit", "", 24, &TWO, as_it_is)?;
    // Each asks for 40 MiB. The pod is from before, so that its containers have got no limits by it.
    several.sandbox.apply(
        "\
apiVersion: v1
kind: LimitRange
metadata: {name: each}
spec: {limits: [{type: Container, max: {memory: 72Mi}}]}
",
    )?;
    several.moves_by_drain()?;
    several.leaves_nothing()
}

#[test]
fn a_restore_that_fails_for_one_container_is_taken_back_for_all() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "several-back")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("ticker", "ticker", "  migration: {maxAttempts: 1}\n"))?;
    let ticker = Ticker { mib: 24, collector: collector.address() };
    sandbox.apply(&manifests::with_store(&ticker.deployment("ticker")))?;
    let pod = sandbox.ready_pod("ticker")?;
    collector.goes_on(1_000)?;
    let insides = settled(&pod)?;
    // redis is rebuilt, and the ticker's program is not there.
    let changed = Changed::new(cluster, &pod.node, PROGRAM_AWAY, PROGRAM_BACK)?;
    sandbox.create(&migration::manifest("move", &pod.name))?;
    let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
    drop(changed);
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let message = migration::message(&ended);
    ensure!(message.contains("container ticker: ") && message.contains("probe"), "it is not named: {message}");
    let timings = &ended["status"]["source"]["timings"];
    ensure!(timings["freezeMillis"].as_f64() > Some(0.0), "it was never frozen: {}", ended["status"]["source"]);
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.uid == pod.uid && after.restarts == 0, "{pod:?}, then {after:?}");
    unchanged(&pod, &insides)?;
    collector.goes_on(1_000)?;
    until_true("one pod to be left", LIMIT, || Ok(sandbox.pods("ticker")?.len() == 1))?;
    remains::are_gone(cluster, LIMIT)?;
    nobody_stands_in(cluster)?;

    sandbox.create(&migration::manifest("again", &pod.name))?;
    migration::succeeded(&sandbox, &pod.name, LIMIT)?;
    let moved = sandbox.ready_pod("ticker")?;
    ensure!(moved.node != pod.node && moved.restarts == 0, "{pod:?}, then {moved:?}");
    collector.goes_on(1_000)?;
    let pong = sandbox.run(&["exec", &moved.name, "-c", "store", "--", "redis-cli", "ping"])?;
    ensure!(pong.trim() == "PONG", "redis says {pong}");
    sandbox.passed()
}

#[test]
fn an_agent_that_dies_in_the_freeze_of_several_containers_costs_none_of_them_its_state() -> Result<()> {
    let policy = "  migration: {retryDelay: 1s}\n";
    let several = Several::start("several-killed", policy, MEMORY, &TWO, manifests::with_scattered_memory)?;
    let watch = Watch::start(&several.sandbox)?;
    let mut moves = (1..).map(|number| format!("move-{number}"));
    for (who, moment) in [
        (Who::SourceAgent, Moment::Dumping),
        (Who::SourceAgent, Moment::Restoring),
        (Who::TargetAgent, Moment::Restoring),
        (Who::TargetAgent, Moment::Committed),
    ] {
        let mut proven = false;
        for name in moves.by_ref().take(TRIES) {
            let pod = several.sandbox.ready_pod("several")?;
            let outcome = strike(several.cluster, &several.sandbox, &watch, &name, &pod, (who, moment))?;
            let status = &outcome.object["status"];
            println!(
                "{who:?} at {moment:?}: {}; attempt {} {}: {}",
                if outcome.proven { "struck" } else { "too late" },
                status["attempt"],
                status["phase"].as_str().unwrap_or_default(),
                migration::message(&outcome.object),
            );
            several.sandbox.ready_pod("several")?;
            several.go_on(500)?;
            until_true("one pod to be left", LIMIT, || Ok(several.sandbox.pods("several")?.len() == 1))?;
            proven = outcome.proven;
            if proven {
                break;
            }
        }
        if !proven {
            bail!("in {TRIES} moves {who:?} was never killed in {moment:?}");
        }
    }
    several.leaves_nothing()
}

#[test]
fn a_container_that_ends_while_its_memory_is_copied_costs_an_attempt_and_the_others_nothing() -> Result<()> {
    // The first round takes eight seconds.
    let policy = "  migration: {maxAttempts: 9, retryDelay: 1s, preCopy: {bandwidthLimit: 16Mi}}\n";
    let several = Several::start("several-crash", policy, MEMORY, &APART, as_it_is)?;
    let watch = Watch::start(&several.sandbox)?;
    let pod = &several.pod;
    let mut under_way = UnderWay::begin(several.cluster, &several.sandbox, &watch, "move", &pod.name)?;
    under_way.seen_in(Moment::Copying, |_| Some(()))?.context("no memory was copied before the handover")?;
    several.end(pod, "beside")?;
    let moved = migration::succeeded(&several.sandbox, &pod.name, LIMIT)?;
    ensure!(moved["status"]["attempt"].as_u64() > Some(1), "no attempt has failed for it");
    let failure = moved["status"]["failures"][0]["message"].as_str().unwrap_or_default();
    ensure!(failure.contains("container beside"), "it is not named: {}", moved["status"]["failures"]);
    let after = several.sandbox.ready_pod("several")?;
    ensure!(after.node != pod.node && after.restarts == 0, "{pod:?}, then {after:?}");
    several.goes_on("beside", 1_000, 2)?;
    several.goes_on("ticker", 1_000, 1)?;
    several.leaves_nothing()
}

#[test]
fn a_unix_socket_from_one_container_to_another_is_named_and_nothing_is_frozen() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "several-socket")?;
    sandbox.apply(&manifests::policy("store", "store", "  migration: {maxAttempts: 1}\n"))?;
    sandbox.apply(&manifests::store_by_socket("store"))?;
    let pod = sandbox.ready_pod("store")?;
    let ask =
        ["exec", &pod.name, "-c", "store", "--", "redis-cli", "-s", "/shared/redis.sock", "pubsub", "numsub", "news"];
    // The client is started again until it finds the socket.
    until_true("somebody to listen", LIMIT, || Ok(sandbox.run(&ask).is_ok_and(|said| said.trim().ends_with('1'))))?;
    sandbox.create(&migration::manifest("move", &pod.name))?;
    let ended = migration::ended(&sandbox, &pod.name, LIMIT)?;
    ensure!(ended["status"]["phase"] == "Failed", "the move is {}", ended["status"]["phase"]);
    let message = migration::message(&ended);
    let said = "is a unix socket that is connected to a process outside of the container";
    ensure!(message.contains("container store: ") && message.contains(said), "it is not named: {message}");
    ensure!(!migration::went_through(&ended, "Handover"), "it was found too late: {}", ended["status"]["phases"]);
    let after = sandbox.ready_pod("store")?;
    ensure!(after.uid == pod.uid, "{pod:?}, then {after:?}");
    sandbox.passed()
}
