//! Pre-copy: rounds of pages and files, while the application runs.
//!
//! [`followed`] knows what was written, [`reader`] reads it, [`sent`] knows what of it the target has and [`alike`] what is like
//! something that it has, [`shared`] does all of this for shared memory and [`tree`] for files, [`converge`] decides whether
//! another round helps, within what [`pace`] leaves it, and [`answers`] hears what the target says. This drives them: a [`round`] is sent by a task of its own, so that
//! whoever waits for it can be called away and come back.

mod alike;
mod answers;
pub mod converge;
pub mod estimate;
mod followed;
pub mod pace;
mod reader;
mod round;
mod sent;
mod shared;
pub mod tree;

pub use alike::Alike;
#[cfg(test)]
pub(super) use followed::Choose;
pub use followed::{Copied, Followed, LastLook, Unfollowed, Written};
pub use round::send_pages;
pub use sent::SentPages;
pub use shared::{Shared, send_shared};
pub use tree::Trees;

use crate::agent::beside::Size;
use crate::agent::failure::retryable;
use crate::agent::host::NodeRoot;
use crate::agent::injector::injector;
use crate::agent::transfer::link::{LinkReceiver, LinkSender};
use crate::agent::transfer::message::{FromSource, FromTarget};
use crate::causes::chain;
use crate::criu::{ObjectId, Withheld};
use crate::freezer::Freezer;
use answers::{Answer, Answers};
use converge::{Progress, RoundSeen, Stage};
use round::{Sent, send_round};
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, MemoryEngine};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

/// Pause between rounds once another would not help: what is written meanwhile crosses before the freeze, and the
/// application is left alone in between.
const PAUSE: Duration = Duration::from_millis(250);

/// How long the target may take at the go to put the files of a round in place, or all of it onto its disk. What the freeze sends
/// would take as long, while the application stands still.
const PLACING_LIMIT: Duration = Duration::from_secs(20);

/// Rounds of one attempt.
#[derive(Debug)]
pub struct PreCopy {
    state: State,
    trees: Trees,
    /// Another round would not help: what it costs counts.
    resting: bool,
    /// The freeze comes as soon as the rounds allow it.
    at_the_go: bool,
    /// What crosses is to lie on the target's disk before the freeze; see [`PreCopy::lasting`].
    lasts: bool,
    /// Number of the next round.
    round: u32,
    /// Rounds that the target has.
    seen: Vec<RoundSeen>,
    /// When it was last looked what is written.
    looked: Option<Instant>,
    /// Number of the first round that counts, from 0; see [`Progress::since`].
    since: usize,
    /// Percent of its cpu time that the container is left with.
    cpu_percent: u32,
    /// Processes that are followed.
    processes: usize,
    /// Bytes that are compared in the freeze.
    compared: u64,
    answers: Answers,
}

/// A process of the container may have ended, or been replaced: only the state says who has the trackers.
#[derive(Debug)]
enum State {
    /// The next round is due then; without a time, not before the go.
    Due { followed: Option<Followed>, at: Option<Instant> },
    /// A task sends it. The target's answer may be here before the task's end is.
    Sending { task: JoinHandle<Result<Sent, Failure>>, begun: Instant, answer: Option<Answer> },
    /// The target has to say that it has it.
    Landing { sent: Sent, begun: Instant, answer: Option<Answer> },
    /// The target has it. At the go it also has to put the files in place, or all of it onto its disk: what is not by then is put there
    /// in the freeze.
    Placing { followed: Option<Followed>, seen: RoundSeen, landed: Instant },
    /// It failed: the connection is of no use any more.
    Failed,
}

impl PreCopy {
    /// Of memory that is `followed`, if it is, and of files; round `round` is the first.
    pub fn new(followed: Option<Followed>, trees: Trees, round: u32) -> Self {
        let processes = followed.as_ref().map_or(0, Followed::processes);
        let state = State::Due { followed, at: Some(Instant::now()) };
        Self {
            state,
            trees,
            resting: false,
            at_the_go: false,
            lasts: false,
            round,
            seen: Vec::new(),
            looked: None,
            since: 0,
            cpu_percent: 100,
            processes,
            compared: 0,
            answers: Answers::default(),
        }
    }

    /// The same of what is committed as it lies on the target's disk: a round has landed once it is there. So rounds are no faster than
    /// that disk, and what is predicted of the freeze counts it.
    #[must_use]
    pub fn lasting(mut self) -> Self {
        self.lasts = true;
        self
    }

    /// Goes on until another round has landed. Dropping the future loses nothing.
    ///
    /// # Errors
    /// With the failure to report: the connection is of no use then.
    pub async fn next(
        &mut self,
        sender: &LinkSender<FromSource>,
        receiver: &mut LinkReceiver<FromTarget>,
    ) -> Result<RoundSeen, Failure> {
        loop {
            match &mut self.state {
                State::Due { at, .. } => {
                    let at = *at;
                    tokio::select! {
                        () = due(at) => self.send(sender),
                        said = self.answers.verified(receiver) => {
                            let message = format!("the target said {said:?} too early");
                            return Err(said.err().unwrap_or_else(|| retryable(FailureReason::TransferFailed, message)));
                        }
                    }
                }
                State::Sending { task, begun, answer } => {
                    let sent = tokio::select! {
                        sent = task => sent,
                        said = self.answers.verified(receiver), if answer.is_none() => {
                            *answer = Some(said?);
                            continue;
                        }
                    };
                    let (begun, answer) = (*begun, answer.take());
                    self.state = State::Failed;
                    let sent = sent.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error)))??;
                    self.state = State::Landing { sent, begun, answer };
                }
                State::Landing { sent, begun, answer } => {
                    let answer = match answer.take() {
                        Some(answer) => answer,
                        None => self.answers.verified(receiver).await?,
                    };
                    let exposed = self.looked.map_or(Duration::ZERO, |before| sent.at - before);
                    let seen = RoundSeen {
                        bytes: sent.manifest.bytes(),
                        took: begun.elapsed(),
                        held_back: sent.held_back,
                        exposed,
                        all_looked: sent.all_looked,
                        placing: None,
                    };
                    let expected = (self.round, sent.manifest.digest());
                    let State::Landing { sent, .. } = std::mem::replace(&mut self.state, State::Failed) else {
                        continue;
                    };
                    if answer != expected {
                        let message = format!("the target has {answer:?} of a round that was sent as {expected:?}");
                        return Err(retryable(FailureReason::Corrupted, message));
                    }
                    if sent.all_looked {
                        self.looked = Some(sent.at);
                    }
                    self.processes = sent.followed.as_ref().map_or(0, Followed::processes);
                    self.compared = sent.followed.as_ref().map_or(0, Followed::compared_bytes);
                    self.state = State::Placing { followed: sent.followed, seen, landed: Instant::now() };
                }
                State::Placing { landed, .. } => {
                    let landed = *landed;
                    let placed = self.answers.placed(receiver, self.round);
                    let placing = if self.at_the_go {
                        timeout_at(landed + PLACING_LIMIT, placed).await.unwrap_or_else(|_| Err(not_placed()))?;
                        Some(landed.elapsed())
                    } else if self.lasts {
                        placed.await?;
                        Some(landed.elapsed())
                    } else {
                        None
                    };
                    let State::Placing { followed, seen, .. } = std::mem::replace(&mut self.state, State::Failed)
                    else {
                        continue;
                    };
                    let seen = RoundSeen { placing, ..seen };
                    self.seen.push(seen);
                    self.round += 1;
                    self.state = State::Due { followed, at: Some(Instant::now()) };
                    return Ok(seen);
                }
                State::Failed => {
                    return Err(retryable(FailureReason::TransferFailed, "a round before this one has failed"));
                }
            }
        }
    }

    /// Puts the next round off: another one now would not make the freeze shorter.
    pub fn rest(&mut self) {
        self.resting = true;
        if let State::Due { at, .. } = &mut self.state {
            *at = Some(Instant::now() + PAUSE);
        }
    }

    /// Ends a pause: the next round is due at once.
    pub fn hurry(&mut self) {
        self.resting = false;
        if let State::Due { at, .. } = &mut self.state {
            *at = Some(Instant::now());
        }
    }

    /// Hands over what follows the processes, for a cut that is round `round`. No round is on its way.
    pub fn lend(&mut self) -> (Option<Followed>, u32) {
        match &mut self.state {
            State::Due { followed, .. } => (followed.take(), self.round),
            State::Sending { .. } | State::Landing { .. } | State::Placing { .. } | State::Failed => (None, self.round),
        }
    }

    /// The cut has landed, and what `followed` the processes goes on. Nothing is sent before the go, because the target restores the
    /// cut from what it has. The container has all of its cpu time again.
    pub fn give_back(&mut self, followed: Option<Followed>) {
        self.round += 1;
        self.cpu_percent = 100;
        self.state = State::Due { followed, at: None };
    }

    /// Whether a round is on its way.
    pub fn is_sending(&self) -> bool {
        !matches!(self.state, State::Due { .. })
    }

    /// How far the rounds have come, for a freeze at `stage` that takes `beside` and rounds that have `left`.
    pub fn progress(&self, stage: Stage, beside: Duration, left: Duration) -> Progress<'_> {
        let (rounds, since, cpu_percent) = (self.seen.as_slice(), self.since, self.cpu_percent);
        Progress { rounds, since, cpu_percent, stage, beside, left }
    }

    /// How large the container is, which has `resident` bytes.
    pub fn size(&self, resident: u64) -> Size {
        Size { resident, processes: self.processes, compared: self.compared }
    }

    /// Whether what crosses lies on the target's disk before the freeze.
    pub fn lasts(&self) -> bool {
        self.lasts
    }

    /// Whether memory is followed, and not files alone.
    pub fn follows_memory(&self) -> bool {
        self.processes > 0
    }

    /// The engine that promises least of those in use, and why each is no better one; none while a round is on its way, or where
    /// no memory is followed.
    pub fn engine(&self) -> Option<(MemoryEngine, Vec<String>)> {
        let State::Due { followed: Some(followed), .. } = &self.state else { return None };
        Some((followed.engine(), followed.fallbacks()))
    }

    /// The container has less cpu time from now on. What the next round sends was written partly before.
    pub fn slowed_down(&mut self, percent: u32) {
        (self.cpu_percent, self.since) = (percent, self.seen.len() + 1);
    }

    /// The go was given: of the rounds before, only the last counts any more. None is on its way.
    pub fn at_the_go(&mut self) {
        self.at_the_go = true;
        self.since = self.seen.len().saturating_sub(1);
        if let State::Due { followed: Some(followed), .. } = &mut self.state {
            followed.wake();
        }
        self.hurry();
    }

    /// The processes, and the number of the next round.
    ///
    /// # Errors
    /// While a round is on its way.
    pub fn finish(mut self) -> Result<(Option<Followed>, u32), Failure> {
        match std::mem::replace(&mut self.state, State::Failed) {
            State::Due { followed, .. } => Ok((followed, self.round)),
            _ => Err(retryable(FailureReason::TransferFailed, "the last round before the freeze has not ended")),
        }
    }

    /// Gives up what is on its way. On return nothing of it looks at the processes any more.
    pub async fn end(mut self) {
        let followed = match std::mem::replace(&mut self.state, State::Failed) {
            State::Due { followed, .. } | State::Placing { followed, .. } => followed,
            State::Landing { sent, .. } => sent.followed,
            State::Sending { task, .. } => {
                task.abort();
                task.await.ok().and_then(Result::ok).and_then(|sent| sent.followed)
            }
            State::Failed => None,
        };
        let_go(vec![(followed, self.trees.clone())]).await;
    }

    fn send(&mut self, sender: &LinkSender<FromSource>) {
        let State::Due { followed, .. } = std::mem::replace(&mut self.state, State::Failed) else { return };
        let (sender, round) = (sender.clone(), self.round);
        let trees = (self.at_the_go || !self.resting || self.trees.is_due()).then(|| self.trees.clone());
        let task = tokio::spawn(async move { send_round(&sender, round, followed, trees).await });
        self.state = State::Sending { task, begun: Instant::now(), answer: None };
    }
}

impl Drop for PreCopy {
    /// A round that is on its way has nobody who wants it any more.
    fn drop(&mut self) {
        if let State::Sending { task, .. } = &self.state {
            task.abort();
        }
    }
}

/// Begins to follow the container's memory.
///
/// # Errors
/// Why it can't be followed. Nothing is changed then.
pub async fn follow(freezer: Freezer, node: &NodeRoot) -> Result<Followed, String> {
    let injector = injector(node);
    let attached = tokio::task::spawn_blocking(move || Followed::attach(freezer, injector)).await;
    attached.map_err(|error| chain(&error))?.map_err(|error| chain(&error))
}

/// Looks at the frozen processes, says by `begin` when the dump may begin and what shared memory it leaves out, and puts on the `list`
/// what it leaves out of each process. Without a list it leaves nothing out.
///
/// # Errors
/// Where it does not work: what the dump leaves out is unknown, and the attempt fails.
pub async fn last_look(
    followed: &mut Option<Followed>,
    begin: impl FnOnce(Vec<ObjectId>) + Send + 'static,
    list: Option<Withheld>,
) -> Result<LastLook, Failure> {
    let failed = |error: &dyn std::error::Error| retryable(FailureReason::DumpFailed, chain(error));
    let Some(list) = list else {
        begin(Vec::new());
        return Ok(LastLook::default());
    };
    let mut telling = list.tell();
    let Some(mut looking) = followed.take() else {
        begin(Vec::new());
        return telling.end().map(|()| LastLook::default()).map_err(|error| failed(&error));
    };
    let looking = tokio::task::spawn_blocking(move || {
        let look = looking.last_look(begin, &mut telling).and_then(|look| telling.end().map(|()| look));
        (look, looking)
    });
    let (look, looked) = looking.await.map_err(|error| failed(&error))?;
    *followed = Some(looked);
    look.map_err(|error| failed(&error))
}

/// Takes out what was put into processes that run again, or are gone, and ends what watched their files.
pub async fn let_go(spent: Vec<(Option<Followed>, Trees)>) {
    // A failure to wait for it changes nothing about that.
    tokio::task::spawn_blocking(move || drop(spent)).await.ok();
}

/// Until the next round is due.
async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn not_placed() -> Failure {
    let limit = PLACING_LIMIT.as_secs();
    let message = format!("the target has not put the last round where it belongs within {limit} s");
    retryable(FailureReason::NotConverging, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::transfer::link::{self, Incoming};

    /// Long enough for what comes at once to have come.
    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_round_that_lasts_ends_on_the_disk_and_nothing_is_sent_from_a_cut_until_the_go() {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (sender, mut receiver) = link::open::<_, FromSource, FromTarget>(here);
        let (target, mut from_source) = link::open::<_, FromTarget, FromSource>(there);
        let mut begun = async |verified: bool| loop {
            match from_source.next().await.expect("a message") {
                Incoming::Message(FromSource::RoundBegin { round, .. }) if !verified => break round,
                Incoming::Message(FromSource::RoundEnd { digest }) if verified => {
                    target.say(&FromTarget::Verified { round: 1, digest }).await.expect("say");
                    break 1;
                }
                _ => {}
            }
        };
        let mut rounds = PreCopy::new(None, Trees::new(Vec::new(), Vec::new()), 1).lasting();
        let mut next = Box::pin(rounds.next(&sender, &mut receiver));
        tokio::select! {
            seen = &mut next => panic!("{seen:?}"),
            _ = begun(true) => {}
        }
        tokio::time::timeout(MOMENT, &mut next).await.expect_err("it is not on the disk yet");
        target.say(&FromTarget::Placed { round: 1 }).await.expect("say");
        let seen = next.await.expect("a round");
        assert!(seen.placing.is_some(), "the disk is part of what is predicted");

        let (followed, cut) = rounds.lend();
        assert_eq!((followed.is_none(), cut), (true, 2));
        rounds.give_back(None);
        let early = tokio::time::timeout(MOMENT, rounds.next(&sender, &mut receiver)).await;
        early.expect_err("the target restores the cut");
        rounds.at_the_go();
        let round = tokio::select! {
            round = begun(false) => round,
            round = rounds.next(&sender, &mut receiver) => panic!("{round:?}"),
        };
        assert_eq!(round, 3);
    }
}
