//! Brings a lab up, or makes whole what is there of it.
//!
//! Owns the order of the steps. Every step looks first and does only what is missing, so that a second `up` repairs what
//! a killed one or a reboot left.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use time::OffsetDateTime;

use crate::addons::{self, AddonsError};
use crate::cache::{Cache, CacheError};
use crate::command::CommandError;
use crate::go_tools::{self, GoModule, GoToolsError};
use crate::image::build::Image;
use crate::image::catalogue::{self, CatalogueError};
use crate::image::import::{self, ImportError};
use crate::index::{self, IndexError};
use crate::kubeconfig;
use crate::lab::{Lab, LabError, Node, Programs, Stored};
use crate::layout::Layout;
use crate::lock::{Lock, LockError};
use crate::machine::cgroup::{self, CgroupError};
use crate::machine::spec::MachineSpec;
use crate::network::{self, NetworkError};
use crate::parts::Parts;
use crate::pki::{self, Pki, PkiError};
use crate::preflight::{self, Refusal};
use crate::progress::Progress;
use crate::topology::{LabName, MAX_WORKERS, Role, Topology};
use crate::tree::{self, Tree, TreeError};
use crate::{control_plane, worker, write_atomic};

/// How many workers a lab has where nobody says.
pub const DEFAULT_WORKERS: u8 = 3;

const API_PATIENCE: Duration = Duration::from_secs(120);
const CONTAINERD_PATIENCE: Duration = Duration::from_secs(60);
const READY_PATIENCE: &str = "--timeout=180s";
/// The most open files of a kubelet, as its own default.
const OPEN_FILES: u64 = 1_000_000;

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The lab's name.
    pub name: LabName,
    /// How many workers; as before, or [`DEFAULT_WORKERS`], where absent.
    pub workers: Option<u8>,
    /// Whether etcd waits for the disk; as before, or not, where absent.
    pub fsync: Option<bool>,
}

/// Why the lab is not up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The host lacks something.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The wish cannot be granted.
    #[error("{0} workers are not possible: 1 to {MAX_WORKERS} are")]
    Workers(u8),
    /// A lab does not shrink.
    #[error("the lab has {have} workers and does not shrink to {wanted}: run `lab down` first")]
    Shrink {
        /// What there is.
        have: u8,
        /// What was wished for.
        wanted: u8,
    },
    /// Another command is at work.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// No number for the lab.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Programs could not be built.
    #[error(transparent)]
    GoTools(#[from] GoToolsError),
    /// The Debian tree could not be made.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The lab's images could not be built.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// Certificates could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The network could not be made.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The host's cgroups are unusable.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A machine failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// An image could not be put on a node.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The cluster's own services could not be installed.
    #[error(transparent)]
    Addons(#[from] AddonsError),
    /// A file of the lab could not be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// Something did not get ready.
    #[error("{what} did not get ready within {} s; see `lab status` and the logs in {logs}", patience.as_secs())]
    NotReady {
        /// What was waited for.
        what: String,
        /// How long.
        patience: Duration,
        /// Where to look.
        logs: PathBuf,
        /// What the last attempt said.
        #[source]
        source: Box<CommandError>,
    },
    /// The nodes did not get ready.
    #[error("wait for the nodes to be Ready; see `lab status`")]
    Nodes(#[source] CommandError),
}

/// What the machines are made from.
struct Materials {
    kubernetes: PathBuf,
    tree: Tree,
    images: Vec<Image>,
    programs: Programs,
}

/// Makes the lab of `wish` exist, whole and Ready.
///
/// # Errors
/// Names the step; what was done by then stays and is used by the next attempt.
pub fn up(wish: &Wish, progress: &Progress) -> Result<Lab, UpError> {
    preflight::check()?;
    let layout = Layout::new(&wish.name);
    let _held = Lock::try_acquire(&layout.lock())?;
    let before = Lab::stored(&layout)?;
    let workers = choose_workers(wish.workers, before.as_ref().map(|stored| stored.topology.workers))?;
    let fsync = wish.fsync.or(before.map(|stored| stored.fsync)).unwrap_or_default();

    let materials = gather(progress)?;
    let topology = describe(&layout, &wish.name, workers, fsync, &materials.programs)?;
    let lab = Lab::open(wish.name.as_str())?;
    let pki = prepare_secrets(&layout, &topology)?;
    let hierarchies = cgroup::hierarchies()?;
    let parts = Parts {
        layout: &layout,
        topology: &topology,
        pki: &pki,
        tree: &materials.tree.path,
        kubernetes: &materials.kubernetes,
        hierarchies: &hierarchies,
    };

    let step = progress.step("network");
    network::ensure_switch(&topology)?;
    step.done();

    let step = progress.step("control plane");
    ensure_control_plane(&lab, fsync, &parts)?;
    step.done();

    let step = progress.step(format!("{workers} workers"));
    ensure_workers(&lab, &parts)?;
    network::route_pods(&topology, &topology.machines())?;
    step.done();

    let step = progress.step("API server");
    await_api(&lab)?;
    step.done();

    let step = progress.step("images");
    let imported = import_everywhere(&lab, &materials.images)?;
    step.done_with(&format!("{imported} imported"));

    let step = progress.step("cluster ready");
    addons::apply(&lab)?;
    await_ready(&lab)?;
    step.done();
    Ok(lab)
}

fn choose_workers(wanted: Option<u8>, have: Option<u8>) -> Result<u8, UpError> {
    let workers = wanted.or(have).unwrap_or(DEFAULT_WORKERS);
    if !(1..=MAX_WORKERS).contains(&workers) {
        return Err(UpError::Workers(workers));
    }
    match have {
        Some(have) if have > workers => Err(UpError::Shrink { have, wanted: workers }),
        _ => Ok(workers),
    }
}

/// Everything from the cache, built or downloaded where it is missing.
fn gather(progress: &Progress) -> Result<Materials, UpError> {
    let cache = Cache::open()?;
    let mut step = progress.step("Debian tree");
    let tree = tree::ensure(&cache, |line| step.say(line))?;
    step.done();
    let build = |module, name: &'static str| {
        let mut step = progress.step(name);
        let programs = go_tools::ensure(&cache, module, |line| step.say(line))?;
        step.done();
        Ok::<_, GoToolsError>(programs)
    };
    let kubernetes = build(GoModule::Kubernetes, "Kubernetes programs")?;
    let helm = build(GoModule::Helm, "Helm")?;
    let coredns = build(GoModule::CoreDns, "CoreDNS")?;
    let step = progress.step("lab images");
    let images = catalogue::ensure(&cache, &tree, &coredns)?;
    step.done();
    let programs = Programs { kubectl: kubernetes.directory.join("kubectl"), helm: helm.directory.join("helm") };
    Ok(Materials { kubernetes: kubernetes.directory, tree, images, programs })
}

/// Gives the lab its number and stores what it is.
fn describe(
    layout: &Layout,
    name: &LabName,
    workers: u8,
    fsync: bool,
    programs: &Programs,
) -> Result<Topology, UpError> {
    let busy = network::busy_indices()?;
    let index = index::update(|index| index.allocate(name, busy))?;
    let topology = Topology { name: name.clone(), index, workers };
    let stored = Stored { topology: topology.clone(), programs: programs.clone(), fsync };
    let path = layout.topology();
    write_atomic::json(&path, &stored).map_err(|source| UpError::Write { path, source })?;
    install_program(layout)?;
    Ok(topology)
}

/// Copies the running program to the lab's own place, see [`Layout::program`].
fn install_program(layout: &Layout) -> Result<(), UpError> {
    let path = layout.program();
    let failed = |source| UpError::Write { path: path.clone(), source };
    let partial = path.with_extension("new");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    fs::copy("/proc/self/exe", &partial).map_err(failed)?;
    fs::rename(&partial, &path).map_err(failed)
}

fn prepare_secrets(layout: &Layout, topology: &Topology) -> Result<Pki, UpError> {
    let pki = pki::ensure(&layout.pki(), topology, OffsetDateTime::now_utc())?;
    let text = kubeconfig::render(&topology.api_url(), &pki.authority, "lab-admin", &pki.admin);
    let path = layout.kubeconfig();
    write_atomic::bytes(&path, text.as_bytes()).map_err(|source| UpError::Write { path, source })?;
    Ok(pki)
}

fn ensure_control_plane(lab: &Lab, fsync: bool, parts: &Parts<'_>) -> Result<(), UpError> {
    let node = lab.node(&parts.topology.control_plane().name)?;
    Ok(ensure_machine(&node, &control_plane::spec(parts, fsync))?)
}

/// Has `node` running as `wanted`. One that runs otherwise, by an older lab or with other options, starts again.
fn ensure_machine(node: &Node, wanted: &MachineSpec) -> Result<(), LabError> {
    if node.is_running()? {
        if node.spec().is_ok_and(|spec| spec == *wanted) {
            return Ok(());
        }
        node.stop()?;
    }
    node.launch(wanted)
}

fn ensure_workers(lab: &Lab, parts: &Parts<'_>) -> Result<(), UpError> {
    let settings = worker::Settings {
        pause_image: catalogue::PAUSE,
        open_files: getrlimit(Resource::Nofile).maximum.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES)),
    };
    for (machine, kubelet) in parts.topology.workers().zip(&parts.pki.kubelets) {
        let Role::Worker(number) = machine.role else { continue };
        ensure_machine(&lab.node(&machine.name)?, &worker::spec(parts, settings, &machine, number, kubelet))?;
    }
    Ok(())
}

fn await_api(lab: &Lab) -> Result<(), UpError> {
    let node = lab.node(&lab.topology().control_plane().name)?;
    await_success("the API server", API_PATIENCE, &node, || lab.kubectl(["get", "--raw", "/readyz"]))
}

fn import_everywhere(lab: &Lab, images: &[Image]) -> Result<usize, UpError> {
    let workers = lab.workers();
    thread::scope(|scope| {
        let tasks: Vec<_> = workers
            .iter()
            .map(|node| {
                scope.spawn(move || {
                    await_success("containerd", CONTAINERD_PATIENCE, node, || node.exec(["ctr", "version"]))?;
                    Ok::<_, UpError>(import::import(node, images)?)
                })
            })
            .collect();
        let mut imported = 0;
        for task in tasks {
            imported += task.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(imported)
    })
}

fn await_success<T>(
    what: &str,
    patience: Duration,
    node: &Node,
    mut attempt: impl FnMut() -> Result<T, CommandError>,
) -> Result<(), UpError> {
    let limit = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < limit => thread::sleep(Duration::from_millis(200)),
            Err(source) => {
                let what = format!("{what} of {}", node.name());
                return Err(UpError::NotReady { what, patience, logs: node.logs(), source: Box::new(source) });
            }
        }
    }
}

fn await_ready(lab: &Lab) -> Result<(), UpError> {
    // A condition in the API may be older than the kubelet; only the kubelet itself can say that it is there.
    for worker in lab.workers() {
        let health = format!("/api/v1/nodes/{}/proxy/healthz", worker.name());
        await_success("the kubelet", API_PATIENCE, &worker, || lab.kubectl(["get", "--raw", &health]))?;
    }
    lab.kubectl(["wait", "--for=condition=Ready", "nodes", "--all", READY_PATIENCE]).map_err(UpError::Nodes)?;
    lab.kubectl(["-n", "kube-system", "rollout", "status", "deployment/coredns", READY_PATIENCE])
        .map_err(UpError::Nodes)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_workers_is_remembered_and_grows_but_does_not_shrink() {
        assert_eq!(choose_workers(None, None).unwrap(), DEFAULT_WORKERS);
        assert_eq!(choose_workers(None, Some(5)).unwrap(), 5);
        assert_eq!(choose_workers(Some(4), Some(3)).unwrap(), 4);
        assert!(matches!(choose_workers(Some(2), Some(3)), Err(UpError::Shrink { have: 3, wanted: 2 })));
        assert!(matches!(choose_workers(Some(0), None), Err(UpError::Workers(0))));
    }
}
