//! Restarts in place: in the same container, by the policy's rules, and told.

use anyhow::{Context, Result, ensure};
use e2e::scenario::cluster::NAMESPACE;
use e2e::scenario::manifests::{self, Ticker};
use e2e::scenario::sandbox::Pod;
use e2e::scenario::wait::until_true;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, migration, until};
use serde_json::Value;

/// Ends every process called `comm` of the pod, as if it had crashed. Not by SIGSEGV: Rust's runtime takes the first one for a
/// fault that will come again, and goes on.
pub(super) fn crash(cluster: &Cluster, pod: &Pod, comm: &str) -> Result<()> {
    for_each(cluster, pod, comm, "kill -ABRT $pid").map(drop)
}

/// Runs a line of shell on the pod's node for every process `$pid` of it that is called `comm`; what it prints.
pub(super) fn for_each(cluster: &Cluster, pod: &Pod, comm: &str, line: &str) -> Result<String> {
    let script = format!(
        "for pid in $(find /sys/fs/cgroup/ -path '*pod{}*' -name cgroup.procs -exec cat {{}} + | sort -u); do \
         [ \"$(cat /proc/$pid/comm)\" != {comm} ] || {line}; done",
        pod.uid
    );
    let said = cluster.node(&pod.node)?.exec(["/bin/sh", "-ec", &script])?.stdout;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// What Events with this reason say about the pod.
pub(super) fn told(sandbox: &Sandbox, pod: &Pod, reason: &str) -> Result<Vec<String>> {
    let selector = format!("--field-selector=involvedObject.uid={},reason={reason}", pod.uid);
    let list = sandbox.get(&["events", &selector])?.unwrap_or_default();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    Ok(items.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect())
}

pub(super) fn ticker(sandbox: &Sandbox, collector: &Collector, rules: &str) -> Result<Pod> {
    sandbox.apply(&manifests::policy("ticker", "ticker", rules))?;
    sandbox.apply(&Ticker { mib: 8, collector: collector.address() }.deployment("ticker"))?;
    let pod = sandbox.ready_pod("ticker")?;
    until_true("ticks", LIMIT, || Ok(collector.account().newest > 100))?;
    Ok(pod)
}

/// Waits until the program has been started `starts` times and goes on, and looks that kubelet knows of nothing.
pub(super) fn runs_again(sandbox: &Sandbox, collector: &Collector, pod: &Pod, starts: usize) -> Result<()> {
    until_true(format!("start {starts}"), LIMIT, || Ok(collector.account().starts.len() == starts))?;
    let ticks = collector.account().ticks;
    until_true("ticks after a restart", LIMIT, || Ok(collector.account().ticks > ticks + 100))?;
    let now = sandbox.ready_pod("ticker")?;
    ensure!((&now.uid, &now.ip, now.restarts) == (&pod.uid, &pod.ip, 0), "kubelet has had a part in it: {now:?}");
    Ok(())
}

#[test]
fn a_crash_is_answered_in_the_same_container_and_told() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart")?;
    let collector = Collector::listen(cluster.host_address())?;
    let pod = ticker(&sandbox, &collector, "  restart: {policy: OnFailure, delay: 20ms}\n")?;
    crash(cluster, &pod, "probe")?;
    runs_again(&sandbox, &collector, &pod, 2)?;
    let events =
        until("an Event", LIMIT, || Ok(Some(told(&sandbox, &pod, "RestartedInPlace")?).filter(|it| !it.is_empty())))?;
    ensure!(events.len() == 1, "{events:?}");
    for part in ["ticker ended (SIGABRT", "after 20ms", "restart 1, by policy"] {
        ensure!(events[0].contains(part), "the Event says {:?}, not {part:?}", events[0]);
    }
    sandbox.passed()
}

#[test]
fn a_crash_loop_is_given_up_with_the_applications_own_status() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-loop")?;
    let rules = "  restart: {policy: Always, delay: 0s, startLimit: {interval: 1h, burst: 3}}\n";
    sandbox.apply(&manifests::policy("loop", "loop", rules))?;
    sandbox.create(&shell("loop", "echo a run; exit 7", ""))?;
    let ended = until("the container to end", LIMIT, || {
        let pod = sandbox.get(&["pod", "loop"])?.context("no pod")?;
        let status = pod["status"]["containerStatuses"][0].clone();
        Ok(Some(status).filter(|status| status["state"]["terminated"].is_object()))
    })?;
    ensure!(ended["state"]["terminated"]["exitCode"] == 7, "kubelet has seen {ended}");
    let log = sandbox.log("loop")?;
    ensure!(log.lines().filter(|line| *line == "a run").count() == 3, "the log has {log:?}");
    let pod = sandbox.pods("loop")?.pop().context("no pod")?;
    until_true("the Event of the last run", LIMIT, || {
        let given_up = told(&sandbox, &pod, "RestartsGivenUp")?;
        Ok(matches!(given_up.as_slice(), [one] if one.contains("exit code 7") && one.contains("startLimit")))
    })?;
    ensure!(told(&sandbox, &pod, "RestartedInPlace")?.len() == 2, "two of three runs were followed by another");
    sandbox.passed()
}

#[test]
fn a_supervised_container_moves_and_a_crash_right_after_is_answered_on_the_target() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-move")?;
    let collector = Collector::listen(cluster.host_address())?;
    let before = ticker(&sandbox, &collector, "  restart: {policy: Always, delay: 20ms}\n")?;
    crash(cluster, &before, "probe")?;
    runs_again(&sandbox, &collector, &before, 2)?;
    sandbox.create(&migration::manifest("move", &before.name))?;
    migration::succeeded(&sandbox, &before.name, LIMIT)?;
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.node != before.node, "the pod is still on {}", after.node);
    ensure!(collector.account().starts.len() == 2, "the program was started again by the move");
    crash(cluster, &after, "probe")?;
    runs_again(&sandbox, &collector, &after, 3)?;
    // The number goes on: init's memory has moved with the application.
    until_true("the target's Event", LIMIT, || {
        Ok(told(&sandbox, &after, "RestartedInPlace")?.iter().any(|event| event.contains("restart 2, by policy")))
    })?;
    sandbox.passed()
}

/// The metrics of the agent on `node` that begin with `series`. The agent shares its node's network, where the API server reaches it.
pub(super) fn metrics(sandbox: &Sandbox, node: &str, series: &str) -> Result<Vec<String>> {
    let selector = "app.kubernetes.io/component=agent";
    let field = format!("--field-selector=spec.nodeName={node}");
    let list = sandbox.kube().get(&["pods", "--namespace", NAMESPACE, "--selector", selector, &field])?;
    let list = list.context("no agents")?;
    let agent = list["items"][0]["metadata"]["name"].as_str().context("no agent")?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{agent}:9465/proxy/metrics");
    let text = sandbox.kube().run(&["get", "--raw", &path])?;
    Ok(text.lines().filter(|line| line.starts_with(series)).map(str::to_owned).collect())
}

#[test]
fn a_restart_is_in_the_policys_status_and_in_the_metrics() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-status")?;
    let collector = Collector::listen(cluster.host_address())?;
    let pod = ticker(&sandbox, &collector, "  restart: {policy: OnFailure, delay: 20ms}\n")?;
    for restarts in 1..=2 {
        crash(cluster, &pod, "probe")?;
        runs_again(&sandbox, &collector, &pod, restarts + 1)?;
        let status = until("the policy's status", LIMIT, || {
            let policy = sandbox.get(&["protectedworkload", "ticker"])?.context("no policy")?;
            Ok(Some(policy["status"].clone()).filter(|status| status["restarts"] == restarts))
        })?;
        let known = &status["pods"][0]["restarts"];
        ensure!(known["count"] == restarts && known["container"] == "ticker", "{known}");
        let last =
            ["cause", "status", "outcome", "rule"].map(|field| known["last"][field].as_str().unwrap_or_default());
        ensure!(last == ["UncleanSignal", "SIGABRT", "Restart", "Policy"], "{known}");
        until_true("the metrics", LIMIT, || {
            let all = metrics(&sandbox, &pod.node, "tideover_restarts_total{")?;
            let ours: Vec<_> = all.into_iter().filter(|line| line.contains(&pod.name)).collect();
            let is_it = |line: &str| line.contains("UncleanSignal") && line.ends_with(&format!("}} {restarts}"));
            Ok(matches!(ours.as_slice(), [line] if is_it(line)))
        })?;
    }
    let annotated = sandbox.get(&["pod", &pod.name])?.context("no pod")?;
    let forged = sandbox.run(&["annotate", "--overwrite", "pod", &pod.name, "tideover.dev/restarts=none"]);
    ensure!(forged.is_err(), "a user may write what a node says");
    let after = sandbox.get(&["pod", &pod.name])?.context("no pod")?;
    ensure!(after["metadata"]["annotations"] == annotated["metadata"]["annotations"], "the pod says something else");
    sandbox.passed()
}

#[test]
fn start_limit_with_action_migrate_moves_the_pod_and_starts_there() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-limit")?;
    let collector = Collector::listen(cluster.host_address())?;
    // The rules for restarts ask for the move themselves.
    let rules = "  onMaintenance: {action: Ignore}\n  restart: {policy: Always, delay: 0s, startLimit: {interval: 1h, burst: 2, action: Migrate}}\n";
    let before = ticker(&sandbox, &collector, rules)?;
    crash(cluster, &before, "probe")?;
    runs_again(&sandbox, &collector, &before, 2)?;
    crash(cluster, &before, "probe")?;
    until_true("the pod to wait", LIMIT, || {
        Ok(told(&sandbox, &before, "RestartsGivenUp")?.iter().any(|event| event.contains("waits to be moved")))
    })?;
    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    ensure!(moved["spec"]["reason"] == "StartLimit", "{}", moved["spec"]);
    let after = sandbox.ready_pod("ticker")?;
    ensure!(after.node != before.node, "the pod is still on {}", after.node);
    runs_again(&sandbox, &collector, &after, 3)?;
    ensure!(migration::all(&sandbox)?.len() == 1, "it was asked for more than once");
    sandbox.passed()
}

#[test]
fn only_what_a_policy_with_rules_selects_runs_under_init() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-not")?;
    sandbox.apply(&manifests::policy("ruled", "ruled", "  restart: {policy: Always}\n"))?;
    sandbox.apply(&manifests::policy("unruled", "unruled", ""))?;
    let read_only = "securityContext: {readOnlyRootFilesystem: true, runAsUser: 1000}";
    for (name, first) in [("ruled", "init"), ("unruled", "sleep"), ("unprotected", "sleep")] {
        sandbox.create(&shell(name, "exec sleep 1000000", read_only))?;
        let pod = sandbox.ready_pod(name)?;
        let said = sandbox.run(&["exec", &pod.name, "--", "cat", "/proc/1/comm"])?;
        ensure!(said.trim() == first, "process 1 of {name} is {said:?}");
        let object: Value = sandbox.get(&["pod", &pod.name])?.context("no pod")?;
        let annotated = object["metadata"]["annotations"].get("tideover.dev/supervision").is_some();
        ensure!(annotated == (name == "ruled"), "{name}: {}", object["metadata"]["annotations"]);
    }
    sandbox.passed()
}

/// A pod `name` of a shell that runs `script`. `more` is YAML of the container.
pub(super) fn shell(name: &str, script: &str, more: &str) -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
    - name: shell
      image: lab/busybox:1
      imagePullPolicy: IfNotPresent
      command: [/bin/sh, -c, '{script}']
      {more}
"
    )
}
