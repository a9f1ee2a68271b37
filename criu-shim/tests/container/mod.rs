//! A container made for a test, and a real CRIU to dump it.

#![allow(dead_code, reason = "no test needs all of it")]

use criu_shim::criu::{BegunDump, CriuProgram, ObjectId, Waited};
use criu_shim::freezer::{Freezer, hierarchies};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Names what a part is told.
pub const ARGUMENT: &str = "TIDEOVER_TEST_ARGUMENT";

/// The CRIU that the tests are run with.
pub fn criu() -> CriuProgram {
    let path = PathBuf::from(std::env::var_os("TIDEOVER_CRIU").expect("TIDEOVER_CRIU is not set"));
    match path.parent().filter(|directory| directory.join("lib").is_dir()).and_then(Path::parent) {
        Some(root) => CriuProgram::below(root),
        None => CriuProgram::at(&path),
    }
}

/// The library with which a CRIU leaves memory out.
pub fn preload() -> PathBuf {
    PathBuf::from(std::env::var_os("TIDEOVER_DUMP_PRELOAD").expect("TIDEOVER_DUMP_PRELOAD is not set"))
}

/// Dumps all but the `withheld` shared memory, and returns how long that took, milliseconds.
pub fn dump(criu: BegunDump, withheld: &[ObjectId]) -> f64 {
    let request = criu.request().clone();
    let (mut running, premise) = criu.go(|| withheld.to_vec()).unwrap();
    premise.holds().unwrap();
    let begun = Instant::now();
    for waited in [running.wait(LIMIT), running.let_go(LIMIT)] {
        let log = || fs::read_to_string(request.work_dir.join("dump.log")).unwrap_or_default();
        assert!(matches!(waited, Ok(Waited::Done)), "{waited:?}; {}", log());
    }
    begun.elapsed().as_secs_f64() * 1e3
}

/// A process in namespaces, a root file system and a freezer cgroup of its own.
pub struct Container {
    parent: Child,
    /// The process, as this machine's `/proc` names it. In its own namespace it is 1.
    pub pid: i32,
    /// Its freezer cgroup.
    pub cgroup: PathBuf,
    /// Its root file system.
    pub rootfs: PathBuf,
    /// What it has written to `/ready`, up to a semicolon.
    pub ready: String,
}

impl Container {
    /// A process that runs the part `runs` of this test program, with `argument` in [`ARGUMENT`].
    pub fn start(root: &Path, runs: &str, argument: &str) -> Self {
        let rootfs = root.join("rootfs");
        let program = std::env::current_exe().unwrap();
        copy_mapped_files(&rootfs);
        fs::copy(&program, rootfs.join("hold")).unwrap();
        let mut parent = Command::new("unshare")
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--propagation", "private"])
            .arg(&program)
            .args(part("container::enter_the_container"))
            .env("TIDEOVER_TEST_ROOTFS", &rootfs)
            .env(ARGUMENT, argument)
            .env("TIDEOVER_TEST_PART", runs)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ready = || Some(fs::read_to_string(rootfs.join("ready")).ok()?.strip_suffix(';')?.to_owned());
        let ready = wait_for(&mut parent, ready);
        let children = format!("/proc/{0}/task/{0}/children", parent.id());
        let pid: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        let cgroup = new_cgroup(pid);
        Self { parent, pid, cgroup, rootfs, ready }
    }
}

impl Container {
    /// Ends all that is in it, and removes its cgroup. Tries all of it, and returns the first that failed.
    fn clear_away(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let thawed = Freezer::at(&self.cgroup, Path::new("/")).and_then(|freezer| freezer.thaw(LIMIT));
        // The first process of the container's PID namespace takes all others with it, and `unshare` waits for it.
        let killed = match kill(Pid::from_raw(self.pid), Signal::SIGKILL) {
            // A test may have ended it.
            Err(Errno::ESRCH) => Ok(()),
            killed => killed,
        };
        let waited = self.parent.wait();
        let deadline = Instant::now() + LIMIT;
        let removed = loop {
            match fs::remove_dir(&self.cgroup) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
                removed => break removed,
            }
        };
        thawed?;
        killed?;
        waited?;
        Ok(removed?)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let cleared = self.clear_away();
        if !std::thread::panicking() {
            cleared.expect("leave nothing behind");
        }
    }
}

fn wait_for<T>(child: &mut Child, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < deadline, "the container did not come up");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The arguments that make this program run one of its parts.
fn part(name: &str) -> [&str; 5] {
    ["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]
}

/// Copies what this program has mapped, its loader and libraries, to the same paths below a root.
fn copy_mapped_files(rootfs: &Path) {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut files: Vec<PathBuf> = maps.lines().filter_map(|line| line.find('/').map(|at| line[at..].into())).collect();
    files.push("/lib64/ld-linux-x86-64.so.2".into());
    files.dedup();
    for file in files.iter().filter(|file| **file != std::env::current_exe().unwrap()) {
        let inside = rootfs.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(inside.parent().unwrap()).unwrap();
        fs::copy(file, inside).unwrap();
    }
    for directory in ["old", "lib/x86_64-linux-gnu"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    let libraries = rootfs.join("usr/lib/x86_64-linux-gnu");
    for library in fs::read_dir(libraries).into_iter().flatten() {
        let name = library.as_ref().unwrap().file_name();
        fs::copy(library.unwrap().path(), rootfs.join("lib/x86_64-linux-gnu").join(name)).unwrap();
    }
}

/// A cgroup with `pid` in it, that can be frozen.
fn new_cgroup(pid: i32) -> PathBuf {
    let mounts = hierarchies(&fs::read_to_string("/proc/1/mountinfo").unwrap());
    let v1 = mounts.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == "freezer"));
    let hierarchy = v1.or(mounts.iter().find(|hierarchy| hierarchy.unified)).unwrap();
    let cgroup = hierarchy.mount_point.join(format!("tideover-test-{pid}"));
    fs::create_dir(&cgroup).unwrap();
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
    cgroup
}

#[test]
#[ignore = "a part of the others: the first process of the container, before it has its root"]
fn enter_the_container() {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let Some(rootfs) = std::env::var_os("TIDEOVER_TEST_ROOTFS").map(PathBuf::from) else { return };
    let runs = std::env::var("TIDEOVER_TEST_PART").unwrap();
    // What the caller of the tests left open belongs to mounts that the container does not have.
    let open = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name());
    let open: Vec<i32> = open.map(|name| name.to_str().unwrap().parse().unwrap()).collect();
    for number in open.into_iter().filter(|number| *number > 2) {
        let _ = nix::unistd::close(number);
    }
    // The kernel writes the number of the processor into a thread's memory (rseq) whenever it changes, also under CRIU.
    let mut first = nix::sched::CpuSet::new();
    first.set(0).unwrap();
    nix::sched::sched_setaffinity(Pid::from_raw(0), &first).unwrap();
    const NONE: Option<&str> = None;
    mount(Some(&rootfs), &rootfs, NONE, MsFlags::MS_BIND, NONE).unwrap();
    nix::unistd::chdir(&rootfs).unwrap();
    let device = nix::sys::stat::makedev(1, 3);
    nix::sys::stat::mknod("null", nix::sys::stat::SFlag::S_IFCHR, nix::sys::stat::Mode::all(), device).unwrap();
    nix::unistd::pivot_root(".", "old").unwrap();
    nix::unistd::chdir("/").unwrap();
    umount2("/old", MntFlags::MNT_DETACH).unwrap();
    nix::unistd::setsid().unwrap();
    let null = || fs::OpenOptions::new().read(true).write(true).open("/null").unwrap();
    let error = Command::new("/hold").args(part(&runs)).stdin(null()).stdout(null()).stderr(null()).exec();
    panic!("{error}");
}
