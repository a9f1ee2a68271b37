//! Real cgroups with a real process in them, v1's where that has the controllers, else v2's. They need root. Where no hierarchy has
//! them, nothing is tested with them.

use super::CpuLimits;
use crate::freezer::{Freezer, hierarchies};
use nix::sys::signal::{Signal, kill};
use nix::unistd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Quotas of container and pod as the fixture makes them, in v1's words.
pub(crate) const FOUND: [&str; 2] = ["10000", "20000"];
/// The same, lifted.
pub(crate) const LIFTED: [&str; 2] = ["-1", "-1"];

/// Lists the controllers that the cgroups below get.
const HANDED_DOWN: &str = "cgroup.subtree_control";
/// µs; the kernel's own default.
const PERIOD: &str = "100000";

/// A pod's cgroup with a container's in it, and a process in that.
pub(crate) struct Pod {
    pod: PathBuf,
    container: PathBuf,
    /// The same two in v1's hierarchies that count cpu time and freeze.
    others: Vec<PathBuf>,
    unified: bool,
    child: Child,
}

impl Pod {
    /// `program` runs in a container with 10 ms of 100, in a pod with 20 ms. None where cgroups can't limit, count and freeze it.
    pub(crate) fn start(program: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = hierarchies(&std::fs::read_to_string("/proc/1/mountinfo").expect("mountinfo"));
        let v1 = |controller: &str| mounts.iter().find(|mount| mount.controllers.iter().any(|name| name == controller));
        let name = format!("tideover-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (limiting, others) = match v1("cpu") {
            Some(limiting) => (limiting, vec![v1("cpuacct")?, v1("freezer")?]),
            None => (mounts.iter().find(|mount| mount.unified && hands_down_cpu(&mount.mount_point))?, Vec::new()),
        };
        let pod = limiting.mount_point.join(&name);
        let container = pod.join("container");
        // Some hosts mount several controllers together.
        let others = others.into_iter().filter(|mount| *mount != limiting);
        let others =
            others.flat_map(|mount| [mount.mount_point.join(&name).join("container"), mount.mount_point.join(&name)]);
        let others: Vec<PathBuf> = others.collect();
        for cgroup in others.iter().chain([&container]) {
            std::fs::create_dir_all(cgroup).expect("cgroups");
        }
        if limiting.unified {
            std::fs::write(pod.join(HANDED_DOWN), "+cpu").expect("hand the controller down");
        }
        let child = Command::new(program[0]).args(&program[1..]).spawn().expect("program");
        let started = Self { pod, container, others, unified: limiting.unified, child };
        started.set(&started.pod, "20000");
        started.set(&started.container, "10000");
        for cgroup in started.others.iter().chain([&started.container]).filter(|cgroup| cgroup.ends_with("container")) {
            std::fs::write(cgroup.join("cgroup.procs"), started.child.id().to_string()).expect("join");
        }
        Some(started)
    }

    pub(crate) fn idle() -> Option<Self> {
        Self::start(&["sleep", "600"])
    }

    /// Of twelve idle processes, of which the first then does `rest`.
    pub(crate) fn crowd(rest: &str) -> Option<Self> {
        // By the shell alone: the virtual machine has no grep.
        let inside = r#"in=; until [ "$in" ]; do while read -r line; do case $line in
            *:cpu:/*tideover-test*|*:cpu,cpuacct:/*tideover-test*|*::/*tideover-test*) in=1 ;;
        esac; done < /proc/self/cgroup; done"#;
        let idle = "for i in 1 2 3 4 5 6 7 8 9 10 11; do sleep 600 & done";
        let pod = Self::start(&["sh", "-c", &format!("{inside}\n{idle}\n{rest}")])?;
        let begun = Instant::now();
        while pod.pids().len() < 12 {
            assert!(begun.elapsed() < Duration::from_secs(60), "the processes don't start");
            std::thread::yield_now();
        }
        Some(pod)
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("pid")
    }

    /// The container's cgroup.
    pub(crate) fn container(&self) -> &Path {
        &self.container
    }

    pub(crate) fn limit_container(&self, quota: &str) {
        self.set(&self.container, quota);
    }

    pub(crate) fn limit_pod(&self, quota: &str) {
        self.set(&self.pod, quota);
    }

    fn set(&self, cgroup: &Path, quota: &str) {
        let written = match (self.unified, quota) {
            (false, quota) => std::fs::write(cgroup.join("cpu.cfs_quota_us"), quota),
            (true, "-1") => std::fs::write(cgroup.join("cpu.max"), format!("max {PERIOD}")),
            (true, quota) => std::fs::write(cgroup.join("cpu.max"), format!("{quota} {PERIOD}")),
        };
        written.expect("quota");
    }

    /// Quotas of the container and the pod.
    pub(crate) fn quotas(&self) -> [String; 2] {
        let file = if self.unified { "cpu.max" } else { "cpu.cfs_quota_us" };
        [&self.container, &self.pod].map(|cgroup| {
            let text = std::fs::read_to_string(cgroup.join(file)).expect("quota");
            let quota = text.split_whitespace().next().expect("a quota");
            if quota == "max" { "-1" } else { quota }.to_owned()
        })
    }

    pub(crate) fn limits(&self) -> CpuLimits {
        CpuLimits::of_process(self.pid(), Path::new("/")).expect("limits")
    }

    pub(crate) fn freezer(&self) -> Freezer {
        Freezer::of_process(self.pid(), Path::new("/")).expect("a freezer")
    }

    /// Ids of the processes in the container.
    pub(crate) fn pids(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.container.join("cgroup.procs")).expect("processes");
        text.lines().map(|line| line.parse().expect("pid")).collect()
    }

    pub(crate) fn end(&mut self) {
        self.child.kill().expect("kill");
        for pid in self.pids() {
            // One that has ended meanwhile is what is wanted.
            kill(unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        for cgroup in &self.others {
            // With v1 a frozen process does not even die.
            let state = cgroup.join("freezer.state");
            if state.exists() {
                std::fs::write(state, "THAWED").expect("thaw");
            }
        }
        self.child.wait().expect("wait");
        for cgroup in [&self.container, &self.pod].into_iter().chain(&self.others) {
            // A task may still be on its way out of the cgroup when its parent has heard of its end.
            let begun = Instant::now();
            while std::fs::remove_dir(cgroup).is_err() && cgroup.exists() {
                assert!(begun.elapsed() < Duration::from_secs(10), "{cgroup:?} can't be removed");
                std::thread::yield_now();
            }
        }
    }
}

/// Whether cgroups at the root of this v2 hierarchy get the cpu controller.
fn hands_down_cpu(root: &Path) -> bool {
    let controllers = std::fs::read_to_string(root.join(HANDED_DOWN)).unwrap_or_default();
    controllers.split_whitespace().any(|name| name == "cpu")
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self.container.exists() {
            self.end();
        }
    }
}

/// Stands in for CRIU.
pub(crate) struct Beside(Child);

impl Beside {
    pub(crate) fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().expect("sleep"))
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).expect("pid")
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.0.kill().expect("kill");
        self.0.wait().expect("wait");
    }
}
