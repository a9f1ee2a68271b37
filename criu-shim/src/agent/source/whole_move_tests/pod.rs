//! A pod without a kubelet: a process that holds its namespaces, and a container of runc's in them.

use super::LIMIT;
use super::application::{CHECK, CHECKED, COUNT, SHARED, VARIABLE};
use crate::local::{AHEAD_ENV, Ahead, BUNDLE_ENV, INSTALL_ROOT, TOKEN_ENV};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PODS: &str = "/run/pods";
const CGROUPS: &str = "/sys/fs/cgroup";
/// What kubelet gives for a limit of half a processor, microseconds.
pub(super) const QUOTA: u64 = 50_000;
const PERIOD: u64 = 100_000;

pub(super) struct Pod {
    id: String,
    /// Of the move: what both pods see is in it.
    directory: PathBuf,
    bundle: PathBuf,
    /// Holds network, UTS and IPC namespace.
    sandbox: Child,
}

impl Pod {
    /// The first pod of the move `name`, whose container is not started yet.
    pub(super) fn new(name: &str, of: &str) -> Self {
        let directory = Path::new(PODS).join(name);
        fs::create_dir_all(directory.join("x")).expect("directory");
        Self::in_directory(directory, name, of)
    }

    /// Another pod of the same move.
    pub(super) fn beside(other: &Self, name: &str, of: &str) -> Self {
        Self::in_directory(other.directory.clone(), name, of)
    }

    fn in_directory(directory: PathBuf, name: &str, of: &str) -> Self {
        let bundle = directory.join(of);
        let root = bundle.join("rootfs");
        for made in ["usr", "tests", "proc", "dev", "sys", "x"] {
            fs::create_dir_all(root.join(made)).expect("directory");
        }
        for link in ["bin", "lib", "lib64", "sbin"] {
            symlink(Path::new("usr").join(link), root.join(link)).expect("link");
        }
        let sandbox = sandbox();
        let config = config(&directory.join("x"), sandbox.id(), &format!("/{name}/{of}"));
        fs::write(bundle.join("config.json"), config.to_string()).expect("config.json");
        Self { id: format!("{name}-{of}"), directory, bundle, sandbox }
    }

    pub(super) fn start(self) -> Self {
        let mut runc = Command::new("runc");
        runc.args(["run", "--detach"]);
        let status = self.of_runc(runc).status().expect("runc");
        assert!(status.success(), "{status}");
        self
    }

    /// As the shim does it. The result comes once the relay lets it.
    pub(super) fn restore(&self, images: &Path, work: &Path, ahead: &Ahead) -> JoinHandle<ExitStatus> {
        let mut runc = Command::new("runc");
        runc.args(["restore", "--detach", "--image-path"]).arg(images).arg("--work-path").arg(work);
        let path = std::env::var("PATH").expect("PATH");
        runc.env("PATH", format!("{INSTALL_ROOT}/relay:{path}"));
        runc.env(TOKEN_ENV, self.token()).env(BUNDLE_ENV, &self.bundle);
        runc.env(AHEAD_ENV, serde_json::to_string(ahead).expect("JSON"));
        let mut runc = self.of_runc(runc);
        std::thread::spawn(move || runc.status().expect("runc"))
    }

    fn of_runc(&self, mut runc: Command) -> Command {
        runc.arg("--bundle").arg(&self.bundle).arg("--pid-file").arg(self.bundle.join("pid")).arg(&self.id);
        runc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        runc
    }

    /// Of its restore.
    pub(super) fn token(&self) -> &str {
        &self.id
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// The first process, as this machine's `/proc` names it. In a restore it is known before runc says it.
    pub(super) fn pid(&self) -> i32 {
        let procs = || fs::read_to_string(self.cgroup().join("cgroup.procs")).unwrap_or_default();
        let own = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let inner = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().nth(1));
            inner == Some("1")
        };
        let found = procs().lines().filter_map(|line| line.parse().ok()).find(own);
        found.unwrap_or_else(|| panic!("no first process in {:?}", procs()))
    }

    fn cgroup(&self) -> PathBuf {
        Path::new(CGROUPS).join(self.id.replacen('-', "/", 1))
    }

    pub(super) fn cpu_quota(&self) -> String {
        let text = fs::read_to_string(self.cgroup().join("cpu.max")).expect("cpu.max");
        text.split_whitespace().next().unwrap_or_default().to_owned()
    }

    pub(super) fn count(&self) -> u64 {
        let bytes = fs::read(self.directory.join("x").join(COUNT)).unwrap_or_default();
        bytes.try_into().map_or(0, u64::from_ne_bytes)
    }

    pub(super) fn until_it_counts_to(&self, count: u64) {
        self.until(&format!("count of {count}"), || self.count() >= count);
    }

    /// Waits until it has written some more.
    pub(super) fn until_it_counts_on(&self) {
        self.until_it_counts_to(self.count() + 40);
    }

    pub(super) fn until_it_has_checked_itself(&self) {
        let shared = self.directory.join("x");
        fs::write(shared.join(CHECK), "").expect("ask it");
        self.until("check of itself", || shared.join(CHECKED).exists());
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < LIMIT, "no {what} of {}, which is at {}", self.id, self.count());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // Also where the test has failed; a container that has ended is left to no other test.
        let mut runc = Command::new("runc");
        runc.args(["delete", "--force", &self.id]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        runc.status().ok();
        self.sandbox.kill().ok();
        self.sandbox.wait().ok();
    }
}

/// A process in namespaces that outlive its containers.
fn sandbox() -> Child {
    let sandbox =
        Command::new("unshare").args(["--net", "--uts", "--ipc", "sleep", "1000000"]).spawn().expect("unshare");
    let own = |namespace: &str| fs::read_link(format!("/proc/self/ns/{namespace}")).ok();
    let its = |namespace: &str| fs::read_link(format!("/proc/{}/ns/{namespace}", sandbox.id())).ok();
    let begun = Instant::now();
    while ["net", "uts", "ipc"].iter().any(|namespace| own(namespace) == its(namespace)) {
        assert!(begun.elapsed() < LIMIT, "no namespaces");
        std::thread::sleep(Duration::from_millis(2));
    }
    sandbox
}

fn config(shared: &Path, sandbox: u32, cgroup: &str) -> Value {
    let bind = |source: &Path, target: &str, access: &str| json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", access]});
    let of_sandbox = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{sandbox}/ns/{file}")});
    let program = std::env::current_exe().expect("this program");
    let test = format!(
        "{}::application::application",
        module_path!().split_once("::").expect("a module").1.trim_end_matches("::pod")
    );
    let words = [program.to_str().expect("a path"), "--exact", &test, "--ignored", "--nocapture", "--test-threads=1"];
    let capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_SETUID", "CAP_SETGID"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": words,
            "env": ["PATH=/usr/sbin:/usr/bin", format!("{VARIABLE}=1")],
            "cwd": SHARED,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            bind(Path::new("/usr"), "/usr", "ro"),
            bind(program.parent().expect("a directory"), "/tests", "ro"),
            bind(shared, SHARED, "rw"),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {"cpu": {"quota": QUOTA, "period": PERIOD}},
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
                of_sandbox("network", "net"), of_sandbox("uts", "uts"), of_sandbox("ipc", "ipc"),
            ],
        },
    })
}
