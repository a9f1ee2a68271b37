//! A lab as a handle: what tests, the demo and the benchmarks hold.
//!
//! Owns the ways to reach a lab that is up. Never starts or removes one, see [`crate::up`] and [`crate::down`].

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::Signal;

use crate::command::{self, CommandError};
use crate::layout::Layout;
use crate::machine::cgroup;
use crate::machine::enter::{self, EnterError};
use crate::machine::init::{SERVICES_FILE, ServiceState};
use crate::machine::launch::{self, LaunchError};
use crate::machine::spec::{Cgroups, MachineSpec};
use crate::network::{self, Link, NetworkError};
use crate::process::{ProcessError, ProcessId};
use crate::topology::{BadName, LabName, Machine, Topology};

/// How long a machine may take for a clean stop before it is ended.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
/// How long a killed process tree may take to vanish.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// A lab that exists on this host.
#[derive(Debug, Clone)]
pub struct Lab {
    layout: Layout,
    topology: Topology,
    programs: Programs,
}

/// Programs of the host that talk to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Programs {
    /// kubectl.
    pub kubectl: PathBuf,
    /// helm.
    pub helm: PathBuf,
}

/// What is stored about a lab.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stored {
    /// Its shape.
    pub topology: Topology,
    /// Its programs.
    pub programs: Programs,
    /// Whether etcd waits for the disk.
    #[serde(default)]
    pub fsync: bool,
}

/// What could not be done with a lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The name is no name.
    #[error(transparent)]
    Name(#[from] BadName),
    /// There is no such lab.
    #[error("there is no lab called {0}: start it with `lab up --name {0}`")]
    Unknown(LabName),
    /// The lab's description is unreadable.
    #[error("read the description of the lab {path}; `lab down` removes the lab")]
    Read {
        /// The description.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// There is no such machine.
    #[error("the lab has no machine called {name}; it has {}", known.join(", "))]
    NoMachine {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// There is no such service.
    #[error("{machine} runs no service called {name}; it runs {}", known.join(", "))]
    NoService {
        /// The machine.
        machine: String,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The service has no process right now.
    #[error("{service} of {machine} is not running")]
    ServiceDown {
        /// The machine.
        machine: String,
        /// The service.
        service: String,
    },
    /// The machine is down.
    #[error("{0} is not running: start it with `lab node start {0}`")]
    MachineDown(String),
    /// A program failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A machine's process failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The network failed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A machine could not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl Lab {
    /// The lab called `name`, which must exist; its machines may be down.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &str) -> Result<Self, LabError> {
        let name: LabName = name.parse()?;
        let layout = Layout::new(&name);
        let stored = Self::stored(&layout)?.ok_or(LabError::Unknown(name))?;
        Ok(Self { layout, topology: stored.topology, programs: stored.programs })
    }

    /// What is stored about the lab with this layout, if it exists.
    ///
    /// # Errors
    /// When it is there but unreadable.
    pub fn stored(layout: &Layout) -> Result<Option<Stored>, LabError> {
        let path = layout.topology();
        let failed = |source| LabError::Read { path: path.clone(), source };
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The lab's shape.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The lab's directories.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The administrator's kubeconfig; usable from the host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// `kubectl` for this cluster, to be completed and run.
    pub fn kubectl_command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.client(&self.programs.kubectl, arguments)
    }

    /// Runs `kubectl` with its output captured.
    ///
    /// # Errors
    /// With its message when it fails.
    pub fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output, CommandError> {
        command::run(&mut self.kubectl_command(arguments))
    }

    /// `helm` for this cluster, to be completed and run.
    pub fn helm_command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        self.client(&self.programs.helm, arguments)
    }

    /// Runs `helm` with its output captured.
    ///
    /// # Errors
    /// With its message when it fails.
    pub fn helm<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output, CommandError> {
        command::run(&mut self.helm_command(arguments))
    }

    fn client<S: AsRef<OsStr>>(&self, program: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = command::program(program, arguments);
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// All machines: the control plane, then the workers.
    pub fn machines(&self) -> Vec<Node> {
        self.topology.machines().into_iter().map(|machine| self.node_of(machine)).collect()
    }

    /// The workers, which are the cluster's nodes.
    pub fn workers(&self) -> Vec<Node> {
        self.topology.workers().map(|machine| self.node_of(machine)).collect()
    }

    /// The machine called `name`.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<Node, LabError> {
        let machine = self.topology.machine(name).ok_or_else(|| LabError::NoMachine {
            name: name.to_owned(),
            known: self.topology.machines().into_iter().map(|machine| machine.name).collect(),
        })?;
        Ok(self.node_of(machine))
    }

    fn node_of(&self, machine: Machine) -> Node {
        Node { layout: self.layout.clone(), topology: self.topology.clone(), machine }
    }
}

/// One machine of a lab.
#[derive(Debug, Clone)]
pub struct Node {
    layout: Layout,
    topology: Topology,
    machine: Machine,
}

/// What is done to a running service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceAction {
    /// SIGSTOP: it hangs.
    Stop,
    /// SIGCONT: it goes on.
    Continue,
    /// SIGKILL: the supervisor starts it again.
    Restart,
}

impl Node {
    /// Its name; for a worker also the Kubernetes node's.
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// Its address on the lab's network.
    pub fn address(&self) -> Ipv4Addr {
        self.machine.address
    }

    /// Its first process on the host, for nsenter(1) and /proc; `None` while it is down.
    ///
    /// # Errors
    /// When its record is unreadable.
    pub fn first_process(&self) -> Result<Option<ProcessId>, ProcessError> {
        Ok(ProcessId::load(&self.layout.record(self.name()))?.filter(ProcessId::is_alive))
    }

    /// Whether it is up.
    ///
    /// # Errors
    /// When its record is unreadable.
    pub fn is_running(&self) -> Result<bool, ProcessError> {
        Ok(self.first_process()?.is_some())
    }

    /// `path` inside the machine as a path of the host; works while the machine is up.
    ///
    /// # Errors
    /// When it is down.
    pub fn path(&self, path: impl AsRef<Path>) -> Result<PathBuf, LabError> {
        let first = self.first_process()?.ok_or_else(|| LabError::MachineDown(self.name().to_owned()))?;
        let path = path.as_ref();
        Ok(PathBuf::from(format!("/proc/{}/root", first.pid)).join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// The directory of its services' logs on the host; readable also while the machine is down.
    pub fn logs(&self) -> PathBuf {
        self.layout.disk(self.name()).log()
    }

    /// The log of one of its services, on the host.
    pub fn log(&self, service: &str) -> PathBuf {
        self.logs().join(format!("{service}.log"))
    }

    /// Moves this process into the machine and runs a program there on our own standard streams; returns the exit code
    /// that a shell would show. Only for a process with a single thread that does nothing else; see [`Node::command`].
    ///
    /// # Errors
    /// Names the step.
    pub fn enter(&self, program: &OsString, arguments: &[OsString]) -> Result<u8, EnterError> {
        enter::enter(&self.layout.record(self.name()), &self.layout.spec(self.name()), program, arguments)
    }

    /// A program inside the machine, to be completed and run. Standard streams are the caller's.
    pub fn command<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = command::program(self.layout.program(), ["machine-enter"]);
        command.arg(self.layout.record(self.name())).arg(self.layout.spec(self.name())).arg("--").args(argv);
        command
    }

    /// Runs a program inside the machine with its output captured.
    ///
    /// # Errors
    /// With its message when it fails.
    pub fn exec<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output, CommandError> {
        command::run(&mut self.command(argv))
    }

    /// A power cut: every process of the machine is gone at once; its disk stays. `Ok(false)` when it was down.
    ///
    /// # Errors
    /// When it cannot be signalled or does not vanish.
    pub fn kill(&self) -> Result<bool, LabError> {
        let Some(first) = self.first_process()? else { return Ok(false) };
        first.signal(Signal::KILL)?;
        self.thaw();
        first.wait(KILL_PATIENCE)?;
        Ok(true)
    }

    /// A clean shut-down; a machine that does not end is killed. `Ok(false)` when it was down.
    ///
    /// # Errors
    /// When it cannot be signalled or does not vanish.
    pub fn stop(&self) -> Result<bool, LabError> {
        let Some(first) = self.first_process()? else { return Ok(false) };
        first.signal(Signal::TERM)?;
        match first.wait(STOP_PATIENCE) {
            Ok(()) => Ok(true),
            Err(ProcessError::StillThere { .. }) => self.kill(),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts a machine that is down, as it was described when it was made. `Ok(false)` when it is up.
    ///
    /// # Errors
    /// With the launcher's message.
    pub fn start(&self) -> Result<bool, LabError> {
        if self.is_running()? {
            return Ok(false);
        }
        self.launch(&self.spec()?)?;
        Ok(true)
    }

    /// Starts the machine, which must be down, as `spec` describes it.
    ///
    /// # Errors
    /// With the launcher's message.
    pub fn launch(&self, spec: &MachineSpec) -> Result<(), LabError> {
        network::plug(&self.topology, &self.machine)?;
        network::route_pods(&self.topology, std::slice::from_ref(&self.machine))?;
        Ok(launch::launch(&self.layout, self.name(), spec)?)
    }

    /// Cuts, slows or restores the machine's cable.
    ///
    /// # Errors
    /// With `ip`'s message.
    pub fn set_link(&self, link: Link) -> Result<(), LabError> {
        Ok(network::set_link(&self.topology, &self.machine, link)?)
    }

    /// Parts this machine from `other`: neither reaches the other's address, and nobody is told.
    ///
    /// # Errors
    /// With `ip`'s message.
    pub fn part_from(&self, other: &Self) -> Result<(), LabError> {
        Ok(network::part(&self.topology, [&self.machine, &other.machine])?)
    }

    /// Undoes [`Node::part_from`].
    ///
    /// # Errors
    /// With `ip`'s message, also where they are not parted.
    pub fn join_with(&self, other: &Self) -> Result<(), LabError> {
        Ok(network::join(&self.topology, [&self.machine, &other.machine])?)
    }

    /// What the supervisor says about the machine's services.
    ///
    /// # Errors
    /// When it is unreadable.
    pub fn services(&self) -> Result<BTreeMap<String, ServiceState>, LabError> {
        let path = self.layout.disk(self.name()).services().join(SERVICES_FILE);
        let failed = |source| LabError::Read { path: path.clone(), source };
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(failed(error)),
        };
        serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
    }

    /// Stops, continues or restarts a service of the machine.
    ///
    /// # Errors
    /// When there is no such service, or it has no process.
    pub fn service(&self, service: &str, action: ServiceAction) -> Result<(), LabError> {
        let services = self.services()?;
        let state = services.get(service).ok_or_else(|| LabError::NoService {
            machine: self.name().to_owned(),
            name: service.to_owned(),
            known: services.keys().cloned().collect(),
        })?;
        let pid = state
            .pid
            .ok_or_else(|| LabError::ServiceDown { machine: self.name().to_owned(), service: service.to_owned() })?;
        let signal = match action {
            ServiceAction::Stop => "STOP",
            ServiceAction::Continue => "CONT",
            ServiceAction::Restart => "KILL",
        };
        // The number is one of the machine's own pid namespace, so the signal is sent from inside.
        self.exec(["/usr/bin/kill", "-s", signal, &pid.to_string()])?;
        Ok(())
    }

    /// As what the machine was started last.
    ///
    /// # Errors
    /// When it never was, or by another version of the lab.
    pub fn spec(&self) -> Result<MachineSpec, LabError> {
        let path = self.layout.spec(self.name());
        let failed = |source| LabError::Read { path: path.clone(), source };
        let bytes = fs::read(&path).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
    }

    /// Lets the machine's frozen processes run into their end: with cgroup v1 a frozen process does not even die.
    fn thaw(&self) {
        if let Ok(MachineSpec { cgroups: Cgroups { hierarchies, directory }, .. }) = self.spec() {
            cgroup::thaw(&hierarchies, &directory);
        }
    }
}
