//! A process that is made to run system calls, while whoever wants that is killed.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use criu_shim::memory::{Injector, serve_injections};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
/// With a tracer in the process that is killed, two in three of these damage what is traced.
const KILLS: u32 = 60;
const TRACED: &str = "TIDEOVER_TRACED";

#[test]
fn who_wants_a_call_may_be_killed_at_any_moment() {
    let (mut traced, mut ticks) = part("count", &[]);
    tick(&mut ticks);
    let before = state(traced.id());
    let mark = format!("{TRACED}={}", traced.id());
    for kill in 0..KILLS {
        let (mut wanting, mut goes) = part("want", &[(TRACED, traced.id().to_string())]);
        tick(&mut goes);
        // Each at another place of the call, which takes some hundreds of microseconds.
        std::thread::sleep(Duration::from_micros(u64::from(kill) * 37));
        wanting.kill().unwrap();
        wanting.wait().unwrap();
        wait_for(|| tracers("environ", &mark).is_empty(), "nobody traces any more");
        assert_eq!(state(traced.id()), before, "after {kill} kills");
        tick(&mut ticks);
        tick(&mut ticks);
    }
    traced.kill().unwrap();
    traced.wait().unwrap();
}

#[test]
fn what_is_refused_is_refused_by_name_and_the_next_is_done() {
    let (mut traced, _ticks) = part("count", &[]);
    let injector = injector();
    let refused = injector.userfaultfd(i32::MAX).unwrap_err();
    assert!(matches!(refused, criu_shim::memory::AttachError::Gone { pid: i32::MAX }), "{refused:?}");
    let pid = i32::try_from(traced.id()).unwrap();
    drop(injector.userfaultfd(pid).unwrap());
    // Of one that was killed the next finds out, and there is another one after it.
    let mark = format!("PPid:\t{}\n", std::process::id());
    let [tracer] = tracers("status", &mark)[..] else { panic!("one process traces") };
    Command::new("kill").args(["-9", &tracer.to_string()]).status().unwrap();
    wait_for(|| injector.userfaultfd(pid).is_ok(), "another process traces");
    drop(injector);
    assert_eq!(tracers("status", &mark), [] as [u32; 0]);
    traced.kill().unwrap();
    traced.wait().unwrap();
}

/// A part of the others: what is traced. Says so each time that it has come around, in calls and outside of them.
#[test]
#[ignore = "a part of the others"]
fn count() {
    let mut stdout = fs::File::from(rustix::io::dup(std::io::stdout()).unwrap());
    for count in 0u64.. {
        let sum = (0..1000).fold(count, |sum, number| std::hint::black_box(sum + number));
        assert_eq!(sum, count + 999 * 500);
        assert_eq!(rustix::process::getpid().as_raw_nonzero().get().cast_unsigned(), std::process::id());
        if count % 1000 == 0 {
            stdout.write_all(b"#").unwrap();
        }
    }
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

fn injector() -> Injector {
    Injector::apart(std::env::current_exe().unwrap(), arguments("trace"))
}

fn arguments(name: &str) -> Vec<String> {
    ["--exact", name, "--ignored", "--nocapture", "--test-threads=1"].map(str::to_owned).to_vec()
}

fn part(name: &str, environment: &[(&str, String)]) -> (Child, ChildStdout) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command
        .args(arguments(name))
        .envs(environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    (child, stdout)
}

/// Waits for the next mark.
fn tick(stdout: &mut ChildStdout) {
    let mut byte = [0];
    while byte != *b"#" {
        stdout.read_exact(&mut byte).expect("the part goes on");
    }
}

/// What must be as before: signal mask, tracer and descriptors.
fn state(pid: u32) -> (Vec<String>, Vec<PathBuf>) {
    let process = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(process.join("status")).unwrap();
    let lines = status.lines().filter(|line| ["SigBlk", "TracerPid"].iter().any(|key| line.starts_with(key)));
    let descriptors = fs::read_dir(process.join("fd")).unwrap();
    let mut descriptors: Vec<PathBuf> = descriptors.map(|fd| fs::read_link(fd.unwrap().path()).unwrap()).collect();
    descriptors.sort();
    (lines.map(str::to_owned).collect(), descriptors)
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
