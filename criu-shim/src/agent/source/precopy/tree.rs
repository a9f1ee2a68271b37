//! The trees of a container: looked at and sent in rounds, beside its memory.

use crate::agent::files::TreeKind;
use crate::agent::files::held::Held;
use crate::agent::files::pack::Packing;
use crate::agent::files::tree::{LookError, Tree, now};
use crate::agent::transfer::message::Part;
use crate::agent::transfer::send::{RoundSender, SendError};
use crate::freezer::Freezer;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// A look takes this part of the time at most, so that a large tree does not take a processor from the application for
/// as long as its move waits.
const SHARE: u32 = 10;
/// What rounds may send of files beyond what the first round sent, bytes: each lies on the target's disk until the move is
/// over. Past that, files wait for the last round before the freeze.
const BEYOND: u64 = 1 << 30;

/// How often new processes are asked what they hold, before every file counts as held.
const PATIENCE: usize = 16;

/// How looks at the trees went so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// How long the last one took, from its beginning until everything was sent.
    pub took: Duration,
    /// Bytes that the first one sent.
    pub first: u64,
    /// Bytes that all after it have sent.
    pub since: u64,
}

impl Looks {
    /// Whether another look is worth it while nothing but the freeze is waited for, `since_last` after the last one.
    pub fn is_due(&self, since_last: Duration) -> bool {
        since_last >= self.took * SHARE && self.since <= self.first.saturating_add(BEYOND)
    }
}

/// The trees that go with one container. Clones share what is known of them.
#[derive(Clone, Debug)]
pub struct Trees {
    /// Of those who may write to them.
    freezers: Vec<Freezer>,
    trees: Vec<(Part, Arc<Mutex<Tree>>)>,
    looks: Arc<Mutex<(Looks, Option<Instant>)>>,
}

/// What is to be sent of each tree, or which of them could not be looked at.
type Found = Result<Vec<(Part, Packing)>, (Part, LookError)>;

/// A look that is under way.
#[derive(Debug)]
pub struct Look {
    trees: Trees,
    begun: Instant,
    found: JoinHandle<Found>,
}

impl Trees {
    /// The trees at these paths, of which the target has nothing, to which containers with these freezers may write.
    pub fn new(freezers: Vec<Freezer>, trees: Vec<(Part, PathBuf, TreeKind)>) -> Self {
        let trees = trees.into_iter().map(|(part, root, kind)| (part, Arc::new(Mutex::new(Tree::new(root, kind)))));
        Self { freezers, trees: trees.collect(), looks: Arc::default() }
    }

    /// Whether another look is worth it before the last round.
    pub fn is_due(&self) -> bool {
        let (looks, last) = *lock(&self.looks);
        last.is_none_or(|last| looks.is_due(last.elapsed()))
    }

    /// Begins to look what has changed since the last look, for round `round`. `frozen` says that no process of those containers
    /// runs.
    pub fn look(&self, round: u32, frozen: bool) -> Look {
        let (trees, freezers) = (self.trees.clone(), self.freezers.clone());
        let found = tokio::task::spawn_blocking(move || look(&trees, &freezers, round, frozen));
        Look { trees: self.clone(), begun: Instant::now(), found }
    }
}

impl Look {
    /// Sends what was found, as parts of a round.
    ///
    /// # Errors
    /// Where the connection is gone or something can't be read.
    pub async fn send(self, sending: &mut RoundSender) -> Result<(), SendError> {
        let read = |part: Part, source| SendError::Read { part, source };
        let part = self.trees.trees.first().map_or(Part::Layer { round: 0 }, |(part, _)| part.clone());
        let found = self.found.await.map_err(|error| read(part, std::io::Error::other(error)))?;
        let found = found.map_err(|(part, error)| read(part, std::io::Error::other(error)))?;
        for (part, packing) in found {
            sending.part(part, packing).await?;
        }
        let mut state = lock(&self.trees.looks);
        let sent: u64 = self.trees.trees.iter().map(|(_, tree)| lock(tree).take_sent()).sum();
        let (looks, last) = &mut *state;
        match last {
            None => looks.first = sent,
            Some(_) => looks.since += sent,
        }
        looks.took = self.begun.elapsed();
        *last = Some(Instant::now());
        Ok(())
    }
}

/// Looks at all trees, side by side.
fn look(trees: &[(Part, Arc<Mutex<Tree>>)], freezers: &[Freezer], round: u32, frozen: bool) -> Found {
    let began = now();
    trees.iter().for_each(|(_, tree)| lock(tree).note_events(frozen));
    // Nothing comes after a look at frozen processes, so nobody asks what they could still write to.
    let held = if frozen { Held::default() } else { held(freezers) };
    let one = |(part, tree): &(Part, Arc<Mutex<Tree>>)| {
        let part = part.clone().in_round(round);
        match Tree::look(tree, &held, began, frozen) {
            Ok(packing) => Ok(packing.map(|packing| (part, packing))),
            Err(error) => Err((part, error)),
        }
    };
    let found: Vec<_> = std::thread::scope(|scope| {
        let rest: Vec<_> = trees.iter().skip(1).map(|tree| scope.spawn(move || one(tree))).collect();
        let first = trees.first().map(one);
        let rest =
            rest.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        first.into_iter().chain(rest).collect()
    });
    found.into_iter().filter_map(Result::transpose).collect()
}

/// What the containers' processes hold.
fn held(freezers: &[Freezer]) -> Held {
    let (mut held, mut asked) = (Held::default(), HashSet::new());
    // One may have ended before it was asked, and left what it held to another.
    for _ in 0..PATIENCE {
        let pids: Result<Vec<Vec<i32>>, _> = freezers.iter().map(Freezer::pids).collect();
        let Ok(pids) = pids else { break };
        let mut pids = pids.concat();
        pids.retain(|pid| asked.insert(*pid));
        if pids.is_empty() {
            return held;
        }
        held.add_processes(&pids);
    }
    Held::unknown()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_takes_long_is_not_repeated_all_the_time() {
        let looks = Looks { took: Duration::from_millis(100), first: 2 << 30, since: 0 };
        assert!(!looks.is_due(Duration::from_millis(999)));
        assert!(looks.is_due(Duration::from_secs(1)));
    }

    #[test]
    fn files_that_are_written_all_the_time_do_not_fill_the_targets_disk() {
        let looks = Looks { took: Duration::ZERO, first: 5 << 30, since: 6 << 30 };
        assert!(looks.is_due(Duration::ZERO));
        assert!(!Looks { since: looks.since + 1, ..looks }.is_due(Duration::MAX));
    }
}
