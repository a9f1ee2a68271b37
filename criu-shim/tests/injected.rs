//! A process that is made to run system calls, while whoever wants that is killed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use criu_shim::memory::{Injector, serve_injections};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
/// With a tracer in the process that is killed, two in three of these damage what is traced.
const KILLS: u32 = 60;
const TRACED: &str = "TIDEOVER_TRACED";

/// A process that is killed when this is dropped.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn who_wants_a_call_may_be_killed_at_any_moment() {
    let (traced, mut ticks) = counting();
    tick(&mut ticks);
    let before = state(traced.0.id());
    let mark = format!("{TRACED}={}", traced.0.id());
    for kill in 0..KILLS {
        let (mut wanting, mut goes) = part("want", &[(TRACED, traced.0.id().to_string())]);
        tick(&mut goes);
        // Each at another place of the call, which takes some hundreds of microseconds.
        std::thread::sleep(Duration::from_micros(u64::from(kill) * 37));
        wanting.0.kill().unwrap();
        wanting.0.wait().unwrap();
        wait_for(|| tracers("environ", &mark).is_empty(), "nobody traces any more");
        assert_eq!(state(traced.0.id()), before, "after {kill} kills");
        tick(&mut ticks);
        tick(&mut ticks);
    }
    drop(traced);
}

#[test]
fn what_is_refused_is_refused_by_name_and_the_next_is_done() {
    let (traced, _ticks) = counting();
    let injector = injector();
    let refused = injector.userfaultfd(i32::MAX).unwrap_err();
    assert!(matches!(refused, criu_shim::memory::AttachError::Gone { pid: i32::MAX }), "{refused:?}");
    let pid = i32::try_from(traced.0.id()).unwrap();
    drop(injector.userfaultfd(pid).unwrap());
    // Of one that was killed the next finds out, and there is another one after it.
    let mark = format!("PPid:\t{}\n", std::process::id());
    let [tracer] = tracers("status", &mark)[..] else { panic!("one process traces") };
    Command::new("kill").args(["-9", &tracer.to_string()]).status().unwrap();
    wait_for(|| injector.userfaultfd(pid).is_ok(), "another process traces");
    drop(injector);
    assert_eq!(tracers("status", &mark), [] as [u32; 0]);
    drop(traced);
}

/// A part of the others: who wants calls, over and over.
#[test]
#[ignore = "a part of the others"]
fn want() {
    let traced = std::env::var(TRACED).unwrap().parse().unwrap();
    let injector = injector();
    drop(injector.userfaultfd(traced).unwrap());
    println!("#");
    loop {
        drop(injector.userfaultfd(traced).unwrap());
    }
}

/// A part of the others: who traces.
#[test]
#[ignore = "a part of the others"]
fn trace() {
    serve_injections().unwrap();
}

/// What is traced: a shell, which has one thread, and says each time that it has come around, in calls and outside of them.
fn counting() -> (Started, ChildStdout) {
    let script = "n=0; while :; do n=$((n + 1)); : < /dev/null; [ $n != 500 ] || { n=0; echo '#'; }; done";
    started(Command::new("sh").args(["-c", script]))
}

fn injector() -> Injector {
    Injector::apart(std::env::current_exe().unwrap(), arguments("trace"))
}

fn arguments(name: &str) -> Vec<String> {
    ["--exact", name, "--ignored", "--nocapture", "--test-threads=1"].map(str::to_owned).to_vec()
}

fn part(name: &str, environment: &[(&str, String)]) -> (Started, ChildStdout) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    started(command.args(arguments(name)).envs(environment.iter().cloned()))
}

fn started(command: &mut Command) -> (Started, ChildStdout) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    (Started(child), stdout)
}

/// Waits for the next mark.
fn tick(stdout: &mut ChildStdout) {
    let mut byte = [0];
    while byte != *b"#" {
        let limit = Timespec::try_from(LIMIT).unwrap();
        let ready = poll(&mut [PollFd::new(stdout, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "the part stands still");
        stdout.read_exact(&mut byte).expect("the part goes on");
    }
}

/// What must be as before: tracer, signal mask, and what there is of userfaultfds.
fn state(pid: u32) -> (Vec<String>, Vec<PathBuf>) {
    let process = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(process.join("status")).unwrap();
    let lines = status.lines().filter(|line| ["SigBlk", "TracerPid"].iter().any(|key| line.starts_with(key)));
    // Others come and go.
    let descriptors = fs::read_dir(process.join("fd")).unwrap().filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let left = descriptors.filter(|target| target.to_string_lossy().contains("userfaultfd"));
    (lines.map(str::to_owned).collect(), left.collect())
}

/// Processes that trace, of which `file` of `/proc/PID` has `what` in it.
fn tracers(file: &str, what: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let has = |pid: u32, file: &str, what: &str| {
        fs::read_to_string(format!("/proc/{pid}/{file}")).is_ok_and(|text| text.contains(what))
    };
    pids.filter(|pid| has(*pid, "cmdline", "--exact\0trace\0") && has(*pid, file, what)).collect()
}

fn wait_for(mut condition: impl FnMut() -> bool, what: &str) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < LIMIT, "{what}: not in {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
