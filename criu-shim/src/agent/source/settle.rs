//! From the verdict to the end: thaw after an abort, retire after a commit. Also for what an agent before this one left.

use crate::agent::context::{Context, Key, answer};
use crate::agent::host::NodeRoot;
use crate::agent::injector::injector;
use crate::agent::journal::SourceEntry;
use crate::agent::owner::{Committed, Decision, OwnerError};
use crate::agent::source::cpu;
use crate::agent::source::frozen::{FrozenContainer, FrozenPod, MayRun};
use crate::agent::source::last_word::Unsaid;
use crate::causes::chain;
use crate::criu::{ProcessId, RunningDump, Waited, parasite};
use crate::freezer::{Freezer, FreezerError};
use crate::memory::Injector;
use crate::throttle::CpuLimits;
use futures::future::join_all;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Pause before something that must succeed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How often the source's object is looked at until it is gone.
const LOOK: Duration = Duration::from_millis(100);
/// How long a CRIU that may be at work properly is left alone. It gives up to seize tasks after ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a hung CRIU is waited for between two thaws.
const HUNG_WAIT: Duration = Duration::from_secs(5);
/// How often the processes of a container are looked through for what a CRIU has left.
const CURES: usize = 8;

/// A CRIU that may still be at work in a frozen pod.
#[derive(Debug)]
pub enum LiveCriu {
    /// One that this agent started, and that has not answered in time.
    Hung(RunningDump),
    /// One of an agent before this one. It ends by itself unless it hangs.
    Left(ProcessId),
}

impl LiveCriu {
    /// The one that an agent before this one has started, if it has not ended yet.
    pub fn left(process: ProcessId) -> Option<Self> {
        is_at_work(process).then_some(Self::Left(process))
    }

    /// How long it may go on in the frozen pod: a dump that is under way is better left to end.
    fn patience(&self) -> Duration {
        match self {
            Self::Hung(_) => Duration::ZERO,
            Self::Left(_) => PATIENCE,
        }
    }

    /// Whether it ends within `limit`. Blocking.
    fn ends_within(&mut self, limit: Duration) -> bool {
        match self {
            // A CRIU that has answered, or that can't be talked to any more, has ended or is about to.
            Self::Hung(running) => !matches!(running.let_go(limit), Ok(Waited::Overdue)),
            Self::Left(process) => {
                let begun = Instant::now();
                while is_at_work(*process) {
                    if begun.elapsed() >= limit {
                        return false;
                    }
                    std::thread::sleep(LOOK);
                }
                true
            }
        }
    }
}

/// What was taken over from an agent before this one.
#[derive(Debug)]
pub struct TakenOver {
    /// The pod, without containers that have ended.
    pub pod: FrozenPod,
    /// Those CRIUs in it that have not ended yet.
    pub criu: Vec<LiveCriu>,
    /// How the attempt was decided.
    pub decision: Decision,
}

/// Takes over what the journal says an earlier agent began, and sees that the attempt is decided. That comes first: its
/// CRIU may hang, and ends then in a pod that runs only.
///
/// # Errors
/// [`OwnerError::Gone`]: nobody will ever know how it was decided, and the pod stays as it is.
pub async fn take_over(
    context: &Arc<Context>,
    (key, attempt): (&Key, u32),
    entry: &SourceEntry,
    unsaid: Option<Unsaid>,
) -> Result<TakenOver, OwnerError> {
    let decision = context.ownership(key).abort(attempt, &context.settings.node_name, unsaid).await?;
    let (mut containers, mut criu) = (Vec::new(), Vec::new());
    for container in &entry.containers {
        loop {
            match Freezer::at(&container.cgroup, context.node.root()) {
                Ok(freezer) => {
                    let limits = CpuLimits::adopt(&container.cpu, context.node.root());
                    containers.push(FrozenContainer { freezer, limits });
                    break;
                }
                Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }) => break,
                Err(error) => {
                    warn!(cgroup = ?container.cgroup, error = %chain(&error), "looking for what may be frozen");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        if let Some(left) = LiveCriu::left(container.criu) {
            info!(migration = key.name, pid = container.criu.pid, "a CRIU of the agent before this one is at work");
            criu.push(left);
        }
    }
    Ok(TakenOver { pod: FrozenPod::adopt(containers), criu, decision })
}

fn is_at_work(process: ProcessId) -> bool {
    process.is_alive()
        && !is_zombie(&std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap_or_default())
}

/// A CRIU whose parent is gone is reaped by the node's first process; until then it has ended all the same.
fn is_zombie(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// Thaws, however often it takes, and sees that the cpu limits are as they were found. CRIU, where one is at work, freezes again
/// what it found frozen when it ends: it has ended before this does.
pub async fn thaw(mut pod: FrozenPod, criu: Vec<LiveCriu>, proof: impl Into<MayRun>) -> Instant {
    let proof = Arc::new(proof.into());
    for criu in criu {
        pod = outlast(pod, criu, &proof).await;
    }
    loop {
        let spare = pod.spare();
        let (thawing, proof) = (pod, proof.clone());
        pod = match tokio::task::spawn_blocking(move || thawing.thaw(&proof)).await {
            Ok(Ok(limits)) => {
                let thawed = Instant::now();
                join_all(limits.into_iter().map(cpu::restored)).await;
                return thawed;
            }
            Ok(Err(failed)) => {
                let (back, error) = *failed;
                error!(error = %chain(&error), "the pod is to run again and does not thaw, trying again");
                back
            }
            Err(error) => {
                error!(%error, "thawing ended unexpectedly, trying again");
                FrozenPod::adopt(spare)
            }
        };
        tokio::time::sleep(AGAIN).await;
    }
}

/// Has the processes of a pod that runs again give back what a CRIU that was killed in them has left: with it they can't be
/// dumped again. Where nothing is left, their mappings are read and that is all.
pub async fn cure(freezers: Vec<Freezer>, node: &NodeRoot) {
    let injector = injector(node);
    let curing = tokio::task::spawn_blocking(move || {
        for freezer in &freezers {
            // A process may have been forked from one that was not looked at yet. One that makes such mappings itself is no reason to
            // go on for ever.
            for _ in 0..CURES {
                if !cure_once(freezer, &injector) {
                    break;
                }
            }
        }
    });
    if let Err(error) = curing.await {
        error!(%error, "what a CRIU may have left was not looked for to the end");
    }
}

/// Whether anything was given back.
fn cure_once(freezer: &Freezer, injector: &Injector) -> bool {
    let pids = match freezer.pids() {
        Ok(pids) => pids,
        Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }) => return false,
        Err(error) => {
            warn!(error = %chain(&error), "what a CRIU may have left is not looked for");
            return false;
        }
    };
    let mut given_back = false;
    for pid in pids {
        match parasite::remove(pid, injector) {
            Ok(removed) => given_back |= removed,
            Err(error) => {
                error!(pid, error = %chain(&error), "what a CRIU that was killed has left stays in a process")
            }
        }
    }
    if given_back {
        info!(cgroup = ?freezer.path_in_node(), "what a CRIU that was killed has left was removed");
    }
    given_back
}

/// Waits for the end of `criu`, with the pod thawed as soon as patience is over. In a pod that runs, CRIU gets on, finds
/// it changed or does not, and ends by itself.
async fn outlast(mut pod: FrozenPod, mut criu: LiveCriu, proof: &Arc<MayRun>) -> FrozenPod {
    let (spare, proof) = (pod.spare(), proof.clone());
    let outlasting = tokio::task::spawn_blocking(move || {
        if criu.ends_within(criu.patience()) {
            return pod;
        }
        loop {
            // One thaw may come to nothing, or be undone by CRIU.
            if let Err(error) = pod.thaw_under_criu(&proof) {
                warn!(error = %chain(&error), "thawing a pod whose dump hangs");
            }
            if criu.ends_within(HUNG_WAIT) {
                return pod;
            }
            error!("CRIU still hangs in a pod that is to run");
        }
    });
    outlasting.await.unwrap_or_else(|error| {
        error!(%error, "waiting for CRIU ended unexpectedly");
        FrozenPod::adopt(spare)
    })
}

/// Waits for the end of a CRIU in a pod that was committed elsewhere: nothing of it may run any more, so it stays frozen.
async fn outwait(mut criu: LiveCriu) {
    let waiting = tokio::task::spawn_blocking(move || criu.ends_within(PATIENCE));
    match waiting.await {
        Ok(true) => {}
        Ok(false) => warn!("CRIU is still at work in a pod that is to end"),
        Err(error) => error!(%error, "waiting for CRIU ended unexpectedly"),
    }
}

/// Ends the processes, once the source's object is gone or going. Before that, kubelet would start the container again
/// as soon as it sees it end; what is frozen does not end.
pub async fn retire(
    context: &Arc<Context>,
    entry: &SourceEntry,
    mut pod: FrozenPod,
    criu: Vec<LiveCriu>,
    proof: Committed,
) {
    object_gone(context, entry).await;
    for criu in criu {
        outwait(criu).await;
    }
    let proof = Arc::new(proof);
    loop {
        let spare = pod.spare();
        let (retiring, proof) = (pod, proof.clone());
        pod = match tokio::task::spawn_blocking(move || retiring.retire(&proof)).await {
            Ok(Ok(())) => return,
            Ok(Err(failed)) => {
                let (back, error) = *failed;
                error!(error = %chain(&error), "processes of the source are left, trying again");
                back
            }
            Err(error) => {
                error!(%error, "retiring ended unexpectedly, trying again");
                FrozenPod::adopt(spare)
            }
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_has_ended_whatever_its_name() {
        assert!(is_zombie("7 (criu) Z 1 7"));
        assert!(is_zombie("7 (a) R) Z 1 7"));
        assert!(!is_zombie("7 (criu) D 1 7"));
        assert!(!is_zombie("7 (a) Z) S 1 7"));
        assert!(!is_zombie(""));
    }

    #[test]
    fn a_criu_left_by_another_agent_is_waited_for_no_longer_than_told() {
        let own = ProcessId::now(std::process::id().try_into().expect("pid")).expect("this process");
        assert!(!LiveCriu::Left(own).ends_within(Duration::from_millis(1)));
        assert!(LiveCriu::Left(ProcessId { start_time: own.start_time + 1, ..own }).ends_within(Duration::ZERO));
    }
}
