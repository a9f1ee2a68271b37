//! A container as far as init is concerned: a PID namespace, a directory, a configuration. Ended and removed when dropped.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tideover_init::record::{self, Line};

const LIMIT: Duration = Duration::from_secs(60);

pub struct Container {
    directory: tempfile::TempDir,
    prefix: Vec<OsString>,
    user: Option<u32>,
    own_namespace: bool,
    terminal: bool,
    cgroup: Option<PathBuf>,
    movable: bool,
    child: Option<Child>,
}

/// The directory that a container is given, and what takes its place on another node.
const DIRECTORIES: [(&str, &str); 2] = [("x", "tideover-init:here"), ("there", "tideover-init:there")];

/// A process as `/proc` shows it.
#[derive(Debug)]
pub struct Process {
    pub pid: i32,
    pub state: char,
}

impl Container {
    /// One with these rules, not started yet.
    pub fn new(settings: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path();
        fs::set_permissions(home, Permissions::from_mode(0o755)).unwrap();
        // Beside what the application writes, as in a real container.
        fs::create_dir(home.join("x")).unwrap();
        fs::set_permissions(home.join("x"), Permissions::from_mode(0o1777)).unwrap();
        let config = format!(r#"{{"version":1,"directory":"{}","restart":{settings}}}"#, home.join("x").display());
        fs::write(home.join("config"), config).unwrap();
        // By another process: one that a test beside this one forks would have the program open for writing, and busy.
        let copied = Command::new("cp")
            .args([env!("CARGO_BIN_EXE_tideover-init").as_ref(), home.join("init").as_path()])
            .status();
        assert!(copied.unwrap().success());
        let unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let prefix = unshare.map(OsString::from).to_vec();
        let (user, cgroup, child) = (None, None, None);
        Self { directory, prefix, user, own_namespace: true, terminal: false, cgroup, movable: false, child }
    }

    /// Without a PID namespace of its own.
    pub fn beside_others(mut self) -> Self {
        self.prefix.clear();
        self.own_namespace = false;
        self
    }

    /// With init as leader of the session of a terminal.
    pub fn with_terminal(mut self) -> Self {
        self.prefix.extend(["setsid", "--ctty"].map(OsString::from));
        self.terminal = true;
        self
    }

    /// With mounts as on a node, so that it can [`Self::arrive`] on another.
    pub fn movable(mut self) -> Self {
        self.movable = true;
        for (name, source) in DIRECTORIES {
            fs::create_dir_all(self.path(name)).unwrap();
            mount(Some(source), &self.path(name), Some("tmpfs"), MsFlags::empty(), Some("mode=1777")).unwrap();
        }
        self
    }

    /// Gives it another node's directory.
    pub fn arrive(&self) {
        let target = self.init().to_string();
        let [from, to] = [self.path("there"), self.path("x")];
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--mount", "mount", "--bind"]).args([from, to]);
        assert!(command.status().unwrap().success());
    }

    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    pub fn within(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.0.clone());
        self
    }

    pub fn shell(self, script: &str) -> Self {
        self.start(&["sh", "-c", script])
    }

    /// With these variables in init's environment.
    pub fn shell_in(self, environment: &[(&str, &str)], script: &str) -> Self {
        self.start_with(&["sh", "-c", script], environment)
    }

    /// Starts this test program in the role `role`: see `helper`.
    pub fn helper(self, role: &str) -> Self {
        let program = std::env::current_exe().unwrap();
        self.start_with(
            &[program.to_str().unwrap(), "--exact", "helper::application", "--nocapture"],
            &[("ROLE", role)],
        )
    }

    pub fn start(self, application: &[&str]) -> Self {
        self.start_with(application, &[])
    }

    fn start_with(mut self, application: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(cgroup) = &self.cgroup {
            let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", cgroup.display());
            words.extend(["sh".into(), "-c".into(), enter.into(), "sh".into()]);
        }
        words.extend(self.prefix.clone());
        if let Some(user) = self.user {
            let ids = [format!("--reuid={user}"), format!("--regid={user}")];
            words.extend(["setpriv".into(), "--clear-groups".into()]);
            words.extend(ids.map(OsString::from));
        }
        words.extend([self.path("init").into(), self.path("config").into()]);
        words.extend(application.iter().map(OsString::from));
        if self.terminal {
            // script(1) makes the terminal and returns the status. It takes one line for the shell.
            let quoted = words.iter().map(|word| format!("'{}' ", word.to_str().unwrap()));
            let line = format!("exec {}", quoted.collect::<String>());
            words = ["script", "-qec", &line, "/dev/null"].map(OsString::from).to_vec();
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(self.path("stderr")).unwrap());
        command.envs(environment.iter().copied());
        // What runs in the background of a script ignores these, and a shell can't trap what it was born to ignore. A
        // container runtime hands on the defaults.
        let reset = || {
            for number in [libc::SIGINT, libc::SIGQUIT] {
                // SAFETY: signal(2) takes two numbers, and may be called between fork and exec.
                unsafe { libc::signal(number, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: `reset` makes system calls only.
        unsafe { command.pre_exec(reset) };
        self.child = Some(command.spawn().unwrap());
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn lines(&self, name: &str) -> usize {
        fs::read_to_string(self.path(name)).unwrap_or_default().lines().count()
    }

    pub fn record(&self) -> Vec<Line> {
        self.record_in("x")
    }

    /// What it has recorded since it arrived.
    pub fn record_there(&self) -> Vec<Line> {
        self.record_in("there")
    }

    fn record_in(&self, name: &str) -> Vec<Line> {
        let reading = record::read(&self.path(name)).unwrap();
        assert_eq!(reading.unsound, 0);
        reading.lines
    }

    /// Pid of init, as this process sees it.
    pub fn init(&self) -> i32 {
        let own = self.child.as_ref().unwrap().id().cast_signed();
        if !self.own_namespace {
            return own;
        }
        let mut init = None;
        self.wait("init", || {
            init = children(own).first().map(|child| child.pid);
            init.is_some()
        });
        init.unwrap()
    }

    /// Children of init, as this process sees them.
    pub fn children(&self) -> Vec<Process> {
        children(self.init())
    }

    /// State of init.
    pub fn state(&self) -> char {
        stat(self.init()).unwrap().1
    }

    pub fn signal(&self, number: i32) {
        // SAFETY: kill(2) takes two numbers; the process is a child of ours, or one's of it, and not reaped yet.
        assert_eq!(unsafe { libc::kill(self.init(), number) }, 0);
    }

    /// Runs a program in the container, beside the application.
    pub fn exec(&self, words: &[&str]) -> Child {
        let target = self.init().to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &target, "--pid", "--mount", "--wd=."]).args(words);
        command.current_dir(self.directory.path()).spawn().unwrap()
    }

    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        self.wait(what, || holds(self));
    }

    pub fn until_there(&self, name: &str) {
        self.until(name, |container| container.path(name).exists());
    }

    fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < LIMIT, "no {what}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.path("stderr")).unwrap_or_default()
    }

    /// Waits for the end of the container; returns its status.
    pub fn ended(&mut self) -> i32 {
        let mut child = self.child.take().unwrap();
        let mut status = None;
        self.wait("end", || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let status = status.unwrap();
        std::io::stderr().write_all(self.stderr().as_bytes()).unwrap();
        status.code().unwrap_or_else(|| 1000 + status.signal().unwrap())
    }

    /// Waits for the end of a container that was killed.
    pub fn reap(&mut self) {
        self.child.take().unwrap().wait().unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // With --kill-child, and as the namespace's PID 1, it takes everything with it.
            child.kill().ok();
            child.wait().ok();
        }
        for (name, _) in DIRECTORIES.iter().filter(|_| self.movable) {
            umount2(&self.path(name), MntFlags::MNT_DETACH).ok();
        }
    }
}

fn stat(pid: i32) -> Option<(i32, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

fn children(parent: i32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| stat(pid).filter(|(its, _)| *its == parent).map(|(_, state)| Process { pid, state }))
        .collect()
}

/// A cgroup (v1) of this test, removed when dropped: after the container in it.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(controller: &str) -> Self {
        let name = format!("tideover-init-test-{}-{controller}", std::process::id());
        let path = Path::new("/sys/fs/cgroup").join(controller).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn set(&self, name: &str, value: &str) {
        fs::write(self.0.join(name), value).unwrap();
    }

    pub fn get(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let begun = Instant::now();
        // The kernel takes a moment to let go of what has ended.
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
