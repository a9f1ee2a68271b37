//! The crasher at work.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const CRASHER: &str = env!("CARGO_BIN_EXE_crasher");
const LIMIT: Duration = Duration::from_secs(60);

/// A process that is ended when dropped, and what it has started too.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // SAFETY: kill(2) takes two numbers; the group is the process' own, or gone where it had none to start.
        unsafe { libc::kill(-self.0.id().cast_signed(), libc::SIGKILL) };
        self.0.wait().unwrap();
    }
}

fn run(words: &[&str], stamps: &Path, crashes: usize) -> Running {
    let mut command = Command::new(CRASHER);
    command.args(words).process_group(0).env("RESTART_STAMPS", stamps).env("RESTART_LIFE", "1");
    Running(command.env("RESTART_CRASHES", crashes.to_string()).spawn().unwrap())
}

/// What is noted once there are `lines` of it.
fn noted(stamps: &PathBuf, lines: usize) -> Vec<(String, i64)> {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(stamps).unwrap_or_default();
        if text.lines().count() >= lines {
            let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
            return pairs.map(|(word, at)| (word.to_owned(), at.parse().unwrap())).collect();
        }
        assert!(begun.elapsed() < LIMIT, "noted: {text:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn monotonic() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, and the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[test]
fn each_run_notes_its_first_instruction_and_each_crash_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let stamps = directory.path().join("stamps");
    let before = monotonic();
    let _floor = run(&["--floor", CRASHER], &stamps, 2);
    let noted = noted(&stamps, 5);
    let words: Vec<&str> = noted.iter().map(|(word, _)| word.as_str()).collect();
    assert_eq!(words, ["start", "crash", "start", "crash", "start"]);
    let times: Vec<i64> = noted.iter().map(|(_, at)| *at).collect();
    assert!(times.is_sorted() && before < times[0] && times[4] < monotonic(), "{times:?} after {before}");
    assert!(times[1] - times[0] >= 1_000_000, "a run lasts as long as it was told");
}

#[test]
fn a_crash_is_no_success() {
    let directory = tempfile::tempdir().unwrap();
    let mut crasher = run(&[], &directory.path().join("stamps"), 1);
    assert_eq!(crasher.0.wait().unwrap().code(), Some(70));
}

#[test]
fn what_it_becomes_begins_after_the_begin_that_it_notes() {
    let directory = tempfile::tempdir().unwrap();
    let stamps = directory.path().join("stamps");
    let _crasher = run(&["--begin", CRASHER], &stamps, 0);
    let noted = noted(&stamps, 2);
    assert_eq!((noted[0].0.as_str(), noted[1].0.as_str()), ("begin", "start"));
    assert!(noted[0].1 < noted[1].1, "{noted:?}");
}
