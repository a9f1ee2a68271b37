//! What every task of the agent shares.

use crate::agent::beside::Beside;
use crate::agent::checkpoint::Checkpoints;
use crate::agent::failure::retryable;
use crate::agent::host::{self, NodeRoot};
use crate::agent::identity::Tls;
use crate::agent::journal::Journal;
use crate::agent::owner::Ownership;
use crate::agent::room::Room;
use crate::agent::settings::Settings;
use crate::agent::target::lost::Lost;
use crate::agent::transfer::tally::Tally;
use crate::causes::chain;
use crate::criu::CriuProgram;
use crate::criu::version::Version;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tideover_crds::{Failure, FailureReason, HostFacts, Migration};
use tokio::sync::watch;

/// What every task of the agent shares.
#[derive(Clone)]
pub struct Context {
    /// What the agent was told.
    pub settings: Settings,
    /// The API server.
    pub client: kube::Client,
    /// The journal.
    pub journal: Journal,
    /// This node's certificate, once there is one.
    pub identity: watch::Receiver<Option<Arc<Tls>>>,
    /// The node's file system.
    pub node: NodeRoot,
    /// CRIU on this node.
    pub criu: CriuProgram,
    /// Its version.
    pub criu_version: Version,
    /// What incoming states may still take of this node's disk.
    pub room: Room,
    /// What freezes of this node's moves have taken.
    pub beside: Arc<Beside>,
    /// How the pages of moves from this node have crossed.
    pub compression: Tally,
    /// States that were lost here.
    pub lost: Lost,
    /// Checkpoints of this node's containers.
    pub checkpoints: Checkpoints,
    /// True when the agent was told to end: nothing new is begun.
    pub leaving: Arc<watch::Sender<bool>>,
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Context {
    /// Whether the agent was told to end.
    pub fn is_leaving(&self) -> bool {
        *self.leaving.borrow()
    }

    /// Returns once it was.
    pub async fn told_to_leave(&self) {
        // The sender is here, so that it does not end before.
        self.leaving.subscribe().wait_for(|leaving| *leaving).await.ok();
    }

    /// Facts of this node as they are now.
    ///
    /// # Errors
    /// With the failure to report.
    pub async fn facts(self: &Arc<Self>) -> Result<HostFacts, Failure> {
        let context = self.clone();
        let facts = tokio::task::spawn_blocking(move || host::facts(&context.node, context.criu_version)).await;
        let failed = |error: &dyn std::error::Error| retryable(FailureReason::IncompatibleHost, chain(error));
        facts.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    /// The pods of a namespace.
    pub fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The owner field of a Migration.
    pub fn ownership(&self, key: &Key) -> Ownership {
        Ownership::new(self.client.clone(), &key.namespace, &key.name, &key.uid)
    }
}

/// How long one request to the API server may take. The client itself would wait for a connection that was cut half way
/// until the kernel gives it up.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Why a request to the API server has no result.
#[derive(Debug, Error)]
pub enum RequestError {
    /// No answer in time. Whether a write was done is unknown.
    #[error("no answer from the API server within {} s", REQUEST_LIMIT.as_secs())]
    Slow,
    /// What the client said.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Waits for the answer to one request that is not a watch, five seconds at most.
///
/// # Errors
/// [`RequestError`].
pub async fn answer<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST_LIMIT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Slow),
    }
}

/// One Migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Key {
    /// The key of an object that came from the API server.
    pub fn of(migration: &Migration) -> Self {
        let metadata = &migration.metadata;
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
        }
    }
}

/// The newest object that the watch has shown, for one Migration; `None` before the first and after it is gone.
pub type News = watch::Receiver<Option<Arc<Migration>>>;
