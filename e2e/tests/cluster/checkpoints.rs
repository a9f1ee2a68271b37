//! Stored checkpoints: taken while the application runs, and gone back to when its start limit is hit.

use anyhow::{Context, Result, ensure};
use e2e::scenario::manifests;
use e2e::scenario::sandbox::Pod;
use e2e::scenario::wait::until_true;
use e2e::scenario::{Cluster, LIMIT, Sandbox, until};

use super::restart::{crash, metrics, told};

/// One run is allowed in three quarters of a minute, so that the second crash in a row is the last; and what ends sooner after a restore
/// than that poisons its checkpoint.
const RULES: &str = "  restart: {policy: Always, delay: 0s, startLimit: {interval: 45s, burst: 1, action: RestoreCheckpoint}}\n  \
                     checkpoint: {interval: 10s, keep: 2}\n";

/// A pod whose application has a name of its own in each run, and writes it to a volume and to its layer with a number that goes up.
const COUNTER: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: counter, labels: {app: counter}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: counter
      image: lab/busybox:1
      imagePullPolicy: IfNotPresent
      command: [/bin/sh, -c, 'run=$(cat /proc/sys/kernel/random/uuid); n=0; while :; do n=$((n+1)); echo $run $n > /data/new; mv /data/new /data/state; echo $run $n > /new; mv /new /state; sleep 0.1; done']
      volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
---
";

/// Name and number of the run, as both files say; none while they don't agree, or nothing runs.
fn state(sandbox: &Sandbox) -> Option<(String, u64)> {
    let said = sandbox.run(&["exec", "counter", "--", "cat", "/data/state", "/state"]).ok()?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let [run, number, same, _] = words.as_slice() else { return None };
    (run == same).then_some(((*run).to_owned(), number.parse().ok()?))
}

/// Waits for a run that `is` right, and that goes on.
fn running(sandbox: &Sandbox, what: &str, is: impl Fn(&str) -> bool) -> Result<(String, u64)> {
    let (run, first) = until(what, LIMIT, || Ok(state(sandbox).filter(|(run, _)| is(run))))?;
    until(format!("{what}, to go on"), LIMIT, || {
        Ok(state(sandbox).filter(|(now, number)| *now == run && *number > first + 2))
    })
}

fn stored(sandbox: &Sandbox, pod: &Pod) -> Result<u64> {
    let all = metrics(sandbox, &pod.node, "tideover_checkpoints_total{")?;
    let ours = all.into_iter().find(|line| line.contains("outcome=\"Stored\"") && line.contains(&pod.name));
    Ok(ours.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
}

/// Crashes the application twice in a row: once it is restarted in place, and then given up. `run` is the one that runs.
fn given_up(cluster: &Cluster, sandbox: &Sandbox, pod: &Pod, run: &str) -> Result<()> {
    crash(cluster, pod, "sh")?;
    let (next, _) = until("another run in place", LIMIT, || Ok(state(sandbox).filter(|(now, _)| now != run)))?;
    crash(cluster, pod, "sh")?;
    until_true("its end", LIMIT, || Ok(state(sandbox).is_none_or(|(now, _)| now != next)))
}

#[test]
fn what_is_given_up_goes_back_to_the_newest_checkpoint_then_to_an_older_one_then_starts_cold() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "checkpoints")?;
    sandbox.apply(&manifests::policy("counter", "counter", RULES))?;
    sandbox.create(COUNTER)?;
    let pod = sandbox.ready_pod("counter")?;
    let (run, _) = running(&sandbox, "the first run", |_| true)?;
    until_true("two checkpoints", LIMIT, || Ok(stored(&sandbox, &pod)? >= 2))?;
    let (same, before) = running(&sandbox, "a run after them", |_| true)?;
    ensure!(same == run, "a checkpoint has ended it");
    println!("{:?}", metrics(&sandbox, &pod.node, "tideover_checkpoint_pause_seconds{")?);

    given_up(cluster, &sandbox, &pod, &run)?;
    let (_, after) = running(&sandbox, "the first run again", |now| now == run)?;
    println!("it was at {before}, and goes on at {after}");
    let now = sandbox.ready_pod("counter")?;
    ensure!((&now.uid, now.restarts) == (&pod.uid, 1), "{now:?}");
    let newest = event(&sandbox, &pod, "RestoredFromCheckpoint", 1)?;

    given_up(cluster, &sandbox, &pod, &run)?;
    let (_, older) = running(&sandbox, "the first run from further back", |now| now == run)?;
    println!("and then at {older}");
    let next = event(&sandbox, &pod, "RestoredFromCheckpoint", 2)?;
    ensure!(next != newest, "the same checkpoint again: {next}");
    event(&sandbox, &pod, "CheckpointPoisoned", 1)?;

    given_up(cluster, &sandbox, &pod, &run)?;
    event(&sandbox, &pod, "NoGoodCheckpoint", 1)?;
    event(&sandbox, &pod, "CheckpointPoisoned", 2)?;
    running(&sandbox, "a cold start", |now| now != run)?;
    let restored = told(&sandbox, &pod, "RestoredFromCheckpoint")?;
    ensure!(restored.len() == 2, "{restored:?}");
    let policy = sandbox.get(&["protectedworkload", "counter"])?.context("no policy")?;
    until_true("the policy's status", LIMIT, || {
        let policy = sandbox.get(&["protectedworkload", "counter"])?.context("no policy")?;
        Ok(policy["status"]["pods"][0]["restarts"]["last"]["outcome"] == "RestoreCheckpoint")
    })
    .with_context(|| policy["status"].to_string())?;
    sandbox.passed()
}

/// Waits until there are `count` Events with this reason; the newest of them, by its sentence.
fn event(sandbox: &Sandbox, pod: &Pod, reason: &str, count: usize) -> Result<String> {
    let mut known = Vec::new();
    until_true(format!("{count} Events {reason}"), LIMIT, || {
        known = told(sandbox, pod, reason)?;
        Ok(known.len() == count)
    })?;
    println!("{known:?}");
    // Of two checkpoints, the one that is restored later is the older one.
    known.into_iter().min_by_key(|sentence| number(sentence)).context("no Event")
}

/// The number in "checkpoint N".
fn number(sentence: &str) -> Option<u64> {
    sentence.split("checkpoint ").nth(1)?.split(|word: char| !word.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn rules_that_would_have_nothing_to_go_back_to_are_refused() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "checkpoint-rules")?;
    for (rules, sentence) in [
        ("  restart: {startLimit: {action: RestoreCheckpoint}}\n", "needs spec.checkpoint"),
        ("  restart: {policy: Always}\n  checkpoint: {interval: 1m}\n", "is of use only with"),
        ("  checkpoint: {interval: 1m}\n", "is of use only with"),
        (
            "  restart: {startLimit: {action: RestoreCheckpoint, burst: 0}}\n  checkpoint: {interval: 1m}\n",
            "there must be a limit",
        ),
        ("  restart: {startLimit: {action: RestoreCheckpoint}}\n  checkpoint: {interval: 1s}\n", "between 10s and 24h"),
        (
            "  restart: {startLimit: {action: RestoreCheckpoint}}\n  checkpoint: {interval: 1m, keep: 0}\n",
            "between 1 and 16",
        ),
    ] {
        let refused = sandbox.apply(&manifests::policy("rules", "rules", rules));
        let why = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(why.contains(sentence), "{rules}: {why:?}");
    }
    sandbox.apply(&manifests::policy("rules", "rules", RULES))?;
    sandbox.passed()
}
