//! What the two directions of a link know of each other: how many frames have come, and how many have arrived.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::Notify;

/// How many frames are taken before that is said. Fewer would be a message for nothing, more would keep what the peer holds
/// for longer.
const SAID_EVERY: u64 = 4;

/// The counts of one link. Those of all its connections: they never begin anew.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Frames of the peer that were taken.
    taken: AtomicU64,
    /// How many of them the peer was told of.
    said: AtomicU64,
    /// Frames that the peer says it has taken.
    confirmed: AtomicU64,
    /// Nothing of the peer is read any more.
    deaf: AtomicBool,
    /// There is something to say, or more was confirmed.
    news: Notify,
}

impl Counts {
    /// Another frame was taken.
    pub(super) fn take(&self) {
        let taken = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        if taken - self.said.load(Ordering::Relaxed) >= SAID_EVERY {
            self.news.notify_one();
        }
    }

    /// How many frames were taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How many were taken, which the peer is told now.
    pub(super) fn say(&self) -> u64 {
        let taken = self.taken();
        self.said.store(taken, Ordering::Relaxed);
        taken
    }

    /// Whether it is time to say how many were taken.
    pub(super) fn has_to_say(&self) -> bool {
        self.taken() - self.said.load(Ordering::Relaxed) >= SAID_EVERY
    }

    /// The peer says that it has taken `count` frames.
    pub(super) fn confirm(&self, count: u64) {
        self.confirmed.store(count, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// How many frames the peer says it has taken.
    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Nothing of the peer is read from now on, so that it confirms nothing.
    pub(super) fn turn_deaf(&self) {
        self.deaf.store(true, Ordering::Relaxed);
        self.news.notify_one();
    }

    /// Whether nothing of the peer is read any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Relaxed)
    }

    /// Waits for something to say, or for more to be confirmed.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }
}
