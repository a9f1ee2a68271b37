//! The freeze for a checkpoint: rounds of memory and files while the application runs, then freeze, dump, thaw, and the rest.
//!
//! It is the way of a move up to the thaw, with this node's own disk as the target. Nothing here can be committed to another node,
//! so the thaw waits for nobody's verdict; the journal has the freeze all the same, for the agent that comes after a kill.

use crate::agent::context::Context;
use crate::agent::failure::retryable;
use crate::agent::host::NodeRoot;
use crate::agent::journal::{CheckpointEntry, Entry, Journal, Side};
use crate::agent::source::connect::{self, Connected, PodTrees, Warm};
use crate::agent::source::cpu::SourceCpu;
use crate::agent::source::frozen::{FrozenContainer, FrozenPod};
use crate::agent::source::precopy::converge::{self, Decision, Stage};
use crate::agent::source::precopy::pace::Pace;
use crate::agent::source::precopy::{self, Followed, PreCopy};
use crate::agent::source::preflight::Inspected;
use crate::agent::source::round::{self, Going, Line, Undumped};
use crate::agent::source::settle::{self, LiveCriu};
use crate::agent::source::watching::Watching;
use crate::agent::transfer::link::{LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget, IMAGES};
use crate::agent::transfer::send;
use crate::causes::chain;
use crate::criu::Memory;
use crate::freezer::{Freezer, FreezerError};
use crate::throttle::CpuLimits;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::{Failure, FailureReason};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info};

/// How long the application may stand still for a checkpoint, once it is frozen: as for a rehearsal, a probe of kubelet's would soon
/// end what is to be kept.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);
/// Pause before a journal or a freezer that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the start of an agent waits for what one before it has left frozen.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(20);

/// Proof that a pod was frozen for a checkpoint only, which nobody but this node knows of. Only this module makes it.
#[derive(Debug)]
pub struct OnlyStored(());

/// What a checkpoint took.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// When the application was frozen.
    pub at: std::time::SystemTime,
    /// For how long it stood still: from the first freezer write until the thaw.
    pub paused: Duration,
}

/// Sends the state of a container by a link whose other end keeps it. It ends before the freeze where `called_off` says so between two
/// rounds, and `untouched` is dropped as soon as nothing of it looks at the pod any more.
///
/// # Errors
/// With the reason. The application runs, and nothing is left in it.
pub async fn snapshot<G: Send>(
    context: &Arc<Context>,
    (inspected, directory): (Inspected, PathBuf),
    (sender, mut receiver): (LinkSender<FromSource>, LinkReceiver<FromTarget>),
    called_off: impl Fn() -> bool + Send,
    untouched: G,
) -> Result<Taken, Failure> {
    let warm = connect::warm(context, &directory, &inspected, PodTrees::Too { beside: Vec::new() }).await?;
    connect::send_early(context, &sender, &mut receiver, &directory).await?;
    let Warm { bundle, criu, trees } = warm;
    let cpu = SourceCpu::look(context, &inspected.container).await;
    let (round, attempt) = (1, 0);
    let mut connected =
        Connected { attempt, directory, inspected, bundle, criu, trees, sender, receiver, round, precopy: None, cpu };
    match rounds(context, &mut connected, called_off).await {
        Ok(followed) => freeze(context, connected, followed, untouched).await,
        Err(failure) => {
            // Ending a warm CRIU waits for it.
            tokio::task::spawn_blocking(move || drop(connected)).await.ok();
            Err(failure)
        }
    }
}

/// Rounds until another would not make the freeze shorter, or it is short enough.
async fn rounds(
    context: &Arc<Context>,
    connected: &mut Connected,
    called_off: impl Fn() -> bool + Send,
) -> Result<Option<Followed>, Failure> {
    let Connected { inspected, trees, sender, receiver, round, .. } = connected;
    let followed = match precopy::follow(inspected.container.freezer.clone(), &context.node).await {
        Ok(followed) => Some(followed),
        Err(why) => {
            info!(container = inspected.container.id, why, "all memory is copied in the freeze");
            None
        }
    };
    let pace = Pace::new(None, Instant::now());
    let mut precopy = PreCopy::new(followed, trees.clone(), *round);
    let refused = loop {
        if let Err(failure) = precopy.next(sender, receiver).await {
            precopy.end().await;
            return Err(failure);
        }
        if called_off() {
            break Some(retryable(FailureReason::NotMovable, "the pod is about to be moved"));
        }
        let beside = context.beside.predict(precopy.size(inspected.memory_bytes));
        let left = pace.left_before(Instant::now());
        match converge::next(&pace.aims, &precopy.progress(Stage::Before, beside, left)) {
            Decision::Again => {}
            Decision::Freeze { predicted } if predicted > PAUSE_LIMIT => break Some(too_long(predicted)),
            Decision::Freeze { .. } | Decision::Wait | Decision::Throttle { .. } => break None,
            Decision::GiveUp(refusal) => break Some(too_long(refusal.predicted)),
        }
    };
    let (followed, next) = precopy.finish()?;
    *round = next;
    match refused {
        None => Ok(followed),
        Some(failure) => {
            precopy::let_go(vec![(followed, trees.clone())]).await;
            Err(failure)
        }
    }
}

fn too_long(predicted: Duration) -> Failure {
    let message = format!("the application would stand still for about {:.0} s", predicted.as_secs_f64());
    retryable(FailureReason::NotConverging, message)
}

async fn freeze<G: Send>(
    context: &Arc<Context>,
    connected: Connected,
    mut followed: Option<Followed>,
    untouched: G,
) -> Result<Taken, Failure> {
    let Connected { attempt, directory, inspected, bundle, criu, trees, sender, mut receiver, round, mut cpu, .. } =
        connected;
    cpu.plan_dump(criu.process(), inspected.container.freezer.clone(), Vec::new()).await;
    let entry = CheckpointEntry {
        cgroup: inspected.container.freezer.path_in_node().to_owned(),
        criu: criu.process(),
        cpu: cpu.limits.records(),
    };
    let uid = inspected.pod.metadata.uid.clone().unwrap_or_default();
    // No Migration has to do with it, so that there is never any news.
    let (_nobody, mut news) = watch::channel(None);
    let mut request = round::dump_request(&inspected, bundle, &directory, &news);
    if followed.is_some() {
        request.options.memory = Memory::ButWithheld;
    }
    let beginning = async {
        let begun = round::begin(criu, request).await?;
        write_down(context, &uid, entry).await.map(|()| begun)
    };
    let begun = match beginning.await {
        Ok(begun) => begun,
        Err(failure) => {
            // Before anybody else may follow them.
            precopy::let_go(vec![(followed, trees)]).await;
            drop(untouched);
            return Err(failure);
        }
    };
    let mut watching = Watching::within(&mut news, attempt, PAUSE_LIMIT);
    let mut line = Line { receiver: &mut receiver, watching: &mut watching };
    let (at, since) = (std::time::SystemTime::now(), Instant::now());
    let container = FrozenContainer { freezer: inspected.container.freezer.clone(), limits: cpu.limits };
    let (pod, froze) = round::freeze(vec![container]).await;
    let dumped = match froze {
        Ok(_) => {
            let (freezer, trees, followed) = (&inspected.container.freezer, trees.clone(), &mut followed);
            let going = Going { freezer, trees, number: round, last: true, followed, stays_frozen: false };
            line.dump(send::begin(&sender, round, true), begun, going).await
        }
        Err(error) => {
            drop(begun);
            Err(retryable(FailureReason::FreezeFailed, chain(&error)).into())
        }
    };
    let (dumped, hung) = match dumped {
        Ok(dumped) => (Ok(dumped), None),
        Err(Undumped { failure, hung }) => (Err(failure), hung),
    };
    let criu = hung.map(|hung| LiveCriu::Hung(*hung)).into_iter().collect();
    let thawed = settle::thaw(pod, criu, OnlyStored(())).await;
    let paused = thawed - since;
    precopy::let_go(vec![(followed, trees)]).await;
    settle::cure(vec![inspected.container.freezer.clone()], &context.node).await;
    forget(&context.journal, &uid).await;
    drop(untouched);
    line.watching.extend();
    let manifest = line.images(dumped?, vec![directory.join(IMAGES)], || Ok(())).await?;
    line.verified(round, &manifest.digest()).await?;
    Ok(Taken { at, paused })
}

async fn write_down(context: &Arc<Context>, pod_uid: &str, entry: CheckpointEntry) -> Result<(), Failure> {
    let entry = Entry::new("", "", pod_uid, 0, Side::Checkpoint(entry));
    let journal = context.journal.clone();
    let written = tokio::task::spawn_blocking(move || journal.write(&entry)).await;
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::FreezeFailed, chain(error));
    written.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}

/// Removes the journal entry: the pod runs as before.
async fn forget(journal: &Journal, pod_uid: &str) {
    let (journal, uid) = (journal.clone(), pod_uid.to_owned());
    match tokio::task::spawn_blocking(move || journal.remove(&uid)).await {
        Ok(Ok(())) => {}
        // The next agent thaws once more what runs.
        Ok(Err(error)) => error!(error = %chain(&error), "the journal entry of a checkpoint is left"),
        Err(error) => error!(%error, "removing a journal entry ended unexpectedly"),
    }
}

/// Thaws what an agent before this one has frozen for a checkpoint, and had not thawed when it was killed. Returns what else the
/// journal has. What can't be thawed soon is gone on with beside what follows, and its entry stays until then.
pub async fn take_over(entries: Vec<Entry>, journal: &Journal, node: &NodeRoot) -> Vec<Entry> {
    let (mut others, mut thawing) = (Vec::new(), JoinSet::new());
    for entry in entries {
        match entry.side {
            Side::Checkpoint(checkpoint) => {
                thawing.spawn(thaw_left(entry.uid, checkpoint, journal.clone(), node.clone()));
            }
            _ => others.push(entry),
        }
    }
    let all = async {
        while let Some(ended) = thawing.join_next().await {
            if let Err(error) = ended {
                error!(%error, "thawing what was frozen for a checkpoint ended unexpectedly");
            }
        }
    };
    if tokio::time::timeout(TAKE_OVER_LIMIT, all).await.is_err() {
        error!(containers = thawing.len(), "what was frozen for a checkpoint does not run as before yet");
    }
    thawing.detach_all();
    others
}

async fn thaw_left(uid: String, checkpoint: CheckpointEntry, journal: Journal, node: NodeRoot) {
    let freezer = loop {
        match Freezer::at(&checkpoint.cgroup, node.root()) {
            Ok(freezer) => break Some(freezer),
            Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }) => break None,
            Err(error) => {
                error!(cgroup = ?checkpoint.cgroup, error = %chain(&error), "looking for what may be frozen")
            }
        }
        tokio::time::sleep(AGAIN).await;
    };
    if let Some(freezer) = freezer {
        info!(cgroup = ?checkpoint.cgroup, "thawing what was frozen for a checkpoint");
        let limits = CpuLimits::adopt(&checkpoint.cpu, node.root());
        let criu = LiveCriu::left(checkpoint.criu).into_iter().collect();
        let container = FrozenContainer { freezer: freezer.clone(), limits };
        settle::thaw(FrozenPod::adopt(vec![container]), criu, OnlyStored(())).await;
        settle::cure(vec![freezer], &node).await;
    }
    forget(&journal, &uid).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::journal::TargetEntry;
    use crate::criu::ProcessId;
    use crate::freezer::FreezerState;
    use crate::throttle::fixture::{FOUND, LIFTED, Pod};
    use std::path::Path;

    #[tokio::test]
    async fn what_an_agent_that_was_killed_has_frozen_for_a_checkpoint_runs_again_as_it_was() {
        let Some(pod) = Pod::idle() else { return };
        let directory = tempfile::tempdir().expect("dir");
        let journal = Journal::open(directory.path()).expect("journal");
        let mut limits = pod.limits();
        limits.plan_lift().expect("plan");
        let freezer = Freezer::of_process(pod.pid(), Path::new("/")).expect("freezer");
        let entry = CheckpointEntry {
            cgroup: freezer.path_in_node().to_owned(),
            criu: ProcessId { pid: 0, start_time: 0 },
            cpu: limits.records(),
        };
        journal.write(&Entry::new("", "", "pod", 0, Side::Checkpoint(entry))).expect("write");
        let target = Side::Target(TargetEntry::default());
        journal.write(&Entry::new("n", "move", "uid", 1, target)).expect("write");
        let (frozen, froze) = round::freeze(vec![FrozenContainer { freezer: freezer.clone(), limits }]).await;
        froze.expect("frozen");
        assert_eq!(pod.quotas(), LIFTED);
        // As SIGKILL would.
        std::mem::forget(frozen);

        let node = NodeRoot::at(Path::new("/"));
        let others = take_over(journal.entries().expect("entries"), &journal, &node).await;
        assert_eq!(freezer.state().expect("state"), FreezerState::Thawed);
        assert_eq!(pod.quotas(), FOUND);
        assert_eq!(others.len(), 1, "what is not about that is left to others");
        assert_eq!(journal.entries().expect("entries"), others);
    }
}
