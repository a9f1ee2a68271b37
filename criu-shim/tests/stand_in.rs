//! The process that stands in a container's place, with a runtime that is a script and an agent that is this test. It needs root,
//! because the shim gets a `/run` of its own.

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use serde_json::{Value, json};
use std::fs::{Permissions, read_to_string, set_permissions, write};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// What runc does in a restore: the relay speaks, holds the processes until it may let them go, and leaves the first one behind. It does
/// not fetch that one's exit status, as dash would do of its own accord where it has ended by then.
const RUNTIME: &str = r#"#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> calls
case "$*" in *restore*) ;; *) exit 0 ;; esac
while [ "$1" != --pid-file ]; do shift; done
test -e fail && exit 3
kill -USR1 "$TIDEOVER_STAND_IN"
until test -e go; do sleep 0.01; done
exec perl -e '
    defined(my $first = fork) or die;
    exec("sh", "./container") unless $first;
    open(my $file, ">", $ARGV[0]) or die;
    print $file $first;
' "$2"
"#;

/// A node with a runtime, an agent and one container that is to be restored.
struct Node {
    directory: tempfile::TempDir,
    /// Exit codes that the agent was told.
    told: Receiver<i64>,
}

impl Node {
    /// `container` is the script that is restored. None where this can't be tried.
    fn new(container: &str) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        // As containerd-shim is to what a runtime leaves behind.
        prctl::set_child_subreaper(true).expect("subreaper");
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        for name in ["bin", "run", "work", "images", "bundle"] {
            std::fs::create_dir(at(name)).expect("a directory");
        }
        write(at("bin/runc"), RUNTIME).expect("the runtime");
        set_permissions(at("bin/runc"), Permissions::from_mode(0o755)).expect("executable");
        write(at("bin/container"), container).expect("the container");
        let config = json!({ "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.sandbox-namespace": "n",
            "io.kubernetes.cri.sandbox-name": "p",
            "io.kubernetes.cri.sandbox-uid": "u",
            "io.kubernetes.cri.container-name": "app",
            "tideover.dev/replacement-of": "move",
        }});
        write(at("bundle/config.json"), config.to_string()).expect("the bundle");
        let told = agent(&at("run/agent.sock"), &at("images"), &at("work"));
        Some(Self { directory, told })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs the shim with a `/run` in which this node's is `/run/tideover`.
    fn shim(&self, arguments: &[&str]) -> ExitStatus {
        let script =
            "mount -t tmpfs tmpfs /run && mkdir /run/tideover && mount --bind \"$0\" /run/tideover && exec \"$@\"";
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap_or_default());
        Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(self.at("run"))
            .arg(env!("CARGO_BIN_EXE_criu-shim"))
            .args(["--log".as_ref(), self.at("log").as_os_str()])
            .args(arguments)
            .env("PATH", path)
            .stdin(Stdio::null())
            .status()
            .expect("the shim")
    }

    fn create(&self) -> ExitStatus {
        let (bundle, pid_file) = (self.at("bundle"), self.at("init.pid"));
        let (bundle, pid_file) = (bundle.to_string_lossy(), pid_file.to_string_lossy());
        self.shim(&["create", "--bundle", &bundle, "--pid-file", &pid_file, "c1"])
    }

    /// What containerd takes for the container's first process.
    fn stand_in(&self) -> Pid {
        Pid::from_raw(read_to_string(self.at("init.pid")).expect("the pid file").parse().expect("a pid"))
    }

    fn let_go(&self) {
        write(self.at("bin/go"), "").expect("the word");
    }

    /// The container's own first process, once it is known.
    fn container(&self) -> Pid {
        let pid = until("the container's process", || self.mark()?["container"]["pid"].as_i64());
        Pid::from_raw(i32::try_from(pid).expect("a pid"))
    }

    fn mark(&self) -> Option<Value> {
        serde_json::from_str(&read_to_string(self.at("run/restored/c1")).ok()?).ok()
    }

    fn told(&self) -> i64 {
        self.told.recv_timeout(LIMIT).expect("the agent is told")
    }

    fn calls(&self) -> String {
        read_to_string(self.at("bin/calls")).unwrap_or_default()
    }
}

/// An agent that has every container restored below a stand-in.
fn agent(socket: &Path, images: &Path, work: &Path) -> Receiver<i64> {
    let listener = UnixListener::bind(socket).expect("the socket");
    let (tell, told) = channel();
    let answer =
        json!({ "type": "restore", "token": "t", "imagesDir": images, "workDir": work, "standIn": true }).to_string();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
            for line in lines.map_while(Result::ok) {
                let message: Value = serde_json::from_str(&line).expect("a message");
                match message["type"].as_str() {
                    Some("create") => writeln!(stream, "{answer}").expect("the answer"),
                    Some("restored") => tell.send(message["exitCode"].as_i64().expect("a code")).expect("the test"),
                    _ => {}
                }
            }
        }
    });
    told
}

#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        match look() {
            Some(found) => return found,
            None if begun.elapsed() > LIMIT => panic!("no {what}"),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// How a child ends that is about to.
#[track_caller]
fn end_of(child: Pid) -> WaitStatus {
    until("end", || match waitpid(child, Some(WaitPidFlag::WNOHANG)).expect("a child") {
        WaitStatus::StillAlive => None,
        ended => Some(ended),
    })
}

fn exists(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn create_returns_while_the_restore_waits_and_the_stand_in_ends_as_the_container_does() {
    for (script, expected) in
        [("exit 7", None), ("kill -KILL $$", Some(Signal::SIGKILL)), ("kill -TERM $$", Some(Signal::SIGTERM))]
    {
        let Some(node) = Node::new(script) else { return };
        assert!(node.create().success(), "{}", node.calls());
        let stand_in = node.stand_in();
        assert!(exists(stand_in) && node.mark().is_some_and(|mark| mark["container"].is_null()));
        assert!(node.shim(&["start", "c1"]).success());
        assert!(!node.calls().contains("start"), "there is nothing to start");
        node.let_go();
        let ended = end_of(stand_in);
        match expected {
            None => assert_eq!(ended, WaitStatus::Exited(stand_in, 7)),
            Some(signal) => assert_eq!(ended, WaitStatus::Signaled(stand_in, signal, false)),
        }
        assert_eq!(node.told(), 0);
        assert!(node.at("work/ran").exists(), "what has run is never restored again");
    }
}

#[test]
fn an_agent_that_takes_the_images_away_before_runc_has_ended_ends_nobody() {
    let Some(node) = Node::new("until test -e end; do sleep 0.01; done; exit 7") else { return };
    assert!(node.create().success());
    for name in ["work", "images"] {
        std::fs::remove_dir_all(node.at(name)).expect("removed");
    }
    node.let_go();
    let (stand_in, container) = (node.stand_in(), node.container());
    assert_eq!(node.told(), 0);
    assert!(exists(container) && !node.calls().contains("delete"), "{}", node.calls());
    write(node.at("bin/end"), "").expect("the word");
    assert_eq!(end_of(stand_in), WaitStatus::Exited(stand_in, 7));
}

#[test]
fn it_is_small_and_holds_nothing_of_the_container() {
    let Some(node) = Node::new("until test -e end; do sleep 0.01; done") else { return };
    assert!(node.create().success());
    node.let_go();
    let (stand_in, container) = (node.stand_in(), node.container());
    assert_eq!(node.told(), 0);
    let read = |name: &str| read_to_string(format!("/proc/{stand_in}/{name}")).expect("a process");
    let own = read("smaps_rollup");
    let own: u64 = (own.lines())
        .filter(|line| line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    // Most of it is relocations of a program that is not optimised.
    assert!(own < 4096, "{own} KiB of its own");
    assert!(read("status").contains("Threads:\t1\n"));
    for number in 0..3 {
        let open = std::fs::read_link(format!("/proc/{stand_in}/fd/{number}")).expect("a descriptor");
        assert_eq!(open, Path::new("/dev/null"));
    }
    assert!(read(&format!("task/{stand_in}/children")).split_whitespace().any(|child| child == container.to_string()));
    // Whoever takes it for the container's first process means that one.
    kill(stand_in, Signal::SIGTERM).expect("a signal");
    assert_eq!(end_of(stand_in), WaitStatus::Signaled(stand_in, Signal::SIGTERM, false));
}

#[test]
fn a_restore_that_fails_at_once_fails_create_and_leaves_nothing() {
    let Some(node) = Node::new("") else { return };
    write(node.at("bin/fail"), "").expect("the word");
    assert_eq!(node.create().code(), Some(3));
    assert_eq!(node.told(), 3);
    assert!(node.calls().contains("delete --force c1"), "{}", node.calls());
    assert!(!node.at("init.pid").exists() && node.mark().is_none());
}

#[test]
fn a_container_that_is_stopped_before_its_processes_are_there_ends_by_its_stand_in() {
    let Some(node) = Node::new("") else { return };
    assert!(node.create().success());
    let stand_in = node.stand_in();
    assert!(node.shim(&["kill", "c1", "15"]).success());
    assert_eq!(end_of(stand_in), WaitStatus::Exited(stand_in, 137));
    assert_eq!(node.told(), 137);
    assert!(!node.calls().contains("kill"), "the runtime knows no such container");
    assert!(node.calls().contains("delete --force c1") && node.mark().is_none());
}

#[test]
fn a_container_whose_stand_in_was_killed_is_ended_when_it_is_deleted() {
    let Some(node) = Node::new("until test -e end; do sleep 0.01; done") else { return };
    assert!(node.create().success());
    node.let_go();
    let (stand_in, container) = (node.stand_in(), node.container());
    kill(stand_in, Signal::SIGKILL).expect("a signal");
    assert_eq!(end_of(stand_in), WaitStatus::Signaled(stand_in, Signal::SIGKILL, false));
    assert!(exists(container), "nobody has ended it yet");
    assert!(node.shim(&["delete", "c1"]).success());
    assert!(node.calls().contains("delete --force c1"), "{}", node.calls());
    assert!(node.mark().is_none());
    write(node.at("bin/end"), "").expect("the word");
    end_of(container);
}
