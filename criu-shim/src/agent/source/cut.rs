//! The cut for the rehearsal, of a pod of one container: freeze, dump, thaw, send. The application goes on as soon as CRIU has seen it,
//! and what it has written since the last round is read.
//!
//! The target has the rest from the rounds before. So a cut is a round like them, with CRIU's images in addition, and what was followed
//! before it is followed after it.

use crate::agent::context::{Context, News};
use crate::agent::failure::retryable;
use crate::agent::source::connect::{self, Connected, EARLY, PodTrees};
use crate::agent::source::cpu::{self, SourceCpu};
use crate::agent::source::frozen::FrozenContainer;
use crate::agent::source::precopy::{self, PreCopy};
use crate::agent::source::round::{self, Going, Line, Undumped};
use crate::agent::source::settle::{self, LiveCriu};
use crate::agent::source::watching::Watching;
use crate::agent::transfer::link::LinkSender;
use crate::agent::transfer::message::{FromSource, IMAGES};
use crate::agent::transfer::send::{self, RoundSender, SendError};
use crate::causes::chain;
use crate::criu::Memory;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tideover_crds::{Failure, FailureReason};

/// How long the target may take to take the reason of a failure.
const WORD_LIMIT: Duration = Duration::from_millis(100);

/// How long the application may stand still for a cut. A move that can't take it in this time is not worth more: a probe of
/// kubelet's would soon end what is to be kept.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);

/// Proof that a pod was frozen for a cut only. A target commits nothing but an attempt whose last round has landed, and while
/// the cut is taken the connection is in [`CutLink`], which can't send one. So nobody can win what would keep the pod frozen.
#[derive(Debug)]
pub struct OnlyCut(());

/// The connection while a cut is taken: it carries a round for the rehearsal, and no other.
struct CutLink(LinkSender<FromSource>);

impl CutLink {
    fn take(sender: LinkSender<FromSource>) -> (Self, OnlyCut) {
        (Self(sender), OnlyCut(()))
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
    pub connected: Result<Connected, Failure>,
}

/// Takes a cut and sends it. The journal must have the freeze already.
pub async fn cut(context: &Arc<Context>, connected: Connected, news: &mut News) -> Cut {
    let Connected {
        attempt,
        directory,
        inspected,
        bundle,
        criu,
        trees,
        sender,
        mut receiver,
        round,
        mut precopy,
        cpu,
        ..
    } = connected;
    let (mut followed, number) = precopy.as_mut().map_or((None, round), PreCopy::lend);
    let mut request = round::dump_request(&inspected, bundle, &directory, news);
    if followed.is_some() {
        request.options.memory = Memory::ButWithheld;
    }
    // The pause has a limit, and what follows on this connection is only what comes from the go on.
    sender.renew_no_more();
    sender.set_limit(None);
    let (link, proof) = CutLink::take(sender);
    let begun = match round::begin(criu, request).await {
        Ok(begun) => begun,
        Err(failure) => {
            link.give_up(&failure).await;
            precopy::let_go(vec![(followed, trees)]).await;
            cpu::restored(cpu.limits).await;
            return Cut { paused: Duration::ZERO, connected: Err(failure) };
        }
    };
    let mut watching = Watching::within(news, attempt, PAUSE_LIMIT);
    let mut line = Line { receiver: &mut receiver, watching: &mut watching };
    let since = Instant::now();
    let container = FrozenContainer { freezer: inspected.container.freezer.clone(), limits: cpu.limits };
    let (pod, froze) = round::freeze(vec![container]).await;
    let dumped = match froze {
        Ok(_) => {
            let (freezer, trees, followed) = (&inspected.container.freezer, trees.clone(), &mut followed);
            let going = Going { freezer, trees, number, last: false, followed, images: false };
            line.dump(link.begin(number), begun, going).await
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
    // Without a verdict: see OnlyCut.
    let criu = hung.map(|hung| LiveCriu::Hung(*hung)).into_iter().collect();
    let thawed = settle::thaw(pod, criu, proof).await;
    let paused = thawed - since;
    settle::cure(vec![inspected.container.freezer.clone()], &context.node).await;
    line.watching.extend();
    let sent = match dumped {
        Ok(dumped) => {
            let directories = vec![directory.join(IMAGES), directory.join(EARLY)];
            match line.images(dumped, directories, || Ok(())).await {
                Ok(manifest) => line.verified(number, &manifest.digest()).await,
                Err(failure) => Err(failure),
            }
        }
        Err(failure) => Err(failure),
    };
    let warm = match sent {
        Ok(()) => connect::warm(context, &directory, &inspected, PodTrees::Too { beside: Vec::new() }).await,
        Err(failure) => Err(failure),
    };
    let connected = match warm {
        Ok(warm) => {
            // What the target has of the trees is known of those that were looked at.
            let connect::Warm { bundle, criu, .. } = warm;
            let sender = link.give_back();
            if let Some(precopy) = &mut precopy {
                precopy.give_back(followed);
            }
            let cpu = SourceCpu::look(context, &inspected.container).await;
            Ok(Connected { attempt, directory, inspected, bundle, criu, trees, sender, receiver, round, precopy, cpu })
        }
        Err(failure) => {
            link.give_up(&failure).await;
            precopy::let_go(vec![(followed, trees)]).await;
            Err(failure)
        }
    };
    Cut { paused, connected }
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
