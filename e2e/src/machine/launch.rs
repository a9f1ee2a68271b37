//! Brings a machine up: the launcher process and its hand-over to the machine's first process.
//!
//! Owns the order in which namespaces are entered and the promise that a first process never runs unrecorded: it waits
//! until the launcher has stored its record, and ends when the launcher dies before that.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::pipe;

use crate::command::{self, CommandError};
use crate::fork::{self, ForkError, Side};
use crate::layout::Layout;
use crate::machine::cgroup::{self, CgroupError};
use crate::machine::init;
use crate::machine::rootfs;
use crate::machine::spec::MachineSpec;
use crate::process::ProcessId;
use crate::write_atomic;

/// Why a machine did not come up.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher's order could not be stored or read.
    #[error("hand over the machine's description {path}")]
    Spec {
        /// The description.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The description is not one.
    #[error("understand the machine's description {path}")]
    ParseSpec {
        /// The description.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The machine's console could not be opened.
    #[error("open the console {path}")]
    Console {
        /// The console's file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The launcher failed; it says why.
    #[error("launch {machine}")]
    Launcher {
        /// The machine.
        machine: String,
        /// How it ended, with its message.
        #[source]
        source: CommandError,
    },
    /// The machine's cgroups failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The network namespace could not be entered.
    #[error("enter the network namespace {path}")]
    Network {
        /// The namespace.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// A namespace could not be made.
    #[error("make the machine's namespaces")]
    Unshare(#[source] io::Error),
    /// The clocks could not be set.
    #[error("set the offsets of the machine's clocks")]
    Clocks(#[source] io::Error),
    /// The processes could not be connected.
    #[error("connect launcher and first process")]
    Pipe(#[source] io::Error),
    /// The first process could not be made.
    #[error(transparent)]
    Fork(#[from] ForkError),
    /// The first process could not be recorded.
    #[error("record the first process in {path}")]
    Record {
        /// The record.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// The first process gave up; it said why.
    #[error("{0}")]
    FirstProcess(String),
}

/// How long groups of the machine's previous life may take to vanish.
const GROUP_PATIENCE: Duration = Duration::from_secs(10);

/// Starts `spec` as a process tree of its own and returns once its root file system stands.
///
/// # Errors
/// With what the launcher said.
pub fn launch(layout: &Layout, machine: &str, spec: &MachineSpec) -> Result<(), LaunchError> {
    let path = layout.spec(machine);
    write_atomic::json(&path, spec).map_err(|source| LaunchError::Spec { path: path.clone(), source })?;
    let console_path = layout.disk(machine).console();
    let failed = |source| LaunchError::Console { path: console_path.clone(), source };
    if let Some(parent) = console_path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let console = File::options().create(true).append(true).open(&console_path).map_err(failed)?;
    let mut launcher = command::program(layout.program(), ["machine-launch"]);
    // Standard error is the way back for a sentence; the first process changes to the console.
    launcher.arg(&path).arg(layout.record(machine)).stdin(Stdio::null()).stdout(console);
    command::run(fork::with_standard_streams_only(&mut launcher))
        .map(drop)
        .map_err(|source| LaunchError::Launcher { machine: machine.to_owned(), source })
}

/// The launcher: becomes the machine's outside, forks its first process, records it and ends.
///
/// # Errors
/// Names the step. Only the launcher returns; the first process never does.
pub fn run_launcher(spec_path: &Path, record: &Path) -> Result<(), LaunchError> {
    let spec = read_spec(spec_path)?;
    let (hierarchies, directory) = (&spec.cgroups.hierarchies, &spec.cgroups.directory);
    cgroup::remove(hierarchies, directory, GROUP_PATIENCE)?;
    cgroup::prepare(hierarchies, directory)?;
    cgroup::join_top(hierarchies, directory)?;
    enter_network(&spec.network)?;
    make_namespaces(&spec)?;
    cgroup::join(hierarchies, directory)?;

    let (go_ahead, may_go) = pipe().map_err(|errno| LaunchError::Pipe(errno.into()))?;
    let (report, reporter) = pipe().map_err(|errno| LaunchError::Pipe(errno.into()))?;
    match fork::fork()? {
        Side::Parent(child) => {
            drop((go_ahead, reporter));
            let failed = |source| LaunchError::Record { path: record.to_owned(), source };
            let id = ProcessId::of(child.as_raw()).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
            id.store(record).map_err(failed)?;
            File::from(may_go).write_all(b"+").map_err(LaunchError::Pipe)?;
            hear(report)
        }
        Side::Child => {
            drop((may_go, report));
            first_process(&spec, go_ahead, reporter)
        }
    }
}

/// The machine's first process, from its first moment to its last.
fn first_process(spec: &MachineSpec, go_ahead: OwnedFd, reporter: OwnedFd) -> ! {
    let mut reporter = File::from(reporter);
    let mut byte = [0];
    if File::from(go_ahead).read_exact(&mut byte).is_err() {
        // The launcher died before it could record us: nobody would ever find this machine again.
        std::process::exit(1);
    }
    let stood = rootfs::assemble(spec)
        .map_err(|error| sentence(&error))
        .and_then(|()| init::settle(spec).map_err(|error| sentence(&error)));
    match stood {
        Ok(()) => {
            let told = reporter.write_all(b"+");
            drop(reporter);
            if told.is_err() {
                std::process::exit(1);
            }
            init::supervise(spec)
        }
        Err(reason) => {
            // When the launcher cannot hear it any more, the console still can.
            if reporter.write_all(reason.as_bytes()).is_err() {
                println!("{reason}");
            }
            std::process::exit(1)
        }
    }
}

fn hear(report: OwnedFd) -> Result<(), LaunchError> {
    let mut text = String::new();
    File::from(report).read_to_string(&mut text).map_err(LaunchError::Pipe)?;
    match text.as_str() {
        "+" => Ok(()),
        "" => Err(LaunchError::FirstProcess("the first process died without a word".to_owned())),
        reason => Err(LaunchError::FirstProcess(reason.to_owned())),
    }
}

fn read_spec(path: &Path) -> Result<MachineSpec, LaunchError> {
    let bytes = fs::read(path).map_err(|source| LaunchError::Spec { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes).map_err(|source| LaunchError::ParseSpec { path: path.to_owned(), source })
}

fn enter_network(path: &Path) -> Result<(), LaunchError> {
    let failed = |source| LaunchError::Network { path: path.to_owned(), source };
    let namespace = File::open(path).map_err(failed)?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))
}

fn make_namespaces(spec: &MachineSpec) -> Result<(), LaunchError> {
    let kinds = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWCGROUP
        | CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);
    unshare(kinds).map_err(|errno| LaunchError::Unshare(errno.into()))?;
    // Must be done before the first process is in the time namespace, that is before the fork.
    fs::write("/proc/self/timens_offsets", spec.clocks.to_proc()).map_err(LaunchError::Clocks)
}

fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
