//! The cut for the rehearsal: freeze, dump, thaw, send, all containers of the pod side by side. The application goes on as soon as each
//! CRIU has seen it, and what it has written since the last round is read.
//!
//! The target has the rest from the rounds before. So a cut is a round like them, with CRIU's images in addition, and what was followed
//! before it is followed after it.

use crate::agent::context::{Context, News};
use crate::agent::failure::retryable;
use crate::agent::source::connect::{self, Connected, EARLY, PodTrees};
use crate::agent::source::cpu::{self, SourceCpu};
use crate::agent::source::first_failure::FirstFailure;
use crate::agent::source::frozen::FrozenContainer;
use crate::agent::source::precopy::{self, Followed, PreCopy, Trees};
use crate::agent::source::preflight::Inspected;
use crate::agent::source::round::{self, Dumped, Going, Line, Undumped};
use crate::agent::source::settle::{self, LiveCriu};
use crate::agent::source::watching::Watching;
use crate::agent::transfer::link::{LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget, IMAGES};
use crate::agent::transfer::send::{self, RoundSender, SendError};
use crate::causes::chain;
use crate::criu::{BegunDump, Memory, RunningDump};
use crate::throttle::CpuLimits;
use futures::future::{join_all, try_join_all};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::{Failure, FailureReason};

/// How long the target may take to take the reason of a failure.
const WORD_LIMIT: Duration = Duration::from_millis(100);

/// How long the application may stand still for a cut. A move that can't take it in this time is not worth more: a probe of
/// kubelet's would soon end what is to be kept.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// Proof that a pod was frozen for a cut only. A target commits nothing but an attempt whose last round has landed, and while
/// the cut is taken every connection is a [`CutLink`], which can't send one. So nobody can win what would keep the pod frozen.
#[derive(Debug)]
pub struct OnlyCut(());

/// The connection of a container while the cut is taken: it carries a round for the rehearsal, and no other.
struct CutLink(LinkSender<FromSource>);

impl CutLink {
    /// These are all connections of the attempt.
    fn only<'a>(_all: impl Iterator<Item = &'a Self>) -> OnlyCut {
        OnlyCut(())
    }

    async fn begin(&self, round: u32) -> Result<RoundSender, SendError> {
        send::begin_rehearsal(&self.0, round).await
    }

    async fn give_up(self, failure: &Failure) {
        let message = FromSource::Abort { message: failure.message.clone() };
        // A target that can't hear it sees the connection end.
        tokio::time::timeout(WORD_LIMIT, self.0.say(&message)).await.ok();
    }

    /// The cut is over: the attempt goes on.
    fn give_back(self) -> LinkSender<FromSource> {
        self.0
    }
}

/// What came of a cut. The application runs.
#[derive(Debug)]
pub struct Cut {
    /// For how long it did not: from the first freezer write until the thaw.
    pub paused: Duration,
    /// Connected and warm again, where the target has verified the cut.
    pub connected: Result<Vec<Connected>, Failure>,
}

/// One container while the cut is taken.
struct Cutting {
    directory: PathBuf,
    inspected: Inspected,
    trees: Trees,
    link: CutLink,
    receiver: LinkReceiver<FromTarget>,
    round: u32,
    precopy: Option<PreCopy>,
    followed: Option<Followed>,
    /// Number of the round that the cut is.
    number: u32,
    news: News,
    /// The dump that waits for the word, until it has it.
    due: Option<BegunDump>,
    dumped: Option<Dumped>,
    hung: Option<RunningDump>,
}

/// Takes a cut of all containers, and sends it. The journal must have the freeze already.
pub async fn cut(context: &Arc<Context>, lanes: Vec<Connected>, news: &mut News) -> Cut {
    let attempt = lanes.first().map_or(0, |lane| lane.attempt);
    let (mut cutting, mut limits, mut asking) = (Vec::new(), Vec::new(), Vec::new());
    for connected in lanes {
        let Connected { directory, inspected, bundle, criu, trees, sender, receiver, round, mut precopy, cpu, .. } =
            connected;
        let (followed, number) = precopy.as_mut().map_or((None, round), PreCopy::lend);
        let mut request = round::dump_request(&inspected, bundle, &directory, news);
        if followed.is_some() {
            request.options.memory = Memory::ButWithheld;
        }
        // The pause has a limit, and what follows on this connection is only what comes from the go on.
        sender.renew_no_more();
        sender.set_limit(None);
        asking.push(round::begin(criu, request));
        limits.push(cpu.limits);
        let (link, news, due, dumped, hung) = (CutLink(sender), news.clone(), None, None, None);
        cutting.push(Cutting {
            directory,
            inspected,
            trees,
            link,
            receiver,
            round,
            precopy,
            followed,
            number,
            news,
            due,
            dumped,
            hung,
        });
    }
    let begun = join_all(asking).await.into_iter().zip(&cutting);
    let begun: Result<Vec<_>, Failure> =
        begun.map(|(begun, one)| begun.map_err(|failure| one.inspected.fails(failure))).collect();
    let begun = match begun {
        Ok(begun) => begun,
        Err(failure) => {
            give_up(cutting, &failure).await;
            join_all(limits.into_iter().map(cpu::restored)).await;
            return Cut { paused: Duration::ZERO, connected: Err(failure) };
        }
    };
    cutting.iter_mut().zip(begun).for_each(|(one, begun)| one.due = Some(begun));
    let first = FirstFailure::default();
    let paused = pause(context, attempt, (&mut cutting, limits), &first).await;
    if first.taken().is_ok() {
        join_all(cutting.iter_mut().map(|one| one.send(attempt, &first))).await;
    }
    let connected = match first.taken() {
        Ok(()) => go_on(context, attempt, cutting).await,
        Err(failure) => {
            give_up(cutting, &failure).await;
            Err(failure)
        }
    };
    Cut { paused, connected }
}

/// Freezes, dumps, and thaws again. Returns how long the application stood still.
async fn pause(
    context: &Arc<Context>,
    attempt: u32,
    (cutting, limits): (&mut [Cutting], Vec<CpuLimits>),
    first: &FirstFailure,
) -> Duration {
    let proof = CutLink::only(cutting.iter().map(|one| &one.link));
    let freezers: Vec<_> = cutting.iter().map(|one| one.inspected.container.freezer.clone()).collect();
    let containers = freezers.iter().cloned().zip(limits);
    let containers = containers.map(|(freezer, limits)| FrozenContainer { freezer, limits }).collect();
    let since = Instant::now();
    let (pod, froze) = round::freeze(containers).await;
    match froze {
        Ok(_) => _ = join_all(cutting.iter_mut().map(|one| one.dump(attempt, first))).await,
        Err(error) => {
            cutting.iter_mut().for_each(|one| one.due = None);
            first.note(retryable(FailureReason::FreezeFailed, chain(&error)));
        }
    }
    // Without a verdict: see OnlyCut.
    let criu = cutting.iter_mut().filter_map(|one| one.hung.take()).map(LiveCriu::Hung).collect();
    let thawed = settle::thaw(pod, criu, proof).await;
    settle::cure(freezers, &context.node).await;
    thawed - since
}

impl Cutting {
    /// Dumps, and sends what was written meanwhile. Whatever becomes of the others, its CRIU is waited for.
    async fn dump(&mut self, attempt: u32, first: &FirstFailure) {
        let Some(begun) = self.due.take() else { return };
        let mut watching = Watching::within(&mut self.news, attempt, PAUSE_LIMIT).together(&first.token);
        let mut line = Line { receiver: &mut self.receiver, watching: &mut watching };
        let (freezer, trees, followed) = (&self.inspected.container.freezer, self.trees.clone(), &mut self.followed);
        let going = Going { freezer, trees, number: self.number, last: false, followed, stays_frozen: false };
        match line.dump(self.link.begin(self.number), begun, going).await {
            Ok(dumped) => self.dumped = Some(dumped),
            Err(Undumped { failure, hung }) => {
                self.hung = hung.map(|hung| *hung);
                first.note(self.inspected.fails(failure));
            }
        }
    }

    /// Sends the images, and waits until the target has verified the cut.
    async fn send(&mut self, attempt: u32, first: &FirstFailure) {
        let Some(dumped) = self.dumped.take() else { return };
        let mut watching = Watching::new(&mut self.news, attempt).together(&first.token);
        let mut line = Line { receiver: &mut self.receiver, watching: &mut watching };
        let directories = vec![self.directory.join(IMAGES), self.directory.join(EARLY)];
        let sent = async {
            let manifest = line.images(dumped, directories, || Ok(())).await?;
            line.verified(self.number, &manifest.digest()).await
        };
        if let Err(failure) = sent.await {
            first.note(failure);
        }
    }
}

/// Makes the containers ready for the freeze once more.
async fn go_on(context: &Arc<Context>, attempt: u32, cutting: Vec<Cutting>) -> Result<Vec<Connected>, Failure> {
    let warm = cutting.iter().map(|one| async {
        // Trees are those that were looked at: it is known what the target has of them.
        let warm = connect::warm(context, &one.directory, &one.inspected, PodTrees::Elsewhere).await;
        warm.map_err(|failure| one.inspected.fails(failure))
    });
    let warm = match try_join_all(warm).await {
        Ok(warm) => warm,
        Err(failure) => {
            give_up(cutting, &failure).await;
            return Err(failure);
        }
    };
    let mut lanes = Vec::new();
    for (one, connect::Warm { bundle, criu, .. }) in cutting.into_iter().zip(warm) {
        let Cutting { directory, inspected, trees, link, receiver, round, mut precopy, followed, .. } = one;
        let (sender, cpu) = (link.give_back(), SourceCpu::look(context, &inspected.container).await);
        if let Some(precopy) = &mut precopy {
            precopy.give_back(followed);
        }
        lanes.push(Connected {
            attempt,
            directory,
            inspected,
            bundle,
            criu,
            trees,
            sender,
            receiver,
            round,
            precopy,
            cpu,
        });
    }
    Ok(lanes)
}

/// Ends the attempt: the target hears why.
async fn give_up(cutting: Vec<Cutting>, failure: &Failure) {
    let mut spent = Vec::new();
    for one in cutting {
        one.link.give_up(failure).await;
        spent.push((one.followed, one.trees));
    }
    precopy::let_go(spent).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freezer::{Freezer, FreezerState};
    use crate::throttle::fixture::{FOUND, LIFTED, Pod};
    use std::path::Path;

    #[tokio::test]
    async fn a_container_has_no_cpu_limit_while_it_is_frozen_and_its_own_when_it_runs() {
        let Some(pod) = Pod::idle() else { return };
        let mut limits = pod.limits();
        limits.plan_lift().expect("plan");
        let freezer = Freezer::of_process(pod.pid(), Path::new("/")).expect("freezer");
        let (frozen, froze) = round::freeze(vec![FrozenContainer { freezer: freezer.clone(), limits }]).await;
        froze.expect("frozen");
        assert_eq!(pod.quotas(), LIFTED);
        settle::thaw(frozen, Vec::new(), OnlyCut(())).await;
        assert_eq!(freezer.state().expect("state"), FreezerState::Thawed);
        assert_eq!(pod.quotas(), FOUND);
    }
}
