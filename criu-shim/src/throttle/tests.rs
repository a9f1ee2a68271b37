use super::fixture::{Beside, FOUND, LIFTED, Pod};
use super::*;
use crate::freezer::hierarchies;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd;
use std::time::Instant;

#[test]
fn a_limit_that_was_lifted_is_put_back() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    assert!(limits.records().is_empty(), "nothing is changed by looking");
    assert!(limits.plan_lift().expect("plan"));
    assert_eq!(pod.quotas(), FOUND, "a plan changes nothing");
    limits.carry_out().expect("lift");
    assert_eq!(pod.quotas(), LIFTED, "that of the pod too: it holds for the container as well");
    limits.restore().expect("restore");
    assert_eq!(pod.quotas(), FOUND);
    assert!(limits.records().is_empty(), "nothing is left to put back");
}

#[test]
fn what_is_not_limited_is_not_touched() {
    let Some(pod) = Pod::idle() else { return };
    pod.limit_container("-1");
    pod.limit_pod("-1");
    let mut limits = pod.limits();
    assert!(!limits.plan_lift().expect("plan"));
    assert!(limits.records().is_empty());
}

#[test]
fn a_guard_that_is_dropped_puts_back_what_it_found() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    limits.plan_lift().expect("plan");
    limits.carry_out().expect("lift");
    drop(limits);
    assert_eq!(pod.quotas(), FOUND);
}

#[test]
fn whoever_comes_after_a_kill_puts_back_what_was_found() {
    let Some(pod) = Pod::idle() else { return };
    for carried_out in [false, true] {
        let mut limits = pod.limits();
        limits.plan_lift().expect("plan");
        let written_down = serde_json::to_string(&limits.records()).expect("journal");
        if carried_out {
            limits.carry_out().expect("lift");
        }
        // As SIGKILL would.
        std::mem::forget(limits);
        let records: Vec<CpuRecord> = serde_json::from_str(&written_down).expect("journal");
        drop(CpuLimits::adopt(&records, Path::new("/")));
        assert_eq!(pod.quotas(), FOUND, "carried out: {carried_out}");
    }
}

#[test]
fn what_somebody_else_has_set_is_left() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    limits.plan_lift().expect("plan");
    limits.carry_out().expect("lift");
    pod.limit_container("15000");
    limits.restore().expect("restore");
    assert_eq!(pod.quotas(), ["15000", "20000"]);
}

#[test]
fn what_somebody_else_sets_between_plan_and_change_is_left() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    limits.plan_lift().expect("plan");
    pod.limit_container("15000");
    limits.carry_out().expect("lift");
    assert_eq!(pod.quotas(), ["15000", "-1"]);
    limits.restore().expect("restore");
    assert_eq!(pod.quotas(), ["15000", "20000"]);
}

#[test]
fn what_somebody_else_has_set_is_what_is_put_back_later() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    limits.plan_share(0.1, 50).expect("plan");
    limits.carry_out().expect("slow down");
    assert_eq!(pod.quotas(), ["5000", "20000"]);
    pod.limit_container("15000");
    limits.plan_lift().expect("plan");
    limits.carry_out().expect("lift");
    assert_eq!(pod.quotas(), LIFTED);
    limits.restore().expect("restore");
    assert_eq!(pod.quotas(), ["15000", "20000"]);
}

#[test]
fn steps_down_and_a_lift_after_them_are_undone_together() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    for (percent, quota) in [(80, "8000"), (40, "4000"), (10, "1000")] {
        limits.plan_share(0.1, percent).expect("plan");
        limits.carry_out().expect("slow down");
        assert_eq!(pod.quotas(), [quota, "20000"], "a share is the container's, not the pod's");
    }
    limits.plan_lift().expect("plan");
    limits.carry_out().expect("lift");
    assert_eq!(pod.quotas(), LIFTED);
    limits.restore().expect("restore");
    assert_eq!(pod.quotas(), FOUND);
}

#[test]
fn a_step_takes_the_place_of_a_lift_that_was_planned() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    limits.plan_lift().expect("plan");
    limits.plan_share(0.1, 50).expect("plan");
    limits.carry_out().expect("slow down");
    assert_eq!(pod.quotas(), ["5000", "20000"], "the pod's limit is not lifted before the freeze");
    let written_down = limits.records();
    limits.plan_lift().expect("plan");
    limits.carry_out().expect("lift");
    assert_eq!(pod.quotas(), LIFTED);
    // As SIGKILL would.
    std::mem::forget(limits);
    CpuLimits::adopt(&written_down, Path::new("/")).restore().expect("restore");
    assert_eq!(pod.quotas(), FOUND);
}

#[test]
fn a_container_that_has_ended_needs_nothing_put_back() {
    let Some(mut pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    limits.plan_lift().expect("plan");
    limits.carry_out().expect("lift");
    let records = limits.records();
    pod.end();
    limits.restore().expect("nothing to put back");
    assert!(CpuLimits::adopt(&records, Path::new("/")).records().is_empty());
    let pid = pod.pid();
    assert!(matches!(CpuLimits::of_process(pid, Path::new("/")), Err(ThrottleError::Gone { .. })));
}

/// A container of twelve idle processes, and the processors that they have; none where there is one only.
fn crowd() -> Option<(Pod, Vec<CpuSet>)> {
    let pod = Pod::crowd("wait")?;
    let found = affinities(&pod);
    let count = (0..CpuSet::count()).filter(|number| found[0].is_set(*number).expect("a processor")).count();
    (count > 1).then_some((pod, found))
}

fn plan(limits: &mut CpuLimits, pod: &Pod, criu: i32, taken: &[usize]) -> Option<usize> {
    limits.plan_one_processor(criu, &pod.freezer(), &Busy::default(), taken).expect("plan")
}

fn affinities(pod: &Pod) -> Vec<CpuSet> {
    pod.pids().into_iter().map(affinity).collect()
}

fn only(processor: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(processor).expect("a processor");
    set
}

fn give(pid: i32, set: &CpuSet) {
    sched_setaffinity(unistd::Pid::from_raw(pid), set).expect("affinity");
}

fn affinity(pid: i32) -> CpuSet {
    sched_getaffinity(unistd::Pid::from_raw(pid)).expect("affinity")
}

#[test]
fn many_tasks_share_one_processor_with_criu_and_get_the_others_back() {
    let Some((pod, found)) = crowd() else { return };
    let criu = Beside::start();
    for killed in [false, true] {
        let mut limits = pod.limits();
        let planned = plan(&mut limits, &pod, criu.pid(), &[]).expect("one of several");
        assert_eq!(affinities(&pod), found, "a plan changes nothing");
        let written_down = serde_json::to_string(&limits.records()).expect("journal");
        limits.carry_out().expect("change");
        let one = affinity(criu.pid());
        assert_eq!(one, only(planned));
        assert_eq!(affinities(&pod), vec![one; 12]);
        if killed {
            // As SIGKILL would.
            std::mem::forget(limits);
            let records: Vec<CpuRecord> = serde_json::from_str(&written_down).expect("journal");
            CpuLimits::adopt(&records, Path::new("/")).restore().expect("restore");
        } else {
            limits.restore().expect("restore");
            assert!(limits.records().is_empty(), "nothing is left to put back");
        }
        assert_eq!(affinities(&pod), found, "killed: {killed}");
    }
}

#[test]
fn a_task_with_processors_of_its_own_keeps_them() {
    let Some((pod, found)) = crowd() else { return };
    let (criu, mut limits) = (Beside::start(), pod.limits());
    let one = plan(&mut limits, &pod, criu.pid(), &[]).expect("one of several");
    let other = |number: &usize| *number != one && found[0].is_set(*number).expect("a processor");
    let own = only((0..CpuSet::count()).find(other).expect("another processor"));
    give(pod.pid(), &own);
    limits.carry_out().expect("change");
    assert_eq!((affinity(pod.pid()), affinity(criu.pid())), (own, only(one)));
    limits.restore().expect("restore");
    assert_eq!(affinity(pod.pid()), own);
    assert_eq!(affinities(&pod).iter().filter(|set| **set == found[0]).count(), 11);
}

#[test]
fn a_task_that_was_given_the_chosen_one_since_the_plan_keeps_it() {
    let Some((pod, found)) = crowd() else { return };
    let (criu, mut limits) = (Beside::start(), pod.limits());
    let one = plan(&mut limits, &pod, criu.pid(), &[]).expect("one of several");
    give(pod.pid(), &only(one));
    limits.carry_out().expect("nothing to change");
    assert_eq!(affinity(criu.pid()), found[0]);
    limits.restore().expect("nothing to give back");
    assert_eq!(affinity(pod.pid()), only(one));
    assert_eq!(affinities(&pod).iter().filter(|set| **set == found[0]).count(), 11);
}

#[test]
fn another_processor_is_taken_where_there_is_one() {
    let Some((pod, _)) = crowd() else { return };
    let of = |taken: &[usize]| plan(&mut pod.limits(), &pod, pod.pid(), taken).expect("one of several");
    let first = of(&[]);
    assert_ne!(of(&[first]), first);
}

#[test]
fn a_step_down_before_the_freeze_gives_nobody_one_processor() {
    let Some((pod, found)) = crowd() else { return };
    let (criu, mut limits) = (Beside::start(), pod.limits());
    let one = plan(&mut limits, &pod, criu.pid(), &[]).expect("one of several");
    limits.plan_share(0.1, 50).expect("plan");
    limits.carry_out().expect("slow down");
    assert_eq!(affinities(&pod), found);
    let again = plan(&mut limits, &pod, criu.pid(), &[one]);
    assert_eq!(again, Some(one), "it stays the one that was written down");
}

#[test]
fn few_processes_keep_their_processors() {
    let Some(pod) = Pod::idle() else { return };
    let mut limits = pod.limits();
    assert_eq!(plan(&mut limits, &pod, pod.pid(), &[]), None);
    assert!(limits.records().is_empty());
}

#[test]
fn a_process_of_no_container_has_no_limit_that_could_be_lifted() {
    let mounts = hierarchies(&std::fs::read_to_string("/proc/1/mountinfo").expect("mountinfo"));
    let members = std::fs::read_to_string("/proc/self/cgroup").expect("cgroup");
    let is_v1 = mounts.iter().any(|mount| mount.controllers == ["cpu"]);
    let root = if is_v1 { ":cpu:/" } else { "0::/" };
    if !members.lines().any(|line| line.ends_with(root)) {
        return;
    }
    let own = i32::try_from(std::process::id()).expect("pid");
    assert!(matches!(CpuLimits::of_process(own, Path::new("/")), Err(ThrottleError::Find(_))));
}

#[test]
fn the_kernel_keeps_to_a_share() {
    let Some(pod) = Pod::start(&["sh", "-c", "while :; do :; done"]) else { return };
    let mut limits = pod.limits();
    limits.plan_share(1.0, 1).expect("plan");
    limits.carry_out().expect("slow down");
    let throttled = || {
        let text = std::fs::read_to_string(pod.container().join("cpu.stat")).expect("stat");
        let count = text.lines().find_map(|line| line.strip_prefix("nr_throttled ")?.parse::<u64>().ok());
        count.expect("a count")
    };
    let (begun, before) = (Instant::now(), throttled());
    while throttled() < before + 3 {
        assert!(begun.elapsed() < Duration::from_secs(30), "never throttled");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(limits.usage().expect("usage") > Duration::ZERO, "it has run, and that is counted");
}
