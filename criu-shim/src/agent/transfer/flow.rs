//! What the writing end of a link has done so far. Whoever asks looks at how it has grown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The account of one link, of all its connections together.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes of data that were written.
    sent: AtomicU64,
    /// Nanoseconds for which a connection was taking them.
    writing: AtomicU64,
    /// Nanoseconds for which data was held back, by the limit or for lack of a connection.
    held_back: AtomicU64,
}

impl Flow {
    /// A connection has taken `bytes` bytes of data, for `time`.
    pub(super) fn wrote(&self, bytes: usize, time: Duration) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.writing.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// For `time`, data was held back.
    pub(super) fn was_held_back(&self, time: Duration) {
        self.held_back.fetch_add(nanos(time), Ordering::Relaxed);
    }

    /// Bytes of data that were written.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// For how long a connection was taking them: all of the time where it takes less than there is.
    pub(super) fn writing(&self) -> Duration {
        Duration::from_nanos(self.writing.load(Ordering::Relaxed))
    }

    /// For how long data was held back.
    pub(super) fn held_back(&self) -> Duration {
        Duration::from_nanos(self.held_back.load(Ordering::Relaxed))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
