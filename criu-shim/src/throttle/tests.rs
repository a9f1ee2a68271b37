use super::fixture::{FOUND, LIFTED, Pod};
use super::*;
use crate::freezer::hierarchies;
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
        let records: Vec<LimitRecord> = serde_json::from_str(&written_down).expect("journal");
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
