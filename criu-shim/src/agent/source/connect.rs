//! Everything that can happen before the freeze: the connection, what goes early, and the processes that are started warm.

use crate::agent::context::{Context, Key};
use crate::agent::failure::retryable;
use crate::agent::files::TreeKind;
use crate::agent::files::places;
use crate::agent::source::cpu::SourceCpu;
use crate::agent::source::dial::Dial;
use crate::agent::source::mapped;
use crate::agent::source::precopy::{PreCopy, Trees};
use crate::agent::source::preflight::Inspected;
use crate::agent::transfer::link::{self, Incoming, LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget, IMAGES, Part};
use crate::agent::transfer::receive::WORK;
use crate::agent::transfer::send;
use crate::causes::chain;
use crate::criu::{Bundle, Place, WarmCriu, descriptors, have_peers, mount_image, preflight};
use crate::freezer::Freezer;
use crate::supervised::program::{self, Program};
use std::fs::{DirBuilder, DirEntry, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason};

/// How long connecting, the handshake and the answer to the preamble may take together.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Subdirectory of an attempt for what is sent before the dump.
pub(super) const EARLY: &str = "early";

/// Connected and warm, for one container: what the freeze needs is started and waits.
#[derive(Debug)]
pub struct Connected {
    /// Attempt that this is for.
    pub attempt: u32,
    /// Where the attempt keeps what is the container's, 0700.
    pub directory: PathBuf,
    /// The pod and the container.
    pub inspected: Inspected,
    /// Its bundle.
    pub bundle: Bundle,
    /// CRIU, started and waiting.
    pub criu: WarmCriu,
    /// Files that move.
    pub trees: Trees,
    /// To the target.
    pub sender: LinkSender<FromSource>,
    /// From the target.
    pub receiver: LinkReceiver<FromTarget>,
    /// Number of the next round, where there is no pre-copy.
    pub round: u32,
    /// Rounds of memory, where it can be followed.
    pub precopy: Option<PreCopy>,
    /// The container's cpu time.
    pub cpu: SourceCpu,
}

/// Where and to whom.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Node of the target.
    pub node: String,
    /// `ip:port` of its agent.
    pub address: String,
}

/// Whether what all containers of a pod have in common goes with one of them: the content of emptyDir volumes and of /dev/shm.
#[derive(Clone, Debug)]
pub enum PodTrees {
    /// It goes with another.
    Elsewhere,
    /// It goes with the one that is created last: no init container of the new pod writes anything once that is there.
    Too {
        /// Freezers of the other containers, which write to it as well.
        beside: Vec<Freezer>,
    },
}

/// Connects to the target for one container, sends what can go early, and starts what the freeze will need.
///
/// # Errors
/// With the failure to report. The pod was not touched; what was started ends by being dropped.
pub async fn connect(
    context: &Arc<Context>,
    key: &Key,
    attempt: u32,
    peer: &Peer,
    inspected: Inspected,
    pod_trees: PodTrees,
) -> Result<Connected, Failure> {
    let (sender, mut receiver) = introduce(context, key, attempt, peer, &inspected).await?;
    let directory = context.settings.attempt_directory(&key.uid, attempt).join(&inspected.name);
    let warm = warm(context, &directory, &inspected, pod_trees).await?;
    send_early(context, &sender, &mut receiver, &directory).await?;
    let cpu = SourceCpu::look(context, &inspected.container).await;
    Ok(Connected {
        attempt,
        directory,
        inspected,
        bundle: warm.bundle,
        criu: warm.criu,
        trees: warm.trees,
        sender,
        receiver,
        round: 1,
        precopy: None,
        cpu,
    })
}

type Ends = (LinkSender<FromSource>, LinkReceiver<FromTarget>);

async fn introduce(
    context: &Context,
    key: &Key,
    attempt: u32,
    peer: &Peer,
    inspected: &Inspected,
) -> Result<Ends, Failure> {
    let unreachable = |what: String| {
        retryable(
            FailureReason::AgentUnreachable,
            format!("the agent of node {} at {}: {what}", peer.node, peer.address),
        )
    };
    let mapped = mapped::of(inspected.container.freezer.clone()).await;
    let mut dial = Dial::new(context, key, attempt, peer).map_err(unreachable)?;
    let talk = async {
        let (container, bytes) = (&inspected.name, inspected.memory_bytes);
        let stream = dial.begin(&context.settings.node_name, container, bytes, mapped).await.map_err(unreachable)?;
        let (sender, mut receiver) = link::open_lasting::<_, FromSource, FromTarget>(stream, dial);
        match receiver.next().await.map_err(|error| unreachable(chain(&error)))? {
            Incoming::Message(FromTarget::Accepted { codec }) => {
                sender.agree(codec, context.compression.clone());
                Ok((sender, receiver))
            }
            Incoming::Message(FromTarget::Refused { message }) => Err(unreachable(message)),
            Incoming::Message(FromTarget::Failed { failure }) => Err(failure),
            other => Err(unreachable(format!("it answered {other:?}"))),
        }
    };
    tokio::time::timeout(CONNECT_LIMIT, talk)
        .await
        .unwrap_or_else(|_| Err(unreachable(format!("no connection within {} s", CONNECT_LIMIT.as_secs()))))
}

/// What a freeze needs, started and waiting.
pub(super) struct Warm {
    pub(super) bundle: Bundle,
    pub(super) criu: WarmCriu,
    pub(super) trees: Trees,
}

/// Starts what a freeze needs, in a directory that is made afresh.
///
/// # Errors
/// With the failure to report. What was started ends by being dropped.
pub(super) async fn warm(
    context: &Arc<Context>,
    directory: &Path,
    inspected: &Inspected,
    pod_trees: PodTrees,
) -> Result<Warm, Failure> {
    let (context, directory, inspected) = (context.clone(), directory.to_owned(), inspected.clone());
    let warm = tokio::task::spawn_blocking(move || warm_up(&context, &directory, &inspected, pod_trees)).await;
    warm.unwrap_or_else(|error| Err(retryable(FailureReason::DumpFailed, chain(&error))))
}

fn warm_up(context: &Context, directory: &Path, inspected: &Inspected, pod_trees: PodTrees) -> Result<Warm, Failure> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    let container = &inspected.container;
    make_directories(directory).map_err(|error| failed(&error))?;
    let found = descriptors::read(container.pid).map_err(|error| failed(&error))?;
    descriptors::write(&directory.join(EARLY), &found).map_err(|error| failed(&error))?;
    let bundle = Bundle::read(&container.bundle, context.node.root()).map_err(|error| failed(&error))?;
    if let Some(program) = Program::mounted(&bundle.spec.mounts) {
        program.write(&directory.join(EARLY)).map_err(|error| failed(&error))?;
    }
    let pids = container.freezer.pids().map_err(|error| failed(&error))?;
    if !have_peers(container.pid, &pids, &bundle.spec).map_err(|error| failed(&error))? {
        mount_image::note_no_peers(&directory.join(EARLY)).map_err(|error| failed(&error))?;
    }
    let trees = trees(context, inspected, pod_trees).map_err(|error| failed(&error))?;
    let outside_ipc = preflight::holds_system_v(container.pid).map_err(|error| failed(&error))?;
    let place = Place { namespaces_of: container.pid, outside_ipc, node_root: context.node.root().to_owned() };
    WarmCriu::examine(&context.criu, &place.node_root).map_err(|error| failed(&error))?;
    let criu = WarmCriu::start(&context.criu, &place).map_err(|error| failed(&error))?;
    Ok(Warm { bundle, criu, trees })
}

fn make_directories(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    [IMAGES, WORK, EARLY].iter().try_for_each(|name| builder.create(directory.join(name)))
}

/// The trees that move, as this process sees them; their parts are of no round yet.
fn trees(context: &Context, inspected: &Inspected, pod_trees: PodTrees) -> Result<Trees, places::PlaceError> {
    let uid = inspected.pod.metadata.uid.as_deref().unwrap_or_default();
    let upper = places::upper_directory(inspected.container.pid)?;
    let mut trees = vec![(Part::Layer { round: 0 }, context.node.path(&upper), TreeKind::Layer)];
    let mut freezers = vec![inspected.container.freezer.clone()];
    match pod_trees {
        PodTrees::Elsewhere => return Ok(Trees::new(freezers, trees)),
        PodTrees::Too { beside } => freezers.extend(beside),
    }
    for name in places::empty_dirs(&inspected.pod) {
        let path = context.node.path(&places::empty_dir(&context.settings.kubelet_root, uid, &name));
        trees.push((Part::Volume { name, round: 0 }, path, TreeKind::Volume));
    }
    let memory = places::shared_memory(&context.node, &inspected.container.bundle)?;
    if let Some(path) = memory.map(|path| context.node.path(&path)) {
        // An emptyDir may be mounted there: it goes as what it is.
        if !trees.iter().any(|(_, tree, _)| places::same_directory(tree, &path)) {
            trees.push((Part::SharedMemory { round: 0 }, path, TreeKind::Volume));
        }
    }
    Ok(Trees::new(freezers, trees))
}

/// Round 0: what `runc restore` needs when it is started, long before the images are there.
pub(super) async fn send_early(
    context: &Context,
    sender: &LinkSender<FromSource>,
    receiver: &mut LinkReceiver<FromTarget>,
    directory: &Path,
) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::TransferFailed, chain(error));
    let mut round = send::begin(sender, 0, false).await.map_err(|error| failed(&error))?;
    let early = directory.join(EARLY);
    for (name, path) in early_files(&early).map_err(|error| failed(&error))? {
        let file = File::open(path).map_err(|error| failed(&error))?;
        round.part(Part::Image { name }, file).await.map_err(|error| failed(&error))?;
    }
    if let Some(program) = Program::read(&early).map_err(|error| failed(&error))? {
        // The target may have been installed after this container was started.
        let file = File::open(context.node.path(&program.path())).map_err(|error| failed(&error))?;
        round.part(Part::Image { name: program::CONTENT.to_owned() }, file).await.map_err(|error| failed(&error))?;
    }
    let digest = round.end().await.map_err(|error| failed(&error))?.digest();
    match receiver.next().await.map_err(|error| failed(&error))? {
        Incoming::Message(FromTarget::Verified { round: 0, digest: theirs }) if theirs == digest => Ok(()),
        Incoming::Message(FromTarget::Failed { failure }) => Err(failure),
        other => Err(retryable(FailureReason::TransferFailed, format!("the target answered {other:?} to round 0"))),
    }
}

/// All that [`warm`] has left in the directory `early`, by name.
fn early_files(early: &Path) -> std::io::Result<Vec<(String, PathBuf)>> {
    let named = |entry: DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry.path());
    early.read_dir()?.map(|entry| entry.map(named)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_noted_before_the_dump_goes_early() {
        let directory = tempfile::tempdir().unwrap();
        descriptors::write(directory.path(), &["/dev/null", "pipe:[1]", "pipe:[2]"].map(str::to_owned)).unwrap();
        mount_image::note_no_peers(directory.path()).unwrap();
        let found = early_files(directory.path()).unwrap();
        let target = tempfile::tempdir().unwrap();
        for (name, path) in found {
            std::fs::copy(path, target.path().join(name)).unwrap();
        }
        assert!(mount_image::are_none_noted(target.path()));
        assert!(target.path().join(descriptors::FILE).exists());
    }
}
