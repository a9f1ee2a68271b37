//! What the agents cost while something moves: processor and memory of their cgroups.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::machine::cgroup::{self, Hierarchy, Kind};
use crate::scenario::Cluster;

/// Pause between two looks at the memory.
const LOOK: Duration = Duration::from_millis(50);

/// What one agent used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// Processor time, seconds.
    pub cpu_seconds: f64,
    /// The most memory of its own at once, bytes: without pages of files, so without what it staged for the target.
    pub own: u64,
    /// The most memory at once, bytes, with pages of files that it read or wrote.
    pub peak: u64,
}

/// Looks at the agents of all nodes for as long as something moves; it ends when dropped.
#[derive(Debug)]
pub struct Meter {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<BTreeMap<String, Used>>>>,
}

impl Meter {
    /// Begins to look.
    ///
    /// # Errors
    /// When an agent or its cgroup is not found.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let mut accounts = Vec::new();
        for node in cluster.workers() {
            let account = Account::of_process(cluster.agent(&node)?.pid);
            accounts.push((node.clone(), account.with_context(|| format!("find what the agent of {node} uses"))?));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || watch(accounts, &stop)
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends it; what each node's agent used.
    ///
    /// # Errors
    /// When an account could not be read.
    pub fn finish(mut self) -> Result<BTreeMap<String, Used>> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("nobody looks at the agents any more")?;
        thread.join().map_err(|_| anyhow!("the thread that looks at the agents panicked"))?
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(mut accounts: Vec<(String, Account)>, stop: &AtomicBool) -> Result<BTreeMap<String, Used>> {
    let mut own = vec![0; accounts.len()];
    // Once more after the end, so that the shortest move is looked at too.
    loop {
        let last = stop.load(Ordering::Relaxed);
        for (most, (node, account)) in own.iter_mut().zip(&accounts) {
            *most = account.own().with_context(|| format!("look at the agent of {node}"))?.max(*most);
        }
        if last {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let used = accounts.iter_mut().zip(own).map(|((node, account), own)| {
        let cpu_seconds = account.cpu()? - account.cpu_before;
        Ok((node.clone(), Used { cpu_seconds, own, peak: account.peak()? }))
    });
    used.collect()
}

/// The files of a cgroup that keep account.
#[derive(Debug)]
struct Account {
    unified: bool,
    cpu: PathBuf,
    memory: PathBuf,
    /// Kept open: with cgroup v2 a peak begins anew only for who asked for it, by this descriptor.
    peak: File,
    cpu_before: f64,
}

impl Account {
    fn of_process(pid: i32) -> Result<Self> {
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read its cgroups")?;
        let hierarchies = cgroup::hierarchies()?;
        let cpu = directory(&hierarchies, &own, "cpuacct").context("no hierarchy counts processor time")?;
        let memory = directory(&hierarchies, &own, "memory").context("no hierarchy counts memory")?;
        Self::at(&cpu, &memory, hierarchies.iter().any(|hierarchy| hierarchy.kind == Kind::Unified))
    }

    fn at(cpu: &Path, memory: &Path, unified: bool) -> Result<Self> {
        let (cpu_file, peak_file) =
            if unified { ("cpu.stat", "memory.peak") } else { ("cpuacct.usage", "memory.max_usage_in_bytes") };
        let path = memory.join(peak_file);
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let mut peak = opened.with_context(|| format!("open {}", path.display()))?;
        peak.write_all(b"0").with_context(|| format!("let {} begin anew", path.display()))?;
        let (cpu, memory) = (cpu.join(cpu_file), memory.join("memory.stat"));
        let mut account = Self { unified, cpu, memory, peak, cpu_before: 0.0 };
        account.cpu_before = account.cpu()?;
        Ok(account)
    }

    /// Seconds.
    fn cpu(&self) -> Result<f64> {
        let text = read(&self.cpu)?;
        let seconds = if self.unified {
            field(&text, "usage_usec").map(|micros| micros as f64 / 1e6)
        } else {
            text.trim().parse::<u64>().ok().map(|nanos| nanos as f64 / 1e9)
        };
        seconds.with_context(|| format!("{} is not understood", self.cpu.display()))
    }

    /// Bytes.
    fn own(&self) -> Result<u64> {
        let name = if self.unified { "anon" } else { "total_rss" };
        field(&read(&self.memory)?, name).with_context(|| format!("{} has no {name}", self.memory.display()))
    }

    /// Bytes.
    fn peak(&mut self) -> Result<u64> {
        let mut text = String::new();
        self.peak.rewind().and_then(|()| self.peak.read_to_string(&mut text)).context("read the peak of memory")?;
        text.trim().parse().context("understand the peak of memory")
    }
}

/// Where the cgroup that a process is in, by its own file, has the files of `controller`.
fn directory(hierarchies: &[Hierarchy], own: &str, controller: &str) -> Option<PathBuf> {
    hierarchies.iter().find_map(|hierarchy| {
        let has = |names: &str| names.split(',').any(|name| name == controller);
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_it = match &hierarchy.kind {
                Kind::Controllers(all) => has(names) && all.iter().any(|name| name == controller),
                Kind::Unified => names.is_empty(),
                Kind::Named(_) => false,
            };
            is_it.then_some(path)
        })?;
        Some(hierarchy.mount.join(path.trim_start_matches('/')))
    })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A shell in a cgroup of its own, in each hierarchy that counts. All of it is gone once it is dropped.
    struct Shell {
        child: Child,
        directories: Vec<PathBuf>,
    }

    impl Shell {
        fn start(script: &str) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut shell = Self { child: command.spawn().expect("a shell"), directories: Vec::new() };
            for hierarchy in cgroup::hierarchies().expect("hierarchies") {
                let counts = |name: &String| name == "memory" || name == "cpuacct";
                if hierarchy.kind != Kind::Unified && !hierarchy.controllers().iter().any(counts) {
                    continue;
                }
                let directory = hierarchy.mount.join(format!("tideover-bench-{}", shell.child.id()));
                fs::create_dir(&directory).expect("a cgroup");
                shell.directories.push(directory.clone());
                fs::write(directory.join("cgroup.procs"), shell.child.id().to_string()).expect("a member");
            }
            shell
        }

        fn say(&mut self, line: &str) {
            self.child.stdin.as_mut().expect("its input").write_all(line.as_bytes()).expect("said");
        }

        fn line(&mut self) -> String {
            let mut line = String::new();
            BufReader::new(self.child.stdout.as_mut().expect("its output")).read_line(&mut line).expect("a line");
            line
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            self.child.kill().expect("end the shell");
            self.child.wait().expect("wait for the shell");
            for directory in &self.directories {
                fs::remove_dir(directory).expect("remove the cgroup");
            }
        }
    }

    #[test]
    fn what_a_process_uses_is_seen() {
        let mut shell = Shell::start("read go; x=$(head -c 8388608 /dev/zero | tr '\\0' x); echo ready; read end");
        let mut account = Account::of_process(shell.child.id() as i32).expect("an account");
        let before = account.own().expect("memory");
        shell.say("go\n");
        assert_eq!(shell.line(), "ready\n");
        let own = account.own().expect("memory");
        assert!(own >= before + (8 << 20), "{own} bytes of its own after {before}");
        assert!(account.peak().expect("peak") >= own);
        assert!(account.cpu().expect("time") > account.cpu_before);
    }

    #[test]
    fn a_cgroup_is_found_by_its_controller() {
        let v1 = |mount: &str, names: &[&str]| Hierarchy {
            mount: mount.into(),
            kind: Kind::Controllers(names.iter().map(|name| (*name).to_owned()).collect()),
        };
        let hierarchies = [v1("/c/memory", &["memory"]), v1("/c/cpu", &["cpu", "cpuacct"])];
        let own = "5:cpu,cpuacct:/lab/a\n4:memory:/lab/b\n0::/lab/c\n";
        assert_eq!(directory(&hierarchies, own, "cpuacct"), Some("/c/cpu/lab/a".into()));
        assert_eq!(directory(&hierarchies, own, "memory"), Some("/c/memory/lab/b".into()));
        let unified = [Hierarchy { mount: "/c".into(), kind: Kind::Unified }];
        assert_eq!(directory(&unified, own, "memory"), Some("/c/lab/c".into()));
    }

    #[test]
    fn a_field_is_not_mistaken_for_one_that_begins_alike() {
        assert_eq!(field("anon_thp 7\nanon 9\n", "anon"), Some(9));
        assert_eq!(field("rss 1\n", "total_rss"), None);
    }
}
