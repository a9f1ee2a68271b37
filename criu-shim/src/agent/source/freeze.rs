//! The freeze: from the go to the verdict.
//!
//! Whatever happens in here ends in a [`Decision`] that the API server gave: an error only ever means "ask for the
//! abort", never "thaw".

use crate::agent::context::{Context, Key, News};
use crate::agent::failure::retryable;
use crate::agent::owner::{Decision, OwnerError};
use crate::agent::report::Reporter;
use crate::agent::source::connect::Connected;
use crate::agent::source::first_failure::FirstFailure;
use crate::agent::source::frozen::{FrozenContainer, FrozenPod};
use crate::agent::source::last_word::{LastWord, Unsaid};
use crate::agent::source::precopy::{Followed, Trees};
use crate::agent::source::preflight::Inspected;
use crate::agent::source::round::{self, Dumped, Going, Line, Undumped};
use crate::agent::source::watching::{Watching, shows};
use crate::agent::transfer::link::{Incoming, LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget};
use crate::agent::transfer::send;
use crate::causes::chain;
use crate::criu::{BegunDump, Memory, RunningDump};
use futures::future::join_all;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, SourceReport, SourceStep, SourceTimings};
use tracing::warn;

/// How long the target may take from "everything verified" to "held", and from there to the commit.
const RESTORE_LIMIT: Duration = Duration::from_secs(90);

/// How long the reason of a failure may keep the source frozen before the abort is taken.
const REPORT_LIMIT: Duration = Duration::from_millis(300);

/// What came of a freeze.
#[derive(Debug)]
pub struct Frozen {
    /// The guard.
    pub pod: FrozenPod,
    /// What followed the memory of its containers, and what was known of their files and watched them. Not to be dropped while it is
    /// frozen.
    pub spent: Vec<(Option<Followed>, Trees)>,
    /// Dumps that hang.
    pub hung: Vec<RunningDump>,
    /// How the attempt was decided; none where the object is gone.
    pub decision: Result<Decision, OwnerError>,
    /// What went wrong, if something did.
    pub failure: Option<Failure>,
    /// From the target, for what follows a commit.
    pub receiver: Option<LinkReceiver<FromTarget>>,
    /// When the first freezer write was.
    pub since: Instant,
    /// When the target said that it holds the processes.
    pub held: Option<Instant>,
    /// When it said that they run, if that was before the commit was in the object.
    pub resumed: Option<Instant>,
}

/// One container on its way out.
struct Leaving {
    inspected: Inspected,
    images: PathBuf,
    round: u32,
    /// The dump that waits for the word, until it has it.
    due: Option<BegunDump>,
    trees: Trees,
    followed: Option<Followed>,
    sender: LinkSender<FromSource>,
    receiver: LinkReceiver<FromTarget>,
    news: News,
    dumped: Option<Dumped>,
    /// The CRIU that has made the dump, as long as it has hold of the processes.
    held: Option<RunningDump>,
    hung: Option<RunningDump>,
}

/// Freezes the pod, dumps its containers side by side, sends them, and waits until it is decided who owns it. The journal must have
/// it already.
///
/// `report` is kept up to date, and given to `reporter`, on the way.
pub async fn freeze(
    context: &Arc<Context>,
    key: &Key,
    (lanes, unsaid): (Vec<(Connected, Option<Followed>)>, Unsaid),
    news: &mut News,
    report: &mut SourceReport,
    reporter: &Reporter<SourceReport>,
) -> Frozen {
    let attempt = lanes.first().map_or(0, |(connected, _)| connected.attempt);
    let (mut leaving, mut containers, mut asking) = (Vec::new(), Vec::new(), Vec::new());
    for (connected, followed) in lanes {
        let Connected { directory, inspected, bundle, criu, trees, sender, receiver, round, cpu, .. } = connected;
        // Frozen, the application is better off with a roll-back than with a wait for another connection.
        sender.renew_no_more();
        let mut request = round::dump_request(&inspected, bundle, &directory, news);
        if followed.is_some() {
            request.options.memory = Memory::ButWithheld;
        }
        let images = request.images_dir.clone();
        asking.push(round::begin(criu, request));
        let (news, due, dumped, held, hung) = (news.clone(), None, None, None, None);
        containers.push(FrozenContainer { freezer: inspected.container.freezer.clone(), limits: cpu.limits });
        leaving.push(Leaving {
            inspected,
            images,
            round,
            due,
            trees,
            followed,
            sender,
            receiver,
            news,
            dumped,
            held,
            hung,
        });
    }
    let mut watching = Watching::new(news, attempt);
    let deadline = watching.deadline();
    let begun: Result<Vec<_>, Failure> = tokio::select! {
        all = join_all(asking) => all.into_iter().collect(),
        failure = watching.called_off() => Err(failure),
    };
    let since = Instant::now();
    let (pod, froze) = match begun {
        Ok(begun) => {
            leaving.iter_mut().zip(begun).for_each(|(one, begun)| one.due = Some(begun));
            let (pod, froze) = round::freeze(containers).await;
            (pod, froze.map_err(|error| retryable(FailureReason::FreezeFailed, chain(&error))))
        }
        Err(failure) => (FrozenPod::adopt(containers), Err(failure)),
    };
    let word = LastWord::new(unsaid, leaving.len());
    let mut attempt_state = Attempt { number: attempt, deadline, held: None, resumed: None, report, reporter };
    let outcome = match froze {
        Ok(took) => {
            attempt_state.frozen(took);
            attempt_state.send(&mut leaving, &word).await
        }
        Err(failure) => Err(failure),
    };
    let (held, resumed) = (attempt_state.held, attempt_state.resumed);
    // Nothing is done to a pod that a CRIU holds.
    join_all(leaving.iter_mut().map(Leaving::let_go)).await;
    let pod = if outcome.is_ok() { pod } else { round::give_processors_back(pod).await };
    // Whoever aborted it has said why; what that led to here is no news.
    let failure = outcome.err().filter(|_| !shows(news.borrow().as_deref(), attempt, Verdict::Aborted));
    if let Some(failure) = &failure {
        report.failure = Some(failure.clone());
        // Whoever sees the abort should find the reason.
        reporter.report_first(report.clone(), REPORT_LIMIT).await;
        let message = FromSource::Abort { message: failure.message.clone() };
        // A target that can't hear it sees the connection end.
        let said = join_all(leaving.iter().map(|one| one.sender.say(&message)));
        tokio::time::timeout(Duration::from_millis(100), said).await.ok();
    }
    let (mut spent, mut hung, mut receivers) = (Vec::new(), Vec::new(), Vec::new());
    for one in leaving {
        spent.push((one.followed, one.trees));
        hung.extend(one.hung);
        receivers.push(one.receiver);
    }
    // The point of no return is the compare-and-swap, wherever it is made. Where the target has won it, this reads it.
    let decision = context.ownership(key).abort(attempt, &context.settings.node_name, word.unsaid()).await;
    let receiver = receivers.into_iter().next();
    Frozen { pod, spent, hung, decision, failure, receiver, since, held, resumed }
}

impl Leaving {
    /// Dumps, and sends archives meanwhile. Whatever becomes of the others, its CRIU is waited for.
    async fn dump(&mut self, (attempt, deadline): (u32, Instant), first: &FirstFailure) {
        let Some(criu) = self.due.take() else { return };
        let mut watching = Watching::until(&mut self.news, attempt, deadline).together(&first.token);
        let mut line = Line { receiver: &mut self.receiver, watching: &mut watching };
        let (freezer, trees, followed) = (&self.inspected.container.freezer, self.trees.clone(), &mut self.followed);
        let going = Going { freezer, trees, number: self.round, last: true, followed, stays_frozen: true };
        match line.dump(send::begin(&self.sender, self.round, true), criu, going).await {
            Ok(mut dumped) => {
                self.held = dumped.held.take();
                self.dumped = Some(dumped);
            }
            Err(Undumped { failure, hung }) => {
                self.hung = hung.map(|hung| *hung);
                first.note(self.inspected.fails(failure));
            }
        }
    }

    /// Sends the images and the last word, and waits until the target has verified everything. Returns how many bytes the round had.
    async fn finish(&mut self, (attempt, deadline): (u32, Instant), first: &FirstFailure, word: &LastWord) -> u64 {
        let Some(dumped) = self.dumped.take() else { return 0 };
        let mut watching = Watching::until(&mut self.news, attempt, deadline).together(&first.token);
        let mut line = Line { receiver: &mut self.receiver, watching: &mut watching };
        let images = vec![self.images.clone()];
        let sent = async {
            let manifest = line.images(dumped, images, || word.say()).await?;
            line.verified(self.round, &manifest.digest()).await?;
            Ok(manifest.bytes())
        };
        sent.await.unwrap_or_else(|failure| {
            first.note(failure);
            0
        })
    }

    /// Has the CRIU that holds the processes let go of them, which are frozen all the same.
    async fn let_go(&mut self) {
        let Some(held) = self.held.take() else { return };
        if let Err(Undumped { failure, hung }) = round::let_go_of(held).await {
            warn!(container = self.inspected.container.id, message = failure.message, "CRIU did not let go");
            self.hung = hung.map(|hung| *hung);
        }
    }
}

struct Attempt<'a> {
    number: u32,
    /// When everything must be verified.
    deadline: Instant,
    held: Option<Instant>,
    resumed: Option<Instant>,
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
    async fn send(&mut self, leaving: &mut [Leaving], word: &LastWord) -> Result<(), Failure> {
        let (first, attempt) = (FirstFailure::default(), (self.number, self.deadline));
        join_all(leaving.iter_mut().map(|one| one.dump(attempt, &first))).await;
        first.taken()?;
        let at = Instant::now();
        let dumped = || leaving.iter().filter_map(|one| one.dumped.as_ref());
        let took = dumped().map(|dumped| dumped.took).max().unwrap_or_default();
        let shared = dumped().map(|dumped| dumped.shared).sum();
        self.timings().dump_millis = millis(took);
        self.timings().shared_bytes = shared;
        self.step(SourceStep::Dumped);
        let bytes = join_all(leaving.iter_mut().map(|one| one.finish(attempt, &first, word))).await;
        first.taken()?;
        self.timings().bytes = bytes.into_iter().sum();
        self.timings().transfer_millis = millis(at.elapsed());
        self.step(SourceStep::Sent);
        // The target says on every connection what it says of the pod.
        let Some(Leaving { receiver, news, .. }) = leaving.first_mut() else { return Ok(()) };
        let mut watching = Watching::new(news, self.number);
        self.await_commit(&mut Line { receiver, watching: &mut watching }, Instant::now()).await
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
                    // It has taken the attempt, and the commit is on its way.
                    Ok(Incoming::Message(FromTarget::Resumed)) => self.resumed = Some(Instant::now()),
                    Ok(Incoming::Message(FromTarget::Committed)) => return Ok(()),
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
