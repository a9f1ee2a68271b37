//! Real cgroups with a real process in them. They need root and the v1 cpu controller; where v2 has it, nothing is tested with
//! them.

use super::CpuLimits;
use crate::freezer::hierarchies;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Quotas of container and pod as the fixture makes them.
pub(crate) const FOUND: [&str; 2] = ["10000", "20000"];
/// The same, lifted.
pub(crate) const LIFTED: [&str; 2] = ["-1", "-1"];

/// A pod's cgroup with a container's in it, and a process in that.
pub(crate) struct Pod {
    pod: PathBuf,
    container: PathBuf,
    /// The same two in the hierarchies that count cpu time and freeze.
    others: Vec<PathBuf>,
    child: Child,
}

impl Pod {
    /// `program` runs in a container with 10 ms of 100, in a pod with 20 ms. None where cgroups are not v1's.
    pub(crate) fn start(program: &[&str]) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = hierarchies(&std::fs::read_to_string("/proc/1/mountinfo").expect("mountinfo"));
        let mount = |controller| mounts.iter().find(|mount| mount.controllers.iter().any(|name| name == controller));
        let (limiting, counting, freezing) = (mount("cpu")?, mount("cpuacct")?, mount("freezer")?);
        let name = format!("tideover-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let pod = limiting.mount_point.join(&name);
        let container = pod.join("container");
        // Some hosts mount several controllers together.
        let others = [counting, freezing].into_iter().filter(|mount| *mount != limiting);
        let others =
            others.flat_map(|mount| [mount.mount_point.join(&name).join("container"), mount.mount_point.join(&name)]);
        let others: Vec<PathBuf> = others.collect();
        for cgroup in others.iter().chain([&container]) {
            std::fs::create_dir_all(cgroup).expect("cgroups");
        }
        let child = Command::new(program[0]).args(&program[1..]).spawn().expect("program");
        let started = Self { pod, container, others, child };
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
        std::fs::write(cgroup.join("cpu.cfs_quota_us"), quota).expect("quota");
    }

    /// Quotas of the container and the pod.
    pub(crate) fn quotas(&self) -> [String; 2] {
        [&self.container, &self.pod].map(|cgroup| {
            std::fs::read_to_string(cgroup.join("cpu.cfs_quota_us")).expect("quota").trim_end().to_owned()
        })
    }

    pub(crate) fn limits(&self) -> CpuLimits {
        CpuLimits::of_process(self.pid(), Path::new("/")).expect("limits")
    }

    pub(crate) fn end(&mut self) {
        self.child.kill().expect("kill");
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

impl Drop for Pod {
    fn drop(&mut self) {
        if self.container.exists() {
            self.end();
        }
    }
}
