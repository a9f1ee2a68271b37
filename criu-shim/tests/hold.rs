//! What CRIU's hold of a process that it has dumped is worth, by a real CRIU that dies.

#![allow(clippy::unwrap_used, reason = "a test that can't go on says so by panicking")]

mod container;

use container::{Container, LIMIT, criu};
use criu_shim::criu::{Bundle, CriuError, DumpOptions, DumpRequest, Place, ProcessId, RunningDump, Waited, WarmCriu};
use criu_shim::freezer::{Freezer, FreezerState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// More than enough for a process that runs to count on.
const COUNTS_WITHIN: Duration = Duration::from_millis(300);

#[test]
#[ignore = "needs root, and CRIU at the path in TIDEOVER_CRIU: make test-vm"]
fn what_is_told_to_freeze_stays_as_it_is_where_criu_dies_and_what_was_not_is_known() {
    let root = tempfile::tempdir().unwrap();
    let container = Container::start(root.path(), "count", "");
    let freezer = Freezer::of_process(container.pid, Path::new("/")).unwrap();
    let count = || fs::read_to_string(container.rootfs.join("count")).unwrap().len();
    let goes_on = || {
        let (seen, until) = (count(), Instant::now() + COUNTS_WITHIN);
        while Instant::now() < until && count() == seen {
            std::thread::sleep(Duration::from_millis(1));
        }
        count() > seen
    };

    let (running, process) = dumped(&container, &freezer, root.path().join("kept"));
    freezer.begin_to_freeze().unwrap();
    running.still_holds().unwrap();
    end(process);
    assert!(matches!(running.still_holds(), Err(CriuError::Vanished { .. })));
    assert!(!goes_on(), "it has run after its dump");
    assert_eq!(freezer.state().unwrap(), FreezerState::Frozen);
    freezer.thaw(LIMIT).unwrap();
    assert!(goes_on(), "it was only frozen");

    let (running, process) = dumped(&container, &freezer, root.path().join("not-kept"));
    end(process);
    assert!(goes_on(), "CRIU's hold is all that there was");
    freezer.begin_to_freeze().unwrap();
    assert!(matches!(running.still_holds(), Err(CriuError::Vanished { .. })), "it may have run");
}

/// A complete dump of the frozen container, with the CRIU that holds it.
fn dumped(container: &Container, freezer: &Freezer, images_dir: std::path::PathBuf) -> (RunningDump, ProcessId) {
    let place = Place { namespaces_of: container.pid, outside_ipc: false, node_root: "/".into() };
    WarmCriu::examine(&criu(), Path::new("/")).unwrap();
    let warm = WarmCriu::start(&criu(), &place).unwrap();
    let process = warm.process();
    fs::create_dir_all(&images_dir).unwrap();
    let begun = warm.begin(DumpRequest {
        pid: container.pid,
        work_dir: images_dir.clone(),
        images_dir,
        freeze_cgroup: freezer.path_in_node().to_owned(),
        bundle: Bundle { rootfs: container.rootfs.clone(), spec: Default::default() },
        options: DumpOptions::default(),
    });
    freezer.freeze(LIMIT).unwrap();
    let (mut running, premise) = begun.unwrap().go(Vec::new).unwrap();
    premise.holds().unwrap();
    assert_eq!(running.wait(LIMIT).unwrap(), Waited::Done);
    running.still_holds().unwrap();
    (running, process)
}

/// Ends it at once, and waits until it is gone: what it traced is let go of by then.
fn end(process: ProcessId) {
    kill(Pid::from_raw(process.pid), Signal::SIGKILL).unwrap();
    let deadline = Instant::now() + LIMIT;
    let is_zombie = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| rest.is_empty() || rest.starts_with('Z'))
    };
    while !is_zombie() {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
#[ignore = "a part of the other: the process that is dumped"]
fn count() {
    if std::env::var(container::ARGUMENT).is_err() {
        return;
    }
    let mut count = fs::File::create("/count").unwrap();
    fs::write("/ready", ";").unwrap();
    loop {
        use std::io::Write;
        count.write_all(b".").unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
}
