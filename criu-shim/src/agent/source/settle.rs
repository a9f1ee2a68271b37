//! From the verdict to the end: thaw after an abort, retire after a commit. Also for what an agent before this one left.

use crate::agent::context::{Context, Key, answer};
use crate::agent::failure::chain;
use crate::agent::journal::SourceEntry;
use crate::agent::owner::{Aborted, Committed, Decision, OwnerError};
use crate::agent::source::frozen::FrozenPod;
use crate::criu::{ProcessId, RunningDump, Waited};
use crate::freezer::{Freezer, FreezerError};
use std::sync::Arc;
use std::time::Duration;
use tracing::{error, info, warn};

/// Pause before something that must succeed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How often the source's object is looked at until it is gone.
const LOOK: Duration = Duration::from_millis(100);
/// How long one wait for a hung CRIU lasts.
const HUNG_WAIT: Duration = Duration::from_secs(60);

/// How a frozen pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The application runs here.
    Thawed,
    /// Nothing of it runs here.
    Retired,
}

/// Takes over what the journal says an earlier agent began: waits for its CRIU to end, and sees that the attempt is
/// decided.
///
/// # Errors
/// [`OwnerError::Gone`]: nobody will ever know how it was decided, and the pod stays as it is.
pub async fn take_over(
    context: &Arc<Context>,
    key: &Key,
    attempt: u32,
    entry: &SourceEntry,
) -> Result<(Option<FrozenPod>, Decision), OwnerError> {
    let mut told = false;
    while entry.criu.is_alive() && !is_zombie(entry.criu) {
        if !told {
            info!(migration = key.name, pid = entry.criu.pid, "waiting for a CRIU of the agent before this one");
            told = true;
        }
        tokio::time::sleep(LOOK).await;
    }
    let pod = loop {
        match Freezer::at(&entry.cgroup, context.node.root()) {
            Ok(freezer) => break Some(FrozenPod::adopt(freezer)),
            Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }) => break None,
            Err(error) => warn!(cgroup = ?entry.cgroup, error = %chain(&error), "looking for what may be frozen"),
        }
        tokio::time::sleep(AGAIN).await;
    };
    let decision = context.ownership(key).abort(attempt, &context.settings.node_name).await?;
    Ok((pod, decision))
}

/// A CRIU whose parent is gone is reaped by the node's first process; until then it has ended all the same.
fn is_zombie(process: ProcessId) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Thaws, however often it takes.
pub async fn thaw(mut pod: FrozenPod, hung: Option<RunningDump>, proof: Aborted) {
    if let Some(mut running) = hung {
        if let Err(error) = pod.thaw_under_criu(&proof) {
            warn!(error = %chain(&error), "thawing a pod whose dump hangs");
        }
        // In a pod that runs, CRIU gets on, finds it changed or does not, and ends by itself.
        let waiting = tokio::task::spawn_blocking(move || {
            while matches!(running.wait(HUNG_WAIT), Ok(Waited::Overdue)) {
                error!("CRIU still hangs in a pod that runs");
            }
        });
        waiting.await.ok();
    }
    let proof = Arc::new(proof);
    loop {
        let (thawing, proof) = (pod, proof.clone());
        match tokio::task::spawn_blocking(move || thawing.thaw(&proof)).await {
            Ok(Err((back, error))) => {
                error!(error = %chain(&error), "the pod is to run again and does not thaw, trying again");
                pod = back;
            }
            Ok(Ok(())) => return,
            Err(error) => return error!(%error, "thawing ended unexpectedly, the journal has it"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Ends the processes, once the source's object is gone or going. Before that, kubelet would start the container again
/// as soon as it sees it end; what is frozen does not end.
pub async fn retire(context: &Arc<Context>, entry: &SourceEntry, pod: Option<FrozenPod>, proof: Committed) {
    object_gone(context, entry).await;
    let Some(mut pod) = pod else { return };
    let proof = Arc::new(proof);
    loop {
        let (retiring, proof) = (pod, proof.clone());
        match tokio::task::spawn_blocking(move || retiring.retire(&proof)).await {
            Ok(Err((back, error))) => {
                error!(error = %chain(&error), "processes of the source are left, trying again");
                pod = back;
            }
            Ok(Ok(())) => return,
            Err(error) => return error!(%error, "retiring ended unexpectedly, the journal has it"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Waits until the source's object is deleted or about to be.
async fn object_gone(context: &Arc<Context>, entry: &SourceEntry) {
    let pods = context.pods(&entry.pod_namespace);
    let mut pause = LOOK;
    loop {
        match answer(pods.get_opt(&entry.pod_name)).await {
            Ok(Some(pod)) => {
                let same = pod.metadata.uid.as_deref() == Some(&entry.pod_uid);
                if !same || pod.metadata.deletion_timestamp.is_some() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                warn!(pod = entry.pod_name, error = %chain(&error), "whether the source's object is gone is unknown")
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}
