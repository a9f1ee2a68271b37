//! What a freeze for a move and a freeze for a cut have in common: freeze, dump, and send as one round.

use crate::agent::context::News;
use crate::agent::failure::retryable;
use crate::agent::source::frozen::{FrozenContainer, FrozenPod};
use crate::agent::source::images::{self, Ahead};
use crate::agent::source::precopy::{self, Copied, Followed, LastLook, Shared, Trees};
use crate::agent::source::preflight::{Inspected, not_dumpable};
use crate::agent::source::watching::Watching;
use crate::agent::transfer::link::{Incoming, LinkError, LinkReceiver};
use crate::agent::transfer::manifest::Manifest;
use crate::agent::transfer::message::{FromTarget, IMAGES};
use crate::agent::transfer::receive::WORK;
use crate::agent::transfer::send::{RoundSender, SendError};
use crate::causes::chain;
use crate::criu::preflight;
use crate::criu::{
    BegunDump, Bundle, CriuError, DumpOptions, DumpRequest, Mappings, Memory, ObjectId, PagemapError, RunningDump,
    SharedError, Waited, WarmCriu, mend, pagemap,
};
use crate::freezer::{Freezer, FreezerError};
use crate::throttle::CpuLimits;
use futures::future::join;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use thiserror::Error;
use tideover_crds::{Failure, FailureReason};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long a dump may take before it counts as hung. A gigabyte takes a second or two.
const DUMP_LIMIT: Duration = Duration::from_secs(90);

/// How long CRIU may take to let go of the processes. It takes a fraction of a millisecond for each.
const LET_GO_LIMIT: Duration = Duration::from_secs(10);

/// Freezes on a thread that may block.
pub(super) async fn freeze(containers: Vec<FrozenContainer>) -> (FrozenPod, Result<Duration, FreezerError>) {
    let spare: Vec<Freezer> = containers.iter().map(|container| container.freezer.clone()).collect();
    match tokio::task::spawn_blocking(move || FrozenPod::freeze(containers)).await {
        Ok(frozen) => frozen,
        // The thread panicked after it may have written: the pod counts as frozen.
        Err(_) => {
            let path = spare.first().map(|freezer| freezer.path_in_node().to_owned()).unwrap_or_default();
            let adopted = |freezer| FrozenContainer { freezer, limits: CpuLimits::default() };
            (FrozenPod::adopt(spare.into_iter().map(adopted).collect()), Err(FreezerError::Gone { path }))
        }
    }
}

/// Gives processors back on a thread that may block, because nothing more is dumped.
pub(super) async fn give_processors_back(mut pod: FrozenPod) -> FrozenPod {
    let spare = pod.spare();
    let giving = tokio::task::spawn_blocking(move || {
        pod.give_processors_back();
        pod
    });
    // The thread panicked, and has given them back by dropping what it had.
    giving.await.unwrap_or_else(|_| FrozenPod::adopt(spare))
}

/// What CRIU is asked for, with its images in `directory`.
pub(super) fn dump_request(inspected: &Inspected, bundle: Bundle, directory: &Path, news: &News) -> DumpRequest {
    let inotify_paths = inspected.inotify_paths.clone();
    DumpRequest {
        pid: inspected.container.pid,
        images_dir: directory.join(IMAGES),
        work_dir: directory.join(WORK),
        freeze_cgroup: inspected.container.freezer.path_in_node().to_owned(),
        bundle,
        options: DumpOptions { ghost_limit: ghost_limit(news), inotify_paths, ..DumpOptions::default() },
    }
}

/// Has CRIU come to where it would touch the processes, which still run.
pub(super) async fn begin(criu: WarmCriu, request: DumpRequest) -> Result<BegunDump, Failure> {
    let beginning = tokio::task::spawn_blocking(move || {
        let memory = request.options.memory;
        let begun = criu.begin(request)?;
        begun.mappings().expect().map_err(CriuError::Withhold)?;
        if memory == Memory::ButWithheld {
            begun.withheld().expect_memory().map_err(CriuError::Withhold)?;
        }
        Ok::<_, CriuError>(begun)
    });
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    beginning.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
}

fn ghost_limit(news: &News) -> u32 {
    let migration = news.borrow().clone();
    let policy = migration.and_then(|migration| migration.status.as_ref()?.policy.clone());
    let default = DumpOptions::default().ghost_limit;
    policy.map_or(default, |policy| u32::try_from(policy.deleted_file_limit_bytes).unwrap_or(u32::MAX))
}

/// Why there is no dump.
#[derive(Debug)]
pub(super) struct Undumped {
    /// To report.
    pub(super) failure: Failure,
    /// The dump that hangs, if one does.
    pub(super) hung: Option<Box<RunningDump>>,
}

impl From<Failure> for Undumped {
    fn from(failure: Failure) -> Self {
        Self { failure, hung: None }
    }
}

/// A dump that is complete, and its round so far.
#[derive(Debug)]
pub(super) struct Dumped {
    /// The round: it has the archives and lacks CRIU's images, but for those that went ahead.
    round: RoundSender,
    ahead: Ahead,
    /// How long CRIU took.
    pub(super) took: Duration,
    /// Shared memory that it left out, bytes.
    pub(super) shared: u64,
    /// The CRIU that has hold of the processes, where they stay frozen.
    pub(super) held: Option<RunningDump>,
}

/// What goes while CRIU works.
#[derive(Debug)]
pub(super) struct Going<'a> {
    /// Of the container.
    pub(super) freezer: &'a Freezer,
    /// Files that move.
    pub(super) trees: Trees,
    /// Number of the round.
    pub(super) number: u32,
    /// Nothing is looked at after it.
    pub(super) last: bool,
    /// Processes of which pages may have been written since the last round.
    pub(super) followed: &'a mut Option<Followed>,
    /// Whether the processes stay frozen until all is sent, as in a freeze for a move. Images go then as CRIU completes them, and it
    /// keeps hold of the processes, because letting go is work in the way of the rest. Where they run again as soon as it has, they would
    /// stand still for that.
    pub(super) stays_frozen: bool,
}

/// The way from a frozen pod to a target that has verified what was sent.
pub(super) struct Line<'a> {
    /// From the target.
    pub(super) receiver: &'a mut LinkReceiver<FromTarget>,
    /// From outside.
    pub(super) watching: &'a mut Watching<'a>,
}

impl Line<'_> {
    /// Dumps, and sends what is `going` while CRIU works. Whatever the connection does, CRIU is waited for: it may not be left
    /// alone with the pod.
    pub(super) async fn dump(
        &mut self,
        begun: impl Future<Output = Result<RoundSender, SendError>>,
        criu: BegunDump,
        going: Going<'_>,
    ) -> Result<Dumped, Undumped> {
        let Going { freezer, trees, number, last, followed, stays_frozen } = going;
        let (mappings, freezer) = (criu.mappings(), freezer.clone());
        let images = criu.request().images_dir.clone();
        let mut ahead = if stays_frozen { Ahead::of(&images) } else { Ahead::default() };
        let (begin, may_begin) = mpsc::channel::<Vec<ObjectId>>();
        let (tell_copied, copied) = mpsc::channel();
        let list = (criu.request().options.memory == Memory::ButWithheld).then(|| criu.withheld());
        let ended = CancellationToken::new();
        let ending = ended.clone().drop_guard();
        let keeps_hold = stays_frozen.then(|| going.freezer.clone());
        let dumping = tokio::task::spawn_blocking(move || {
            let _ending = ending;
            // It ends at the latest with who was to say it: nothing is left out then.
            dump(criu, || may_begin.recv().unwrap_or_default(), &copied, keeps_hold.as_ref())
        });
        // A dump that has failed meanwhile waits for neither.
        let begin = move |withheld| _ = begin.send(withheld);
        // First what CRIU waits for: on few processors it waits for the rest too.
        let rest = async {
            (tokio::task::spawn_blocking(move || read_mappings(&mappings, &freezer)), trees.look(number, last))
        };
        let (looked, (reading, looking)) = join(precopy::last_look(followed, begin, list), rest).await;
        let (looked, told) = looked.map_or_else(|failure| (LastLook::default(), Err(failure)), |look| (look, Ok(())));
        let LastLook { written, copied, shared } = looked;
        tell_copied.send(copied).ok();
        let early = async {
            let mut round = begun.await?;
            precopy::send_pages(&mut round, number, written, true).await?;
            precopy::send_shared(&mut round, number, shared.clone(), true).await?;
            looking.send(&mut round).await?;
            ahead.send(&mut round, &images, &ended).await?;
            Ok::<_, SendError>((round, ahead))
        };
        let early = tokio::select! {
            early = early => early.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error))),
            failure = notice_of_failure(self.receiver) => Err(failure),
            failure = self.watching.called_off() => Err(failure),
        };
        let dumped = dumping.await.map_err(|error| retryable(FailureReason::DumpFailed, chain(&error)))?;
        let read = reading.await.map_err(|error| retryable(FailureReason::DumpFailed, chain(&error)));
        let (took, held) = dumped?;
        let rest = async {
            let ((round, ahead), (), ()) = (early?, told?, read?);
            Ok::<_, Failure>((round, ahead, fill_in(shared, images).await?))
        };
        match rest.await {
            Ok((round, ahead, shared)) => Ok(Dumped { round, ahead, took, shared, held }),
            Err(failure) => {
                let hung = match held {
                    Some(held) => let_go_of(held).await.err().and_then(|undumped| undumped.hung),
                    None => None,
                };
                Err(Undumped { failure, hung })
            }
        }
    }

    /// Sends what is in `directories`, of which one has the images of the dump, and completes its round: `before` that, a word.
    pub(super) async fn images(
        &mut self,
        dumped: Dumped,
        directories: Vec<PathBuf>,
        before: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Manifest, Failure> {
        let Dumped { mut round, ahead, .. } = dumped;
        let read = tokio::task::spawn_blocking(move || images::read(&directories, &ahead)).await;
        let read = read.map_err(|error| retryable(FailureReason::DumpFailed, chain(&error)))?;
        let images = read.map_err(|error| retryable(FailureReason::DumpFailed, chain(&error)))?;
        let rest = async {
            images::send(&mut round, images).await?;
            Ok::<_, SendError>(round)
        };
        let failed = |error: SendError| retryable(FailureReason::TransferFailed, chain(&error));
        let whole = async {
            let round = rest.await.map_err(failed)?;
            before()?;
            round.end().await.map_err(failed)
        };
        tokio::select! {
            sent = whole => sent,
            failure = notice_of_failure(self.receiver) => Err(failure),
            failure = self.watching.called_off() => Err(failure),
        }
    }

    /// Waits until the target has verified round `round`.
    pub(super) async fn verified(&mut self, round: u32, digest: &str) -> Result<(), Failure> {
        let said = tokio::select! {
            said = next_but_placed(self.receiver) => said,
            failure = self.watching.called_off() => return Err(failure),
        };
        match said.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error)))? {
            Incoming::Message(FromTarget::Verified { round: theirs, digest: landed })
                if theirs == round && landed == digest =>
            {
                Ok(())
            }
            Incoming::Message(FromTarget::Verified { .. }) => {
                Err(retryable(FailureReason::Corrupted, "the target has another digest over what has landed"))
            }
            Incoming::Message(FromTarget::Failed { failure }) => Err(failure),
            other => Err(retryable(FailureReason::TransferFailed, format!("the target answered {other:?}"))),
        }
    }
}

/// Reads for CRIU what it wants to know of mappings, while it does something else. Blocking.
fn read_mappings(mappings: &Mappings, freezer: &Freezer) {
    let pids = freezer.pids().unwrap_or_else(|error| {
        warn!(error = %chain(&error), "CRIU reads the mappings of the processes for itself");
        Vec::new()
    });
    if let Err(error) = mappings.read(&pids) {
        warn!(error = %chain(&error), "CRIU waits for the mappings of the processes, and reads them for itself");
    }
}

/// Dumps, mends what CRIU writes wrongly, and accounts for the memory that it left out. Returns how long it took, and the CRIU, where it
/// keeps hold of the processes. Blocking.
///
/// What was left out comes by `copied`, while CRIU works. Where it is to keep hold, `keeps_hold` is the container's.
fn dump(
    criu: BegunDump,
    objects: impl FnOnce() -> Vec<ObjectId>,
    copied: &mpsc::Receiver<Vec<Copied>>,
    keeps_hold: Option<&Freezer>,
) -> Result<(Duration, Option<RunningDump>), Undumped> {
    let begun = Instant::now();
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    let outside_ipc = criu.is_outside_ipc();
    let request = criu.request().clone();
    let (mut running, premise) = criu.go(objects).map_err(|error| failed(&error))?;
    // Beside CRIU, which must be waited for whatever this says, and which waits for whoever takes its notifications.
    let (waited, kept, left_behind) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            premise.holds().map_err(|error| failed(&error))?;
            preflight::inspect_frozen(request.pid, outside_ipc).map_err(|error| failed(&error))
        });
        let waited = running.wait(DUMP_LIMIT);
        let kept = match keeps_hold {
            Some(freezer) if matches!(waited, Ok(Waited::Done)) => keep_frozen(freezer, &running),
            _ => Ok(()),
        };
        (waited, kept, looking.join())
    });
    if waited.map_err(|error| failed(&error))? == Waited::Overdue {
        return Err(hangs(running, DUMP_LIMIT));
    }
    let accounted = left_behind
        .map_err(|_| retryable(FailureReason::DumpFailed, "the last look has panicked"))
        .flatten()
        .and_then(|left_behind| not_dumpable(&left_behind).map_or(Ok(()), Err))
        .and(kept)
        .and_then(|()| account(&request, copied));
    match accounted {
        Ok(()) if keeps_hold.is_some() => Ok((begun.elapsed(), Some(running))),
        Ok(()) => let_go(running).map(|()| (begun.elapsed(), None)),
        Err(failure) => {
            let hung = let_go(running).err().and_then(|undumped| undumped.hung);
            Err(Undumped { failure, hung })
        }
    }
}

/// Sees to it that processes of which there are images stay as they are, whatever becomes of the CRIU that holds them: it has thawed the
/// cgroup to seize them, and where it died they would run beside what becomes of the images. Blocking.
fn keep_frozen(freezer: &Freezer, running: &RunningDump) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    freezer.begin_to_freeze().map_err(|error| failed(&error))?;
    // It may have been gone before that.
    running.still_holds().map_err(|error| failed(&error))
}

fn hangs(running: RunningDump, limit: Duration) -> Undumped {
    let message = format!("CRIU had not finished after {} s; a stopped process?", limit.as_secs());
    Undumped { failure: retryable(FailureReason::DumpFailed, message), hung: Some(Box::new(running)) }
}

/// Has CRIU let go of the processes, which are frozen still, and end. Blocking.
fn let_go(mut running: RunningDump) -> Result<(), Undumped> {
    match running.let_go(LET_GO_LIMIT) {
        Ok(Waited::Done) => Ok(()),
        Ok(Waited::Overdue) => Err(hangs(running, LET_GO_LIMIT)),
        Err(error) => Err(retryable(FailureReason::DumpFailed, chain(&error)).into()),
    }
}

/// The same on a thread that may block.
pub(super) async fn let_go_of(running: RunningDump) -> Result<(), Undumped> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    // Where the thread panicked, what it had is dropped, and CRIU lets go.
    let letting_go = tokio::task::spawn_blocking(move || let_go(running)).await;
    letting_go.unwrap_or_else(|error| Err(failed(&error).into()))
}

/// Mends the images that `request` led to, and says in them which memory comes after the restore. Blocking.
fn account(request: &DumpRequest, copied: &mpsc::Receiver<Vec<Copied>>) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    mend::timerfds(&request.images_dir).map_err(|error| failed(&error))?;
    if request.options.memory == Memory::ButWithheld {
        let copied = copied.recv().map_err(|error| failed(&error))?;
        leave_nothing_out(&request.images_dir, &copied).map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Says in the images what shared memory the dump left out, all of which has been sent by now. Returns how many bytes.
async fn fill_in(shared: Vec<Shared>, images: PathBuf) -> Result<u64, Failure> {
    if shared.is_empty() {
        return Ok(0);
    }
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    let filling = tokio::task::spawn_blocking(move || shared.iter().map(|shared| shared.fill_in(&images)).sum());
    let filled: Result<u64, SharedError> = filling.await.map_err(|error| failed(&error))?;
    filled.map_err(|error| failed(&error))
}

/// Says in the images which memory comes after the restore. A process of which nothing was left out is looked at too: CRIU calls
/// much of what it dumps lazy, and a daemon has none of that.
fn leave_nothing_out(images: &Path, copied: &[Copied]) -> Result<(), LeftOutError> {
    for image_pid in pagemap::processes(images).map_err(LeftOutError::List)? {
        let copied = copied.iter().find(|one| one.image_pid == image_pid);
        pagemap::settle(images, image_pid, copied.map_or(&[], |one| one.ranges.as_slice()))?;
    }
    Ok(())
}

/// Why the memory that a dump left out is not accounted for.
#[derive(Debug, Error)]
enum LeftOutError {
    #[error("list the images")]
    List(#[source] std::io::Error),
    #[error("account for the memory that the dump left out")]
    Settle(#[from] PagemapError),
}

/// What the target says, but for what a relay that came back led to: that files which were in place are so again.
async fn next_but_placed(receiver: &mut LinkReceiver<FromTarget>) -> Result<Incoming<FromTarget>, LinkError> {
    loop {
        match receiver.next().await {
            Ok(Incoming::Message(FromTarget::Placed { .. })) => {}
            said => return said,
        }
    }
}

/// Ends only with a reason to stop sending.
async fn notice_of_failure(receiver: &mut LinkReceiver<FromTarget>) -> Failure {
    match next_but_placed(receiver).await {
        Ok(Incoming::Message(FromTarget::Failed { failure })) => failure,
        Ok(other) => retryable(FailureReason::TransferFailed, format!("the target said {other:?} too early")),
        Err(error) => retryable(FailureReason::TransferFailed, chain(&error)),
    }
}
