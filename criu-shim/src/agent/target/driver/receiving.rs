//! The thread that takes what the source sends, and writes it: one for each attempt, for as long as its connection lasts.

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Receiving that is under way. Dropped, it ends at its next wait.
#[derive(Debug)]
pub(in crate::agent) struct Receiving {
    thread: JoinHandle<()>,
    unwanted: DropGuard,
}

impl Receiving {
    /// Runs `taking`, which may block between its waits, on a thread of its own.
    pub(in crate::agent) fn begin(taking: impl Future<Output = ()> + Send + 'static) -> Self {
        let (runtime, unwanted) = (Handle::current(), CancellationToken::new());
        let end = unwanted.clone();
        let thread = tokio::task::spawn_blocking(move || {
            runtime.block_on(end.run_until_cancelled(taking));
        });
        Self { thread, unwanted: unwanted.drop_guard() }
    }

    /// Ends it. Nothing is written any more after that.
    pub(in crate::agent) async fn end(self) {
        drop(self.unwanted);
        // It ends at its next wait, by having been told to, or has panicked.
        self.thread.await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::sync::Arc;
    use tokio::sync::Notify;

    #[tokio::test]
    async fn what_waits_for_the_source_is_ended_and_waited_for() {
        let (begun, alive) = (Arc::new(Notify::new()), Arc::new(()));
        let (telling, held) = (begun.clone(), alive.clone());
        let receiving = Receiving::begin(async move {
            telling.notify_one();
            pending::<()>().await;
            drop(held);
        });
        begun.notified().await;
        assert_eq!(Arc::strong_count(&alive), 2);
        receiving.end().await;
        assert_eq!(Arc::strong_count(&alive), 1, "it holds nothing any more");
    }

    #[tokio::test]
    async fn what_nobody_wants_any_more_ends() {
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        drop(Receiving::begin(async move {
            pending::<()>().await;
            drop(sender);
        }));
        receiver.await.expect_err("it was dropped");
    }
}
