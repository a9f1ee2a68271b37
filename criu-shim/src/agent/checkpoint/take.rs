//! Taking a checkpoint: the container's state goes over a link inside this process to this node's own disk, as that of a move goes to
//! its target, and gets its name when it is verified.

use super::about::{About, VERSION};
use super::shelf::{Shelf, ShelfError};
use super::{Subject, UnderWay, keep, obstacle};
use crate::agent::context::{Context, Key};
use crate::agent::failure::retryable;
use crate::agent::source::preflight::{self, Inspected};
use crate::agent::source::snapshot::{Taken, snapshot};
use crate::agent::target::driver::Receiving;
use crate::agent::target::registry::Registry;
use crate::agent::transfer::link::{self, LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget};
use crate::agent::transfer::receive::{Landing, ReceiveError, RoundKind};
use crate::causes::chain;
use crate::criu::Bundle;
use crate::supervised::place::Stamp;
use crate::supervised::{PLACES, Place};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use thiserror::Error;
use tideover_crds::{Failure, FailureReason, HostFacts, ObjectRef};

/// What containerd says a container's image is. Source: containerd `pkg/cri/annotations`.
const IMAGE: &str = "io.kubernetes.cri.image-name";
/// Bytes that are between the two ends of the link.
const BETWEEN: usize = 1 << 20;

/// Why there is no checkpoint.
#[derive(Debug, Error)]
pub enum NotTaken {
    /// The pod is being moved, or its container is another one by now: that passes.
    #[error("{0}")]
    NotNow(&'static str),
    /// The pod is none of which a checkpoint could be taken.
    #[error("{0}")]
    Obstacle(String),
    /// All checkpoints of this node have a limit.
    #[error("{needed} bytes more would exceed the {quota} bytes that this node keeps for checkpoints")]
    Quota {
        /// What was needed.
        needed: u64,
        /// What there is.
        quota: u64,
    },
    /// It was tried.
    #[error("{}", .0.message)]
    Failed(Failure),
    /// The disk.
    #[error(transparent)]
    Shelf(#[from] ShelfError),
}

impl NotTaken {
    /// A word for the kind of reason: what it is told for once.
    pub fn kind(&self) -> String {
        match self {
            Self::NotNow(_) => "NotNow".to_owned(),
            Self::Obstacle(_) => "Obstacle".to_owned(),
            Self::Quota { .. } => "Quota".to_owned(),
            Self::Failed(failure) => format!("{:?}", failure.reason),
            Self::Shelf(_) => "Disk".to_owned(),
        }
    }
}

/// What a container's bundle says its image is; none where it says nothing.
pub fn image(bundle: &Bundle) -> String {
    bundle.spec.annotations.get(IMAGE).cloned().unwrap_or_default()
}

/// Takes a checkpoint of the container `id`, and removes those that are superfluous then. Its record had `stamp` when it was due: where
/// that changes meanwhile, the run that is stored is not the one that was to be.
///
/// # Errors
/// [`NotTaken`]. Nothing of it is left.
pub async fn take(
    context: &Arc<Context>,
    registry: &Registry,
    subject: &Subject,
    (id, stamp): (&str, Option<Stamp>),
    kept: u32,
) -> Result<About, NotTaken> {
    let under_way = context.checkpoints.begin(&subject.pod_uid);
    let taken = attempt(context, registry, subject, (id, stamp), under_way).await;
    let (shelf, subject) = (context.checkpoints.shelf.clone(), subject.clone());
    let cleared = blocking(move || {
        shelf.clear_taking()?;
        for number in keep::superfluous(&shelf.stored(&subject)?, kept) {
            shelf.remove(&subject, number)?;
        }
        Ok(())
    });
    let cleared = cleared.await;
    let about = taken?;
    cleared?;
    Ok(about)
}

async fn attempt(
    context: &Arc<Context>,
    registry: &Registry,
    subject: &Subject,
    (id, stamp): (&str, Option<Stamp>),
    under_way: UnderWay,
) -> Result<About, NotTaken> {
    if !registry.is_synced() || registry.is_moving(&subject.pod_uid) {
        return Err(NotTaken::NotNow("the pod is being moved"));
    }
    let host = context.facts().await.map_err(NotTaken::Failed)?;
    let inspected = inspect(context, subject, id).await?;
    if let Some(obstacle) = obstacle::obstacle(&inspected.pod) {
        return Err(NotTaken::Obstacle(obstacle));
    }
    let needed = inspected.memory_bytes;
    let (shelf, whose) = (context.checkpoints.shelf.clone(), subject.clone());
    let number = blocking(move || make_room(&shelf, &whose, needed)).await?;
    let (landing, work) = context.checkpoints.shelf.taking();
    let share = context
        .room
        .promise(needed)
        .map_err(|error| NotTaken::Failed(retryable(FailureReason::NotDumpable, chain(&error))))?;
    let image = image_of(context, &inspected).await?;
    let (here, there) = tokio::io::duplex(BETWEEN);
    let ends = link::open::<_, FromSource, FromTarget>(here);
    let (to_source, from_source) = link::open::<_, FromTarget, FromSource>(there);
    let keeping = {
        let landing = landing.clone();
        Receiving::begin(async move {
            let made = tokio::task::spawn_blocking(move || Landing::create(&landing, share)).await;
            match made {
                Ok(Ok(landing)) => receive(landing, to_source, from_source).await,
                Ok(Err(error)) => refuse(&to_source, &error).await,
                // The link ends, which the other end reports.
                Err(_) => {}
            }
        })
    };
    let called_off = || context.is_leaving() || registry.is_moving(&subject.pod_uid);
    let taken = snapshot(context, (inspected, work), ends, called_off, under_way).await;
    keeping.end().await;
    let taken = taken.map_err(NotTaken::Failed)?;
    if Place::of(&context.node.path(Path::new(PLACES)), id).stamp() != stamp {
        return Err(NotTaken::NotNow("its application has ended meanwhile"));
    }
    let (shelf, subject, id) = (context.checkpoints.shelf.clone(), subject.clone(), id.to_owned());
    blocking(move || store(&shelf, &subject, &landing, (number, id, image), host, taken)).await
}

async fn inspect(context: &Arc<Context>, subject: &Subject, id: &str) -> Result<Inspected, NotTaken> {
    // The preflight asks by a Migration's namespace and its pod.
    let key = Key { namespace: subject.pod_namespace.clone(), name: String::new(), uid: String::new() };
    let pod = ObjectRef { name: subject.pod_name.clone(), uid: subject.pod_uid.clone(), node: None };
    // A pod of which another container runs is refused by that.
    let containers = [subject.container_name.clone()];
    let inspected = preflight::inspect(context, &key, &pod, &containers).await.map_err(NotTaken::Failed)?;
    let inspected = inspected.into_iter().find(|inspected| inspected.container.id == id);
    inspected.ok_or(NotTaken::NotNow("the container is another one"))
}

async fn image_of(context: &Arc<Context>, inspected: &Inspected) -> Result<String, NotTaken> {
    let (bundle, root) = (inspected.container.bundle.clone(), context.node.root().to_owned());
    blocking(move || {
        let bundle = Bundle::read(&bundle, &root);
        let bundle = bundle.map_err(|error| NotTaken::Failed(retryable(FailureReason::NotDumpable, chain(&error))))?;
        Ok(image(&bundle))
    })
    .await
}

/// Keeps what comes, until the last round.
async fn receive(mut landing: Landing, to_source: LinkSender<FromTarget>, mut from_source: LinkReceiver<FromSource>) {
    loop {
        let round = match landing.round(&mut from_source).await {
            Ok(round) => round,
            Err(error) => return refuse(&to_source, &error).await,
        };
        let verified = FromTarget::Verified { round: round.number, digest: round.manifest.digest() };
        if to_source.say(&verified).await.is_err() || round.kind == RoundKind::Last {
            return;
        }
    }
}

async fn refuse(to_source: &LinkSender<FromTarget>, error: &ReceiveError) {
    let failure = retryable(FailureReason::TransferFailed, chain(error));
    // A source that is gone knows why.
    to_source.say(&FromTarget::Failed { failure }).await.ok();
}

/// Makes room for `needed` bytes more, and says which number the next checkpoint has. Blocking.
fn make_room(shelf: &Shelf, subject: &Subject, needed: u64) -> Result<u64, NotTaken> {
    shelf.clear_taking()?;
    free(shelf, subject, needed)?;
    Ok(shelf.edit(subject, |ledger| {
        ledger.next += 1;
        ledger.next - 1
    })?)
}

/// Removes older checkpoints of the container so that `needed` bytes more are within the quota. Blocking.
fn free(shelf: &Shelf, subject: &Subject, needed: u64) -> Result<(), NotTaken> {
    let (stored, total) = (shelf.stored(subject)?, shelf.total()?);
    let Some(gone) = keep::make_room(&stored, total, needed, shelf.quota) else {
        return Err(NotTaken::Quota { needed, quota: shelf.quota });
    };
    for number in gone {
        shelf.remove(subject, number)?;
    }
    Ok(())
}

/// Verifies what has landed and gives it its name. Blocking.
fn store(
    shelf: &Shelf,
    subject: &Subject,
    landing: &Path,
    (number, container_id, image): (u64, String, String),
    host: HostFacts,
    taken: Taken,
) -> Result<About, NotTaken> {
    let (memory, bytes) = Shelf::look(landing)?;
    // Files are not counted before.
    free(shelf, subject, bytes)?;
    let about = About {
        version: VERSION,
        number,
        taken_millis: millis(taken.at),
        container_id,
        image,
        tideover: env!("CARGO_PKG_VERSION").to_owned(),
        host,
        paused_micros: u64::try_from(taken.paused.as_micros()).unwrap_or(u64::MAX),
        bytes,
        memory,
        poisoned: None,
    };
    shelf.publish(subject, landing, &about)?;
    Ok(about)
}

/// Milliseconds since 1970; 0 for what was before.
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NotTaken> + Send + 'static,
) -> Result<T, NotTaken> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(NotTaken::Failed(retryable(FailureReason::DumpFailed, chain(&error)))))
}
