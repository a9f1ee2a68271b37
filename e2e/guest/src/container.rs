//! A real container under runc, supervised by the static `tideover-init`: what kubelet and the shim would ask for, without them.
//!
//! Each is in a cgroup of its own below that of a pod, which outlives it, so that what the kernel has counted can still be read.

use crate::system::CGROUPS;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tideover_init::record::{self, Line};

/// Of the machine's own time, which stands still while the host is busy with something else.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the container sees what the test sees as [`Container::path`].
const SHARED: &str = "/x";

pub struct Container {
    name: String,
    directory: PathBuf,
    config: Value,
    child: Option<Child>,
}

impl Container {
    /// A container of the pod `pod`, whose application is a shell with `script`, under these rules; not started yet.
    pub fn new(pod: &str, name: &str, rules: &Value, script: &str) -> Result<Self> {
        let directory = Path::new("/run/containers").join(pod).join(name);
        let root = directory.join("root");
        for made in ["root/usr", "root/proc", "root/dev", "root/sys", "root/x", "root/etc", "x"] {
            fs::create_dir_all(directory.join(made)).with_context(|| made.to_owned())?;
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            symlink(Path::new("usr").join(link), root.join(link)).with_context(|| link.to_owned())?;
        }
        let settings = json!({"version": 1, "directory": SHARED, "restart": rules});
        fs::write(directory.join("x/config"), settings.to_string()).context("configuration of init")?;
        let words = ["/usr/bin/tideover-init", "/x/config", "sh", "-c", script];
        let config = config(pod, name, &directory, &words);
        Ok(Self { name: format!("{pod}-{name}"), directory, config, child: None })
    }

    /// At most so many bytes of memory, and none swapped.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.config["linux"]["resources"]["memory"] = json!({"limit": bytes, "swap": bytes});
        self
    }

    /// Sets a file of the cgroup, as kubelet does with `memory.oom.group`.
    pub fn unified(mut self, file: &str, content: &str) -> Self {
        self.config["linux"]["resources"]["unified"][file] = json!(content);
        self
    }

    /// Without a view of its cgroup.
    pub fn without_cgroup_mount(mut self) -> Self {
        if let Some(mounts) = self.config["mounts"].as_array_mut() {
            mounts.retain(|mount| mount["type"] != "cgroup");
        }
        self
    }

    /// Among the processes of another container, as an ephemeral container is, and not supervised.
    pub fn beside(mut self, other: &Self, script: &str) -> Result<Self> {
        let namespace = format!("/proc/{}/ns/pid", other.init()?);
        if let Some(namespaces) = self.config["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "pid");
            namespaces.push(json!({"type": "pid", "path": namespace}));
        }
        self.config["process"]["args"] = json!(["sh", "-c", script]);
        Ok(self)
    }

    pub fn start(mut self) -> Result<Self> {
        fs::write(self.directory.join("config.json"), self.config.to_string()).context("config.json")?;
        let said = File::create(self.directory.join("said")).context("said")?;
        let mut command = Command::new("runc");
        command.arg("run").arg("--bundle").arg(&self.directory);
        command.arg("--pid-file").arg(self.directory.join("pid")).arg(&self.name);
        command.stdin(Stdio::null()).stdout(said.try_clone().context("said")?).stderr(said);
        self.child = Some(command.spawn().context("start runc")?);
        Ok(self)
    }

    /// Waits for its end; returns the status.
    pub fn ended(&mut self) -> Result<i32> {
        let mut child = self.child.take().context("it was started")?;
        let mut status = None;
        let waited = self.until("end", || {
            status = child.try_wait().context("wait for runc")?;
            Ok(status.is_some())
        });
        if let Err(error) = waited {
            // Ended with the rest of it.
            self.child = Some(child);
            return Err(error);
        }
        status.and_then(|status| status.code()).context("runc was ended by a signal")
    }

    /// Pid of its first process.
    pub fn init(&self) -> Result<i32> {
        let path = self.directory.join("pid");
        let mut pid = None;
        self.until("pid", || {
            pid = fs::read_to_string(&path).ok().and_then(|text| text.parse().ok());
            Ok(pid.is_some())
        })?;
        pid.context("pid")
    }

    /// What the container sees below `/x`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join("x").join(name)
    }

    pub fn read(&self, name: &str) -> Result<String> {
        fs::read_to_string(self.path(name)).with_context(|| name.to_owned())
    }

    pub fn record(&self) -> Result<Vec<Line>> {
        let reading = record::read(&self.directory.join("x")).context("read the record")?;
        ensure!(reading.unsound == 0, "{} unsound lines in the record", reading.unsound);
        Ok(reading.lines)
    }

    pub fn until_there(&self, name: &str) -> Result<()> {
        self.until(name, || Ok(self.path(name).exists()))
    }

    pub fn until(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let begun = Instant::now();
        while !holds()? {
            if begun.elapsed() > LIMIT {
                let said = fs::read_to_string(self.directory.join("said")).unwrap_or_default();
                bail!("no {what} of container {}: {said}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // Only where a check has failed: whatever is left of it must not disturb the next.
        let killed = Command::new("runc").args(["delete", "--force", &self.name]).status();
        eprintln!("guest: container {} was left: {killed:?}, {:?}", self.name, child.wait());
    }
}

/// A number of one of the files of the pod's cgroup.
pub fn count_of_pod(pod: &str, file: &str, name: &str) -> Result<u64> {
    let path = Path::new(CGROUPS).join(pod).join(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.with_context(|| format!("{name} in {text:?}"))?.parse().context("a number")
}

fn config(pod: &str, name: &str, directory: &Path, words: &[&str]) -> Value {
    let capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": words,
            "env": ["PATH=/usr/sbin:/usr/bin"],
            "cwd": "/x",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "root"},
        "hostname": name,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            bind(Path::new("/usr"), "/usr", "ro"),
            bind(&directory.join("x"), SHARED, "rw"),
        ],
        "linux": {
            "cgroupsPath": format!("/{pod}/{name}"),
            "resources": {},
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"}, {"type": "cgroup"},
            ],
        },
    })
}

fn bind(source: &Path, target: &str, access: &str) -> Value {
    json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", access]})
}
