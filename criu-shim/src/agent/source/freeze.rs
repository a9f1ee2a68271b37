//! The freeze: from the go to the verdict.
//!
//! Whatever happens in here ends in a [`Decision`] that the API server gave: an error only ever means "ask for the
//! abort", never "thaw".

use crate::agent::context::{Context, Key, News};
use crate::agent::duty::verdict_of;
use crate::agent::failure::{chain, retryable};
use crate::agent::files::process::{PackReader, Packing};
use crate::agent::owner::{Decision, OwnerError};
use crate::agent::report::Reporter;
use crate::agent::source::connect::Connected;
use crate::agent::source::frozen::FrozenPod;
use crate::agent::transfer::link::{Incoming, LinkReceiver, LinkSender};
use crate::agent::transfer::manifest::Manifest;
use crate::agent::transfer::message::{FromSource, FromTarget, IMAGES, Part};
use crate::agent::transfer::receive::WORK;
use crate::agent::transfer::send;
use crate::criu::{DumpOptions, DumpRequest, RunningDump, Waited, WarmCriu, mend};
use crate::freezer::Freezer;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration, SourceReport, SourceStep, SourceTimings};

/// How long a dump may take before it counts as hung. A gigabyte takes a second or two.
const DUMP_LIMIT: Duration = Duration::from_secs(90);
/// How long dump and transfer may take together, until everything is verified. The operator gives up soon after.
const SEND_LIMIT: Duration = Duration::from_secs(95);
/// How long the target may take from "everything verified" to "held", and from there to the commit.
const RESTORE_LIMIT: Duration = Duration::from_secs(90);

/// How long the reason of a failure may keep the source frozen before the abort is taken.
const REPORT_LIMIT: Duration = Duration::from_millis(300);

/// What came of a freeze.
#[derive(Debug)]
pub struct Frozen {
    /// The guard.
    pub pod: FrozenPod,
    /// A dump that hangs, if one does.
    pub hung: Option<RunningDump>,
    /// How the attempt was decided; none where the object is gone.
    pub decision: Result<Decision, OwnerError>,
    /// What went wrong, if something did.
    pub failure: Option<Failure>,
    /// From the target, for what follows a commit.
    pub receiver: LinkReceiver<FromTarget>,
    /// When the first freezer write was.
    pub since: Instant,
    /// When the target said that it holds the processes.
    pub held: Option<Instant>,
}

/// Freezes the pod, dumps it, sends it, and waits until it is decided who owns it. The journal must have it already.
///
/// `report` is kept up to date, and given to `reporter`, on the way.
pub async fn freeze(
    context: &Arc<Context>,
    key: &Key,
    connected: Connected,
    news: &mut News,
    report: &mut SourceReport,
    reporter: &Reporter<SourceReport>,
) -> Frozen {
    let Connected { attempt, directory, inspected, bundle, criu, packing, sender, mut receiver } = connected;
    let ghost_limit = ghost_limit(news);
    let since = Instant::now();
    let (pod, froze) = blocking_freeze(inspected.container.freezer.clone()).await;
    let request = DumpRequest {
        pid: inspected.container.pid,
        images_dir: directory.join(IMAGES),
        work_dir: directory.join(WORK),
        freeze_cgroup: inspected.container.freezer.path_in_node().to_owned(),
        bundle,
        options: DumpOptions { ghost_limit, inotify_paths: inspected.inotify_paths, ..DumpOptions::default() },
    };
    let mut attempt_state = Attempt { held: None, hung: None, report, reporter };
    let outcome = match froze {
        Ok(took) => {
            attempt_state.frozen(took);
            attempt_state.send(request, criu, packing, &sender, &mut receiver, &mut Watching::new(news, attempt)).await
        }
        Err(error) => {
            drop(criu);
            Err(retryable(FailureReason::FreezeFailed, chain(&error)))
        }
    };
    let (held, hung) = (attempt_state.held, attempt_state.hung.take());
    // Whoever aborted it has said why; what that led to here is no news.
    let failure = outcome.err().filter(|_| !shows(news.borrow().as_deref(), attempt, Verdict::Aborted));
    if let Some(failure) = &failure {
        report.failure = Some(failure.clone());
        // Whoever sees the abort should find the reason.
        reporter.report_first(report.clone(), REPORT_LIMIT).await;
        let message = FromSource::Abort { message: failure.message.clone() };
        // A target that can't hear it sees the connection end.
        tokio::time::timeout(Duration::from_millis(100), sender.say(&message)).await.ok();
    }
    drop(sender);
    // The point of no return is the compare-and-swap, wherever it is made. Where the target has won it, this reads it.
    let decision = context.ownership(key).abort(attempt, &context.settings.node_name).await;
    Frozen { pod, hung, decision, failure, receiver, since, held }
}

async fn blocking_freeze(freezer: Freezer) -> (FrozenPod, Result<Duration, crate::freezer::FreezerError>) {
    let spare = freezer.clone();
    match tokio::task::spawn_blocking(move || FrozenPod::freeze(freezer)).await {
        Ok(frozen) => frozen,
        // The thread panicked after it may have written: the pod counts as frozen.
        Err(_) => {
            let path = spare.path_in_node().to_owned();
            (FrozenPod::adopt(spare), Err(crate::freezer::FreezerError::Gone { path }))
        }
    }
}

fn ghost_limit(news: &News) -> u32 {
    let migration = news.borrow().clone();
    let policy = migration.and_then(|migration| migration.status.as_ref()?.policy.clone());
    let default = DumpOptions::default().ghost_limit;
    policy.map_or(default, |policy| u32::try_from(policy.deleted_file_limit_bytes).unwrap_or(u32::MAX))
}

struct Attempt<'a> {
    held: Option<Instant>,
    hung: Option<RunningDump>,
    report: &'a mut SourceReport,
    reporter: &'a Reporter<SourceReport>,
}

impl Attempt<'_> {
    fn frozen(&mut self, took: Duration) {
        self.timings().freeze_wait_millis = millis(took);
        self.step(SourceStep::Frozen);
    }

    fn timings(&mut self) -> &mut SourceTimings {
        self.report.timings.get_or_insert_default()
    }

    fn step(&mut self, step: SourceStep) {
        self.report.step = step;
        self.reporter.report_later(self.report.clone());
    }

    /// Dump and send, then wait for the commit. `Ok` where the target says that it has committed or the object does.
    async fn send(
        &mut self,
        request: DumpRequest,
        criu: WarmCriu,
        packing: Vec<(Part, Packing)>,
        sender: &LinkSender<FromSource>,
        receiver: &mut LinkReceiver<FromTarget>,
        watching: &mut Watching<'_>,
    ) -> Result<(), Failure> {
        let images = request.images_dir.clone();
        let dumping = tokio::task::spawn_blocking(move || dump(criu, &request));
        let archives: Vec<(Part, PackReader)> =
            packing.into_iter().map(|(part, packing)| (part, packing.go())).collect();
        let dumped = self.send_round(dumping, archives, &images, sender, receiver, watching).await?;
        let sent = Instant::now();
        let digest = dumped.manifest.digest();
        self.timings().bytes = dumped.manifest.bytes();
        tokio::select! {
            verified = self.await_verified(&digest, receiver) => verified?,
            failure = watching.called_off() => return Err(failure),
        }
        self.timings().transfer_millis = millis(dumped.at.elapsed());
        tracing::debug!(wait = ?sent.elapsed(), "verified");
        self.step(SourceStep::Sent);
        self.await_commit(receiver, watching, Instant::now()).await
    }

    /// Sends the last round: archives while CRIU works, then CRIU's images. Whatever the connection does, CRIU is waited
    /// for: it may not be left alone with the pod.
    async fn send_round(
        &mut self,
        mut dumping: tokio::task::JoinHandle<Dumped>,
        archives: Vec<(Part, PackReader)>,
        images: &Path,
        sender: &LinkSender<FromSource>,
        receiver: &mut LinkReceiver<FromTarget>,
        watching: &mut Watching<'_>,
    ) -> Result<SentRound, Failure> {
        let early = async {
            let mut round = send::begin(sender, 1, true).await?;
            for (part, archive) in archives {
                round.part(part, archive).await?;
            }
            Ok::<_, send::SendError>(round)
        };
        let early = tokio::select! {
            early = early => early.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error))),
            failure = notice_of_failure(receiver) => Err(failure),
            failure = watching.called_off() => Err(failure),
        };
        let dumped = (&mut dumping).await;
        let at = Instant::now();
        let dumped = dumped.map_err(|error| retryable(FailureReason::DumpFailed, chain(&error)));
        match dumped? {
            Dumped::Done(took) => self.timings().dump_millis = millis(took),
            Dumped::Hung(running) => {
                self.hung = Some(running);
                let message = format!("CRIU had not finished after {} s; a stopped process?", DUMP_LIMIT.as_secs());
                return Err(retryable(FailureReason::DumpFailed, message));
            }
            Dumped::Failed(failure) => return Err(failure),
        }
        self.step(SourceStep::Dumped);
        let mut round = early?;
        let files = image_files(images)?;
        let rest = async {
            for (name, path) in files {
                let part = Part::Image { name };
                let file = File::open(&path).map_err(|source| send::SendError::Read { part: part.clone(), source })?;
                round.part(part, file).await?;
            }
            round.end().await
        };
        let sent = tokio::select! {
            sent = rest => sent.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error))),
            failure = notice_of_failure(receiver) => Err(failure),
            failure = watching.called_off() => Err(failure),
        };
        sent.map(|manifest| SentRound { manifest, at })
    }

    async fn await_verified(&self, digest: &str, receiver: &mut LinkReceiver<FromTarget>) -> Result<(), Failure> {
        match receiver.next().await.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error)))? {
            Incoming::Message(FromTarget::Verified { round: 1, digest: theirs }) if theirs == digest => Ok(()),
            Incoming::Message(FromTarget::Verified { .. }) => {
                Err(retryable(FailureReason::Corrupted, "the target computed another digest over what it received"))
            }
            Incoming::Message(FromTarget::Failed { failure }) => Err(failure),
            other => Err(retryable(FailureReason::TransferFailed, format!("the target answered {other:?}"))),
        }
    }

    /// Waits for the commit: by the target's notice or by the object, whichever is first.
    async fn await_commit(
        &mut self,
        receiver: &mut LinkReceiver<FromTarget>,
        watching: &mut Watching<'_>,
        verified: Instant,
    ) -> Result<(), Failure> {
        let deadline = tokio::time::sleep(RESTORE_LIMIT);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                said = receiver.next() => match said {
                    Ok(Incoming::Message(FromTarget::Held)) => {
                        self.held = Some(Instant::now());
                        self.timings().restore_millis = millis(verified.elapsed());
                    }
                    Ok(Incoming::Message(FromTarget::Committed | FromTarget::Resumed)) => return Ok(()),
                    Ok(Incoming::Message(FromTarget::Failed { failure })) => return Err(failure),
                    Ok(other) => {
                        let message = format!("the target said {other:?} where a commit was expected");
                        return Err(retryable(FailureReason::TransferFailed, message));
                    }
                    Err(error) => return Err(retryable(FailureReason::AgentUnreachable, chain(&error))),
                },
                // Only a hint: what is done is decided by a read of the object itself.
                () = watching.decided() => return Ok(()),
                () = &mut deadline => {
                    let message = format!("the target did not restore and commit within {} s", RESTORE_LIMIT.as_secs());
                    return Err(retryable(FailureReason::RestoreFailed, message));
                }
            }
        }
    }
}

/// Looks out for what ends an attempt from outside.
struct Watching<'a> {
    news: &'a mut News,
    attempt: u32,
    /// When everything must be verified.
    deadline: tokio::time::Instant,
}

impl<'a> Watching<'a> {
    fn new(news: &'a mut News, attempt: u32) -> Self {
        Self { news, attempt, deadline: tokio::time::Instant::now() + SEND_LIMIT }
    }

    /// Ends once the object shows that the attempt was decided.
    async fn decided(&mut self) {
        self.shown(&[Verdict::Aborted, Verdict::Committed]).await;
    }

    /// Ends once the object shows one of `verdicts`. Where the object is gone, never.
    async fn shown(&mut self, verdicts: &[Verdict]) {
        let attempt = self.attempt;
        let seen = |migration: Option<&Migration>| verdicts.iter().any(|verdict| shows(migration, attempt, *verdict));
        let shown = self.news.wait_for(|migration| seen(migration.as_deref())).await.is_ok();
        if !shown {
            std::future::pending().await
        }
    }

    /// Ends only with a reason to stop before everything is verified: an abort, or the time.
    async fn called_off(&mut self) -> Failure {
        let deadline = self.deadline;
        tokio::select! {
            () = self.shown(&[Verdict::Aborted]) => retryable(FailureReason::TransferFailed, "aborted before all was sent"),
            () = tokio::time::sleep_until(deadline) => {
                let message = format!("not everything was sent and verified within {} s", SEND_LIMIT.as_secs());
                retryable(FailureReason::TransferFailed, message)
            }
        }
    }
}

fn shows(migration: Option<&Migration>, attempt: u32, verdict: Verdict) -> bool {
    migration
        .and_then(|migration| migration.status.as_ref())
        .is_some_and(|status| verdict_of(status, attempt) == verdict)
}

struct SentRound {
    manifest: Manifest,
    /// When the dump had ended.
    at: Instant,
}

enum Dumped {
    Done(Duration),
    Hung(RunningDump),
    Failed(Failure),
}

/// Dumps, and mends what CRIU writes wrongly. Blocking.
fn dump(criu: WarmCriu, request: &DumpRequest) -> Dumped {
    let begun = Instant::now();
    let failed = |error: &dyn std::error::Error| Dumped::Failed(retryable(FailureReason::DumpFailed, chain(error)));
    let mut running = match criu.dump(request) {
        Ok(running) => running,
        Err(error) => return failed(&error),
    };
    match running.wait(DUMP_LIMIT) {
        Ok(Waited::Done(_)) => {}
        Ok(Waited::Overdue) => return Dumped::Hung(running),
        Err(error) => return failed(&error),
    }
    match mend::timerfds(&request.images_dir) {
        Ok(_) => Dumped::Done(begun.elapsed()),
        Err(error) => failed(&error),
    }
}

/// Ends only with a reason to stop sending.
async fn notice_of_failure(receiver: &mut LinkReceiver<FromTarget>) -> Failure {
    match receiver.next().await {
        Ok(Incoming::Message(FromTarget::Failed { failure })) => failure,
        Ok(other) => retryable(FailureReason::TransferFailed, format!("the target said {other:?} too early")),
        Err(error) => retryable(FailureReason::TransferFailed, chain(&error)),
    }
}

/// The images, in order of their names.
fn image_files(directory: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let failed = |error: std::io::Error| retryable(FailureReason::DumpFailed, format!("list the images: {error}"));
    let mut files = Vec::new();
    for entry in directory.read_dir().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            files.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// Milliseconds with a fraction.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::migration;
    use tokio::sync::watch;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn sending_is_called_off_by_an_abort_of_this_attempt_alone() {
        let shown = |owner: &str, decided| Some(Arc::new(migration().attempt(2).owner(owner, decided).build()));
        let (sender, mut news) = watch::channel(shown("a", 1));
        let mut watching = Watching::new(&mut news, 2);
        assert!(tokio::time::timeout(SOON, watching.called_off()).await.is_err(), "the attempt before");
        sender.send_replace(shown("b", 2));
        assert!(tokio::time::timeout(SOON, watching.called_off()).await.is_err(), "a commit is no reason");
        assert!(tokio::time::timeout(SOON, watching.decided()).await.is_ok(), "seen though it is not new");
        sender.send_replace(shown("a", 2));
        assert!(tokio::time::timeout(SOON, watching.called_off()).await.is_ok());
        sender.send_replace(None);
        drop(sender);
        assert!(tokio::time::timeout(SOON, watching.decided()).await.is_err(), "an object that is gone says nothing");
    }

    #[tokio::test]
    async fn sending_is_called_off_in_time() {
        let (_sender, mut news) = watch::channel(None);
        let mut watching = Watching::new(&mut news, 1);
        watching.deadline = tokio::time::Instant::now();
        assert!(tokio::time::timeout(SOON, watching.called_off()).await.is_ok());
    }
}
