//! The first process of a machine: keeps its services running and reaps what others leave.
//!
//! Owns the restart policy. Never knows what a service is for.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::machine::spec::{MachineSpec, SERVICES_DIRECTORY, Service};
use crate::{fork, write_atomic};

/// The search path of everything that runs in a machine.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file below [`SERVICES_DIRECTORY`] that tells about the services.
pub const SERVICES_FILE: &str = "services.json";

/// A service that died is started again after this long at first, and twice as long each time it dies young.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// A service that ran this long starts with [`FIRST_PAUSE`] again.
const OLD_ENOUGH: Duration = Duration::from_secs(10);
/// How often an awaited path is looked for.
const LOOK: Duration = Duration::from_millis(100);
/// Between SIGTERM and SIGKILL of a clean stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// The most open files of a machine's processes; lower where the host allows less.
const OPEN_FILES: u64 = 1_048_576;

/// What the supervisor tells about one service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceState {
    /// Its process inside the machine; none while it is not running.
    pub pid: Option<i32>,
    /// How often it was started.
    pub starts: u32,
    /// How it ended last, for a person to read.
    pub last_end: Option<String>,
}

/// Why a machine could not settle.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Its console could not be kept.
    #[error("direct messages to the console")]
    Console(#[source] io::Error),
    /// Its name could not be set.
    #[error("set the host name")]
    Hostname(#[source] io::Error),
    /// A kernel setting of the machine could not be made.
    #[error("write the kernel setting {path}")]
    Setting {
        /// The file below /proc/sys.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The limit of open files could not be set.
    #[error("set the limit of open files")]
    Limit(#[source] io::Error),
    /// Signals could not be directed to a descriptor.
    #[error("block signals")]
    Signals(#[source] io::Error),
}

/// What a machine does once, before its services: name, kernel settings of its own namespaces, limits.
///
/// # Errors
/// Names the step.
pub fn settle(spec: &MachineSpec) -> Result<(), InitError> {
    rustix::stdio::dup2_stderr(io::stdout().as_fd()).map_err(|errno| InitError::Console(errno.into()))?;
    nix::unistd::setsid().map_err(|errno| InitError::Console(errno.into()))?;
    sethostname(&spec.hostname).map_err(|errno| InitError::Hostname(errno.into()))?;
    // Pods are reached through their node, and nobody here speaks IPv6. All are settings of the network namespace.
    for (path, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")] {
        let path = Path::new("/proc/sys").join(path);
        fs::write(&path, value).map_err(|source| InitError::Setting { path, source })?;
    }
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(OPEN_FILES).min(OPEN_FILES);
    setrlimit(Resource::Nofile, Rlimit { current: Some(hard), maximum: Some(hard) })
        .map_err(|errno| InitError::Limit(errno.into()))?;
    signals().thread_block().map_err(|errno| InitError::Signals(errno.into()))
}

fn signals() -> SigSet {
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// Runs the services until the machine is told to stop with SIGTERM.
pub fn supervise(spec: &MachineSpec) -> ! {
    let code = match Supervisor::new(spec).run() {
        Ok(()) => 0,
        Err(error) => {
            println!("the supervisor ends: {error}");
            1
        }
    };
    std::process::exit(code)
}

struct Supervisor<'a> {
    services: Vec<Watched<'a>>,
}

/// A service and what is known of it.
struct Watched<'a> {
    service: &'a Service,
    state: ServiceState,
    phase: Phase,
    pause: Duration,
}

/// Where a service is in its life.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// To be started at this moment, or when what it needs is there, whichever is later.
    Due(Instant),
    /// Started at this moment.
    Running(Instant),
}

impl<'a> Supervisor<'a> {
    fn new(spec: &'a MachineSpec) -> Self {
        let watch = |service| Watched {
            service,
            state: ServiceState::default(),
            phase: Phase::Due(Instant::now()),
            pause: FIRST_PAUSE,
        };
        Self { services: spec.services.iter().map(watch).collect() }
    }

    fn run(mut self) -> io::Result<()> {
        let signals = SignalFd::with_flags(&signals(), SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        loop {
            let started = self.start_due();
            if self.reap() || started {
                self.tell();
            }
            let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, self.next_look()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            while let Some(signal) = signals.read_signal()? {
                if signal.ssi_signo != Signal::SIGCHLD as u32 {
                    stop_everything();
                    return Ok(());
                }
            }
        }
    }

    fn start_due(&mut self) -> bool {
        let mut changed = false;
        for watched in &mut self.services {
            let Phase::Due(at) = watched.phase else { continue };
            let needed = watched.service.needs.as_ref().is_none_or(|path| path.exists());
            if needed && Instant::now() >= at {
                watched.start();
                changed = true;
            }
        }
        changed
    }

    /// Collects every child that ended, ours and those that others left to us.
    fn reap(&mut self) -> bool {
        let mut changed = false;
        loop {
            let (pid, end) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("signal {signal}")),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return changed,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => {
                    println!("wait for children: {errno}");
                    return changed;
                }
            };
            for watched in self.services.iter_mut().filter(|watched| watched.state.pid == Some(pid.as_raw())) {
                watched.ended(&end);
                changed = true;
            }
        }
    }

    fn next_look(&self) -> PollTimeout {
        let due = |watched: &Watched<'_>| match watched.phase {
            Phase::Due(at) => Some(at.saturating_duration_since(Instant::now()).max(LOOK)),
            Phase::Running(_) => None,
        };
        let soonest = self.services.iter().filter_map(due).min();
        soonest.map_or(PollTimeout::NONE, |pause| PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX))
    }

    fn tell(&self) {
        let states: BTreeMap<_, _> = self.services.iter().map(|w| (w.service.name.as_str(), &w.state)).collect();
        if let Err(error) = write_atomic::json(&Path::new(SERVICES_DIRECTORY).join(SERVICES_FILE), &states) {
            println!("tell about the services: {error}");
        }
    }
}

impl Watched<'_> {
    fn start(&mut self) {
        self.state.starts += 1;
        match spawn(self.service) {
            Ok(pid) => {
                self.state.pid = Some(pid);
                self.phase = Phase::Running(Instant::now());
            }
            Err(error) => {
                println!("start {}: {error}", self.service.name);
                self.ended(&format!("not started: {error}"));
            }
        }
    }

    fn ended(&mut self, how: &str) {
        let now = Instant::now();
        if matches!(self.phase, Phase::Running(since) if now.duration_since(since) >= OLD_ENOUGH) {
            self.pause = FIRST_PAUSE;
        }
        self.state.pid = None;
        self.state.last_end = Some(how.to_owned());
        self.phase = Phase::Due(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }
}

fn spawn(service: &Service) -> io::Result<i32> {
    let log = File::options().create(true).append(true).open(service.log())?;
    let (program, arguments) = service.argv.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", PATH).env("HOME", "/root").current_dir("/");
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = fork::with_fresh_signals(&mut command).spawn()?;
    Ok(child.id().cast_signed())
}

/// A clean stop: asks every process of the machine to end, then makes it.
fn stop_everything() {
    // -1 means everybody but the caller; inside a pid namespace that is the machine and nobody else.
    let everybody = Pid::from_raw(-1);
    let limit = Instant::now() + STOP_PATIENCE;
    let mut signal = Signal::SIGTERM;
    while kill(everybody, signal) != Err(Errno::ESRCH) {
        while Instant::now() < limit {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(20)),
                Ok(_) => {}
                Err(_) => return,
            }
        }
        if signal == Signal::SIGKILL {
            return;
        }
        signal = Signal::SIGKILL;
    }
}
