//! The static `tideover-init` as PID 1 of real containers on cgroup v2, as `docs/restart.md` has it.

use crate::container::{Container, count_of_pod};
use anyhow::{Result, ensure};
use serde_json::json;
use std::fs;
use tideover_init::exit::Cause;
use tideover_init::record::Outcome;

/// More than runc needs to start a container, and soon filled.
const MEMORY: u64 = 64 << 20;

/// Fills the memory until the kernel puts an end to it.
const FILL: &str = "exec tail /dev/zero";

fn causes(container: &Container) -> Result<Vec<Cause>> {
    Ok(container.record()?.iter().map(|line| line.cause).collect())
}

pub fn a_crash_is_followed_by_another_run_in_place() -> Result<()> {
    let script =
        "cat /proc/self/cgroup >> cgroups; echo run >> runs; [ $(wc -l < runs) -ge 3 ] && exit 0; kill -SEGV $$";
    let rules = json!({"policy": "OnFailure", "delay": 0});
    let mut container = Container::new("crash", "one", &rules, script)?.start()?;
    let status = container.ended()?;
    ensure!(status == 0, "ended with {status}");
    let outcomes: Vec<Outcome> = container.record()?.iter().map(|line| line.outcome).collect();
    let restart = |attempt| Outcome::Restart { delay_millis: 0, attempt };
    ensure!(outcomes == [restart(1), restart(2), Outcome::Exit], "{outcomes:?}");
    let cgroups = container.read("cgroups")?;
    ensure!(cgroups == "0::/\n".repeat(3), "the container sees itself in {cgroups:?}");
    Ok(())
}

pub fn an_oom_kill_is_told_apart_from_a_sigkill() -> Result<()> {
    let script = format!(
        "[ -e second ] && exit 0; \
         [ -e first ] && {{ touch second; cat /sys/fs/cgroup/memory.events > events; kill -KILL $$; }}; \
         touch first; {FILL}"
    );
    let rules = json!({"policy": "OnFailure", "delay": 0});
    let container = Container::new("oom", "one", &rules, &script)?.memory(MEMORY).unified("memory.oom.group", "0");
    let mut container = container.start()?;
    let status = container.ended()?;
    ensure!(status == 0, "ended with {status}");
    let causes = causes(&container)?;
    ensure!(causes == [Cause::OomKill, Cause::UncleanSignal, Cause::Clean], "{causes:?}");
    let events = container.read("events")?;
    ensure!(events.lines().any(|line| line == "oom_kill 1"), "the container's own count: {events:?}");
    Ok(())
}

pub fn an_oom_kill_next_door_is_not_the_containers() -> Result<()> {
    let rules = json!({"policy": "OnFailure", "delay": 0});
    let script =
        "[ -e again ] && exit 0; touch up; while [ ! -e crash ]; do sleep 0.01; done; touch again; kill -KILL $$";
    let mut container = Container::new("doors", "one", &rules, script)?.memory(MEMORY).start()?;
    container.until_there("up")?;
    let mut other = Container::new("doors", "two", &json!({}), FILL)?.memory(MEMORY).start()?;
    let status = other.ended()?;
    ensure!(status == 137 && causes(&other)? == [Cause::OomKill], "next door: {status}, {:?}", causes(&other)?);
    ensure!(count_of_pod("doors", "memory.events", "oom_kill")? == 1, "the pod has not counted it");
    fs::write(container.path("crash"), "")?;
    let status = container.ended()?;
    ensure!(status == 0, "ended with {status}");
    let causes = causes(&container)?;
    ensure!(causes == [Cause::UncleanSignal, Cause::Clean], "{causes:?}");
    Ok(())
}

pub fn with_oom_group_the_whole_container_is_killed() -> Result<()> {
    let rules = json!({"policy": "Always", "delay": 0});
    let container = Container::new("group", "one", &rules, FILL)?.memory(MEMORY).unified("memory.oom.group", "1");
    let mut container = container.start()?;
    let status = container.ended()?;
    ensure!(status == 137, "ended with {status}");
    let record = container.record()?;
    ensure!(record.is_empty(), "init has outlived it: {record:?}");
    let groups = count_of_pod("group", "memory.events", "oom_group_kill")?;
    ensure!(groups == 1, "{groups} groups were killed");
    Ok(())
}

pub fn without_a_view_of_its_cgroup_an_oom_kill_is_a_sigkill() -> Result<()> {
    let container = Container::new("blind", "one", &json!({}), FILL)?.memory(MEMORY).without_cgroup_mount();
    let mut container = container.start()?;
    let status = container.ended()?;
    ensure!(status == 137, "ended with {status}");
    ensure!(count_of_pod("blind", "memory.events", "oom_kill")? == 1, "the kernel has not counted it");
    let causes = causes(&container)?;
    ensure!(causes == [Cause::UncleanSignal], "{causes:?}");
    Ok(())
}

/// Both have lost their parent to init. Only the cgroup says whose they are.
pub fn strays_end_with_the_run_and_a_debuggers_do_not() -> Result<()> {
    // Out of its session and its process group, and deaf to SIGTERM.
    let stray = "(setsid sh -c 'trap \"\" TERM; echo $$ > new; mv new stray; while :; do sleep 0.01; done' &);";
    let until = |name: &str| format!("while [ ! -e {name} ]; do sleep 0.01; done;");
    let again = format!("[ -e again ] && {{ touch rerun; {} exit 0; }};", until("finish"));
    let script = format!("{again} {stray} {} touch again; kill -KILL $$", until("crash"));
    let rules = json!({"policy": "OnFailure", "delay": 0, "timeoutStop": 100});
    let mut container = Container::new("strays", "one", &rules, &script)?.start()?;
    container.until_there("stray")?;
    let init = container.init()?;
    let script = format!("{stray} {}", until("finish"));
    let mut debugger = Container::new("strays", "two", &json!({}), "")?.beside(&container, &script)?.start()?;
    debugger.until_there("stray")?;
    let (ours, theirs) = (container.read("stray")?, debugger.read("stray")?);
    ensure!(is_child(init, &ours)? && is_child(init, &theirs)?, "init is not the parent of both");
    fs::write(container.path("crash"), "")?;
    container.until_there("rerun")?;
    let alive = (is_child(init, &ours)?, is_child(init, &theirs)?);
    ensure!(alive == (false, true), "alive (the application's, the debugger's): {alive:?}");
    for container in [&mut debugger, &mut container] {
        fs::write(container.path("finish"), "")?;
        let status = container.ended()?;
        ensure!(status == 0, "ended with {status}");
    }
    Ok(())
}

/// Whether `init` has a living child that its PID namespace knows by the number `pid`.
fn is_child(init: i32, pid: &str) -> Result<bool> {
    let parent = format!("PPid:\t{init}");
    let all = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_it = |process: i32| {
        // One that has ended meanwhile has no such file.
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let number = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().next_back());
        number == Some(pid.trim()) && status.lines().any(|line| line == parent) && !status.contains("State:\tZ")
    };
    Ok(all.into_iter().any(is_it))
}
