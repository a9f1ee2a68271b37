//! The agent as it runs: everything is started in the order in which it may be relied on, and ended when it is told to.

use crate::agent::alone::{Alone, AloneError, LOCK};
use crate::agent::checkpoint::Checkpoints;
use crate::agent::checkpoint::shelf::ShelfError;
use crate::agent::checkpoint::tell::Figures;
use crate::agent::checkpoint::watch::watch as take_checkpoints;
use crate::agent::context::{Context, RequestError, answer};
use crate::agent::host::{self, FactsError, NodeRoot};
use crate::agent::identity;
use crate::agent::images;
use crate::agent::install::{self, InstallError};
use crate::agent::journal::{Journal, JournalError};
use crate::agent::metrics;
use crate::agent::restarts::count::Counts;
use crate::agent::restarts::watch::watch as tell_restarts;
use crate::agent::room::Room;
use crate::agent::settings::Settings;
use crate::agent::source::cpu::put_back;
use crate::agent::source::snapshot;
use crate::agent::supervise::{Supervisor, known};
use crate::agent::target::listen::{self, ListenError};
use crate::agent::target::local::{self, LocalError};
use crate::agent::target::lost::Lost;
use crate::agent::target::registry::Registry;
use crate::agent::transfer::tally::Tally;
use crate::causes::chain;
use crate::criu::CriuProgram;
use crate::local::SOCKET;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::api::Api;
use prometheus_client::registry::Registry as Metrics;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{info, warn};

/// Exists while the agent is ready: certificate there, sockets open, every Migration seen once.
pub const READY: &str = "/run/tideover/ready";
/// How often readiness, or the end of a move, is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long a move that is under way may keep an agent that was told to end. The pod's grace period is longer.
const LEAVE_LIMIT: Duration = Duration::from_secs(60);

/// Why the agent can't run.
#[derive(Debug, Error)]
pub enum RunError {
    /// The cluster is not reachable by what the pod was given.
    #[error("find the API server")]
    Config(#[source] Box<kube::Error>),
    /// Whether another agent runs here.
    #[error("be the only agent of this node")]
    Alone(#[from] AloneError),
    /// The journal can't be read. What may be frozen here would be forgotten.
    #[error("read the journal")]
    Journal(#[from] JournalError),
    /// Facts of this node.
    #[error("look at this node")]
    Facts(#[from] FactsError),
    /// Left-over images.
    #[error("remove images that belong to nothing")]
    Images(#[source] std::io::Error),
    /// Half a checkpoint.
    #[error("clear what an agent before this one has left of checkpoints")]
    Shelf(#[from] ShelfError),
    /// The address for other agents.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The socket for shim and relay.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// Signals.
    #[error("listen for signals")]
    Signals(#[source] std::io::Error),
    /// The sign of readiness.
    #[error("write {READY}")]
    Ready(#[source] std::io::Error),
    /// The clean-up.
    #[error("take Tideover off the node")]
    Uninstall(#[from] InstallError),
    /// A part that never ends has ended.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// Where something that it can't do without does not work. What is frozen stays frozen; the next agent goes on.
pub async fn run(settings: Settings) -> Result<(), RunError> {
    let alone = tokio::task::spawn_blocking(|| Alone::wait(Path::new(LOCK))).await;
    let _alone = alone.map_err(|_| RunError::Ended("the wait for another agent's end"))??;
    not_ready();
    let journal = Journal::open(&settings.journal())?;
    let node = NodeRoot::default();
    let entries = put_back(journal.entries()?, &journal, &node)?;
    let entries = snapshot::take_over(entries, &journal, &node).await;
    let mut registered = Metrics::default();
    let figures = Figures::in_registry(&mut registered);
    let checkpoints = Checkpoints::new(settings.checkpoints(), settings.checkpoint_quota, figures);
    checkpoints.shelf.clear()?;
    images::remove_unknown(&settings.images(), &known(&entries)).map_err(RunError::Images)?;
    let client = kube::Client::try_default().await.map_err(|error| RunError::Config(Box::new(error)))?;
    let criu = CriuProgram::installed().withholding();
    let criu_version = host::criu_version(&criu)?;
    info!(node = settings.node_name, criu = %criu_version, "agent");
    let (identity_sender, identity) = watch::channel(None);
    let keeping =
        identity::keep(client.clone(), settings.namespace.clone(), settings.node_name.clone(), identity_sender);
    let room = Room::on(settings.images());
    let lost = Lost::in_registry(&mut registered);
    let context = Arc::new(Context {
        settings,
        client,
        journal,
        identity,
        node,
        criu,
        criu_version,
        room,
        beside: Arc::default(),
        compression: Tally::in_registry(&mut registered),
        lost,
        checkpoints,
        leaving: Arc::default(),
    });
    let registry = Registry::default();
    // Tasks of the journal are there before anybody can ask for them.
    let supervisor = Supervisor::new(context.clone(), registry.clone(), entries);
    let agents = listen::bind(context.settings.address()).await?;
    let locals = local::bind(Path::new(SOCKET))?;
    let restarts = Counts::in_registry(&mut registered);
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Signals)?;
    let ended = tokio::select! {
        () = supervisor.run() => "the watch of Migrations",
        () = keeping => "the upkeep of the certificate",
        () = listen::serve(context.clone(), registry.clone(), agents) => "the listener for agents",
        () = local::serve(context.clone(), registry.clone(), locals) => "the listener for shim and relay",
        () = tell_restarts(context.clone(), restarts) => "the look at restarts",
        () = take_checkpoints(context.clone(), registry.clone()) => "the look at checkpoints",
        () = metrics::serve(context.settings.metrics(), Arc::new(registered)) => "the metrics",
        result = tell_readiness(context.clone(), registry) => return result,
        () = told_to_end(&context, &mut terminate) => return leave(&context).await,
    };
    Err(RunError::Ended(ended))
}

async fn tell_readiness(context: Arc<Context>, registry: Registry) -> Result<(), RunError> {
    loop {
        if registry.is_synced() && context.identity.borrow().is_some() {
            std::fs::write(READY, "").map_err(RunError::Ready)?;
            info!("ready");
            return std::future::pending().await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn not_ready() {
    // It is not there after a boot; then nothing has to be removed.
    std::fs::remove_file(READY).ok();
}

/// Waits until the agent is told to end, and then until what is under way here has come to its end. What takes too long
/// is left as it is: the next agent reads it in the journal.
async fn told_to_end(context: &Context, terminate: &mut Signal) {
    terminate.recv().await;
    not_ready();
    context.leaving.send_replace(true);
    let begun = Instant::now();
    while begun.elapsed() < LEAVE_LIMIT && context.journal.entries().is_ok_and(|entries| !entries.is_empty()) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Told to end: takes Tideover off the node where its DaemonSet is gone, and just ends where that is being restarted.
/// What is frozen stays so, and the next agent reads it in the journal.
async fn leave(context: &Context) -> Result<(), RunError> {
    let Some(name) = &context.settings.daemonset else { return Ok(()) };
    if !is_gone(context, name).await {
        info!("told to end; the DaemonSet is still there");
        return Ok(());
    }
    if !context.journal.entries()?.is_empty() {
        warn!("the DaemonSet is gone while a move is under way: the node is left as it is");
        return Ok(());
    }
    info!("the DaemonSet is gone: taking Tideover off the node");
    let node = context.node.clone();
    let removed = tokio::task::spawn_blocking(move || install::uninstall(&node)).await;
    removed.map_err(|_| RunError::Ended("the clean-up"))??;
    Ok(())
}

/// Whether the DaemonSet is gone or going. Helm removes the permission to ask together with it, so a refusal means the same;
/// no answer at all means nothing.
async fn is_gone(context: &Context, name: &str) -> bool {
    let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), &context.settings.namespace);
    match answer(api.get_opt(name)).await {
        Ok(found) => found.is_none_or(|found| found.metadata.deletion_timestamp.is_some()),
        Err(RequestError::Api(kube::Error::Api(status))) => matches!(status.code, 401 | 403),
        Err(error) => {
            warn!(error = %chain(&error), "whether the DaemonSet is gone is unknown");
            false
        }
    }
}
