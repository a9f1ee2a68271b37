//! Why an application is started again, and by whom: after a hang, by kubelet where the rules have given up, and while nobody
//! is there to tell of it.

use anyhow::{Context, Result, ensure};
use e2e::scenario::manifests::{self, HANG, Ticker};
use e2e::scenario::wait::until_true;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, until};

use super::restart::{crash, for_each, runs_again, shell, ticker, told};

/// Starts that the crash loop below has before the rules give up.
const BURST: usize = 3;

#[test]
fn a_hang_is_ended_by_the_watchdog_and_answered_in_the_same_container() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-hang")?;
    let collector = Collector::listen(cluster.host_address())?;
    // The watchdog alone: were the SIGABRT with which it ends a program taken for the cause, nobody would start it again.
    let rules = "  restart: {policy: OnWatchdog, delay: 20ms, type: Notify, watchdog: 5s}\n";
    sandbox.apply(&manifests::policy("ticker", "ticker", rules))?;
    let deployment = Ticker { mib: 8, collector: collector.address() }.deployment("ticker");
    sandbox.apply(&manifests::with_watchdog(&deployment))?;
    let pod = sandbox.ready_pod("ticker")?;
    // Longer than the watchdog's time: it is satisfied by what the program says.
    until_true("ticks", LIMIT, || Ok(collector.account().newest > 6_000))?;
    ensure!(collector.account().starts.len() == 1, "a program that answers was ended");
    for_each(cluster, &pod, "probe", &format!("install -o 1000 /dev/null /proc/$pid/root{HANG}"))?;
    runs_again(&sandbox, &collector, &pod, 2)?;
    let events =
        until("an Event", LIMIT, || Ok(Some(told(&sandbox, &pod, "RestartedInPlace")?).filter(|it| !it.is_empty())))?;
    ensure!(events.len() == 1, "{events:?}");
    for part in ["ticker did not answer the watchdog (SIGABRT", "after 20ms", "restart 1, by policy"] {
        ensure!(events[0].contains(part), "the Event says {:?}, not {part:?}", events[0]);
    }
    // Both runs have written to the one file: the writable layer is the one that it was.
    let log = for_each(cluster, &pod, "probe", "cat /proc/$pid/root/tmp/ticks")?;
    ensure!(log.lines().filter(|line| *line == "tick 0").count() == 2, "the file has {log:?}");
    sandbox.passed()
}

#[test]
fn a_crash_loop_that_was_given_up_is_kubelets_and_begins_anew_under_the_same_rules() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::beside(cluster.kube(), "restart-kubelet")?;
    let rules = format!("  restart: {{policy: Always, delay: 0s, startLimit: {{interval: 1h, burst: {BURST}}}}}\n");
    sandbox.apply(&manifests::policy("loop", "loop", &rules))?;
    let script =
        format!("echo a run | tee -a /data/runs; [ $(wc -l < /data/runs) -gt {BURST} ] && exec sleep 1000000; exit 7");
    let volume = "volumeMounts: [{name: data, mountPath: /data}]\n  volumes: [{name: data, emptyDir: {}}]";
    sandbox.create(&shell("loop", &script, volume).replace("restartPolicy: Never", "restartPolicy: Always"))?;
    let status = until("kubelet to start it again", LIMIT, || {
        let pod = sandbox.get(&["pod", "loop"])?.context("no pod")?;
        let status = pod["status"]["containerStatuses"][0].clone();
        Ok(Some(status).filter(|status| status["restartCount"] == 1 && status["state"]["running"].is_object()))
    })?;
    let last = &status["lastState"]["terminated"];
    ensure!(last["exitCode"] == 7 && last["reason"] == "Error", "kubelet has seen {last}");
    let first = sandbox.run(&["logs", "loop", "--previous"])?;
    ensure!(first.lines().filter(|line| *line == "a run").count() == BURST, "kubelet's first container said {first:?}");
    let pod = sandbox.ready_pod("loop")?;
    let comm = |pid: u32| sandbox.run(&["exec", "loop", "--", "cat", &format!("/proc/{pid}/comm")]);
    ensure!(comm(1)?.trim() == "init", "process 1 is {:?}", comm(1)?);
    until_true("the Event of the last run", LIMIT, || Ok(told(&sandbox, &pod, "RestartsGivenUp")?.len() == 1))?;

    // One more start than the limit allows, were its starts counted together with those before kubelet's.
    crash(cluster, &pod, "sleep")?;
    until_true("the Event of a restart in the second container", LIMIT, || {
        let events = told(&sandbox, &pod, "RestartedInPlace")?;
        Ok(events.iter().any(|event| event.contains("SIGABRT") && event.contains("restart 1, by policy")))
    })?;
    let after = sandbox.ready_pod("loop")?;
    ensure!(after.restarts == 1, "kubelet has started it {} times", after.restarts);
    sandbox.passed()
}

#[test]
fn restarts_while_agents_come_and_go_are_told_once_each() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "restart-agent")?;
    let collector = Collector::listen(cluster.host_address())?;
    let rules = "  restart: {policy: Always, delay: 0s, startLimit: {burst: 0}}\n";
    let pod = ticker(&sandbox, &collector, rules)?;
    for starts in [2, 4] {
        until("an agent", LIMIT, || Ok(cluster.agent(&pod.node).ok()))?.kill()?;
        for starts in starts..starts + 2 {
            crash(cluster, &pod, "probe")?;
            runs_again(&sandbox, &collector, &pod, starts)?;
        }
        until_true("all Events", LIMIT, || Ok(told(&sandbox, &pod, "RestartedInPlace")?.len() >= starts))?;
    }
    let events = told(&sandbox, &pod, "RestartedInPlace")?;
    for restart in 1..=4 {
        let number = format!("(restart {restart}, ");
        ensure!(events.iter().filter(|event| event.contains(&number)).count() == 1, "{restart} in {events:?}");
    }
    ensure!(events.len() == 4, "{events:?}");
    sandbox.passed()
}
