//! The freeze: from the go to the verdict.
//!
//! Whatever happens in here ends in a [`Decision`] that the API server gave: an error only ever means "ask for the
//! abort", never "thaw".

use crate::agent::context::{Context, Key, News};
use crate::agent::failure::retryable;
use crate::agent::owner::{Decision, OwnerError};
use crate::agent::report::Reporter;
use crate::agent::source::connect::Connected;
use crate::agent::source::frozen::FrozenPod;
use crate::agent::source::precopy::{Followed, Trees};
use crate::agent::source::round::{self, Going, Line, Undumped};
use crate::agent::source::watching::{Watching, shows};
use crate::agent::transfer::link::{Incoming, LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget};
use crate::agent::transfer::send;
use crate::causes::chain;
use crate::criu::{DumpRequest, Memory, RunningDump, WarmCriu};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, SourceReport, SourceStep, SourceTimings};

/// How long the target may take from "everything verified" to "held", and from there to the commit.
const RESTORE_LIMIT: Duration = Duration::from_secs(90);

/// How long the reason of a failure may keep the source frozen before the abort is taken.
const REPORT_LIMIT: Duration = Duration::from_millis(300);

/// What came of a freeze.
#[derive(Debug)]
pub struct Frozen {
    /// The guard.
    pub pod: FrozenPod,
    /// What followed its memory. Not to be dropped while it is frozen.
    pub followed: Option<Followed>,
    /// What was known of its files, and what watched them. Not to be dropped either.
    pub trees: Trees,
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
    (connected, mut followed): (Connected, Option<Followed>),
    news: &mut News,
    report: &mut SourceReport,
    reporter: &Reporter<SourceReport>,
) -> Frozen {
    let Connected { attempt, directory, inspected, bundle, criu, trees, sender, mut receiver, round, cpu, .. } =
        connected;
    // Frozen, the application is better off with a roll-back than with a wait for another connection.
    sender.renew_no_more();
    let mut request = round::dump_request(&inspected, bundle, &directory, news);
    if followed.is_some() {
        request.options.memory = Memory::ButWithheld;
    }
    let since = Instant::now();
    let (pod, froze) = round::freeze(inspected.container.freezer, cpu.limits).await;
    let mut attempt_state = Attempt { held: None, hung: None, report, reporter };
    let outcome = match froze {
        Ok(took) => {
            attempt_state.frozen(took);
            let mut watching = Watching::new(news, attempt);
            let mut line = Line { receiver: &mut receiver, watching: &mut watching };
            let going = Going { trees: trees.clone(), number: round, followed: &mut followed };
            attempt_state.send(request, criu, going, &sender, &mut line).await
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
    Frozen { pod, followed, trees, hung, decision, failure, receiver, since, held }
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
        going: Going<'_>,
        sender: &LinkSender<FromSource>,
        line: &mut Line<'_>,
    ) -> Result<(), Failure> {
        let (images, round) = (request.images_dir.clone(), going.number);
        let dumped = match line.dump(send::begin(sender, round, true), request, criu, going).await {
            Ok(dumped) => dumped,
            Err(Undumped { failure, hung }) => {
                self.hung = hung.map(|hung| *hung);
                return Err(failure);
            }
        };
        let at = Instant::now();
        self.timings().dump_millis = millis(dumped.took);
        self.timings().shared_bytes = dumped.shared;
        self.step(SourceStep::Dumped);
        let manifest = line.images(dumped.round, vec![images]).await?;
        self.timings().bytes = manifest.bytes();
        line.verified(round, &manifest.digest()).await?;
        self.timings().transfer_millis = millis(at.elapsed());
        self.step(SourceStep::Sent);
        self.await_commit(line, Instant::now()).await
    }

    /// Waits for the commit: by the target's notice or by the object, whichever is first.
    async fn await_commit(&mut self, line: &mut Line<'_>, verified: Instant) -> Result<(), Failure> {
        let deadline = tokio::time::sleep(RESTORE_LIMIT);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                said = line.receiver.next() => match said {
                    Ok(Incoming::Message(FromTarget::Held)) => {
                        self.held = Some(Instant::now());
                        self.timings().restore_millis = millis(verified.elapsed());
                    }
                    Ok(Incoming::Message(FromTarget::Placed { .. })) => {}
                    Ok(Incoming::Message(FromTarget::Committed | FromTarget::Resumed)) => return Ok(()),
                    Ok(Incoming::Message(FromTarget::Failed { failure })) => return Err(failure),
                    Ok(other) => {
                        let message = format!("the target said {other:?} where a commit was expected");
                        return Err(retryable(FailureReason::TransferFailed, message));
                    }
                    Err(error) => return Err(retryable(FailureReason::AgentUnreachable, chain(&error))),
                },
                // Only a hint: what is done is decided by a read of the object itself.
                () = line.watching.decided() => return Ok(()),
                () = &mut deadline => {
                    let message = format!("the target did not restore and commit within {} s", RESTORE_LIMIT.as_secs());
                    return Err(retryable(FailureReason::RestoreFailed, message));
                }
            }
        }
    }
}

/// Milliseconds with a fraction.
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
