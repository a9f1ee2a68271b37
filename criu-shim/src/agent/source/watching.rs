//! What ends an attempt from outside while the source is at work on it.

use crate::agent::context::News;
use crate::agent::failure::retryable;
use std::time::Duration;
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration};
use tokio_util::sync::CancellationToken;

/// How long dump and transfer may take together, until everything is verified. The operator gives up soon after.
const SEND_LIMIT: Duration = Duration::from_secs(95);

/// Looks out for what ends an attempt from outside.
pub(super) struct Watching<'a> {
    news: &'a mut News,
    attempt: u32,
    /// What `deadline` was made of.
    limit: Duration,
    /// When everything must be verified.
    deadline: tokio::time::Instant,
    /// Another container of the pod has failed.
    others: CancellationToken,
}

impl<'a> Watching<'a> {
    /// For attempt `attempt`, from now on.
    pub(super) fn new(news: &'a mut News, attempt: u32) -> Self {
        Self::within(news, attempt, SEND_LIMIT)
    }

    /// For attempt `attempt`, with `limit` for what has to be sent first.
    pub(super) fn within(news: &'a mut News, attempt: u32, limit: Duration) -> Self {
        Self { news, attempt, limit, deadline: tokio::time::Instant::now() + limit, others: CancellationToken::new() }
    }

    /// Also stops where another container of the pod has `failed`: none is moved without the others.
    pub(super) fn together(self, failed: &CancellationToken) -> Self {
        Self { others: failed.clone(), ..self }
    }

    /// Gives what is left to send the time that a whole attempt has.
    pub(super) fn extend(&mut self) {
        self.limit = SEND_LIMIT;
        self.deadline = tokio::time::Instant::now() + SEND_LIMIT;
    }

    /// Ends once the object shows that the attempt was decided.
    pub(super) async fn decided(&mut self) {
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
    pub(super) async fn called_off(&mut self) -> Failure {
        let (deadline, limit) = (self.deadline, self.limit);
        let others = self.others.clone();
        tokio::select! {
            () = others.cancelled() => retryable(FailureReason::TransferFailed, "another container of the pod could not be sent"),
            () = self.shown(&[Verdict::Aborted]) => retryable(FailureReason::TransferFailed, "aborted before all was sent"),
            () = tokio::time::sleep_until(deadline) => {
                let message = format!("not everything was sent and verified within {} s", limit.as_secs());
                retryable(FailureReason::TransferFailed, message)
            }
        }
    }
}

/// Whether the object shows `verdict` for the attempt.
pub(super) fn shows(migration: Option<&Migration>, attempt: u32, verdict: Verdict) -> bool {
    migration
        .and_then(|migration| migration.status.as_ref())
        .is_some_and(|status| status.verdict_of(attempt) == verdict)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::migration;
    use std::sync::Arc;
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
    async fn no_container_is_sent_on_where_another_has_failed() {
        let (_sender, mut news) = watch::channel(None);
        let failed = CancellationToken::new();
        let mut watching = Watching::new(&mut news, 1).together(&failed);
        assert!(tokio::time::timeout(SOON, watching.called_off()).await.is_err());
        failed.cancel();
        assert!(tokio::time::timeout(SOON, watching.called_off()).await.is_ok());
    }

    #[tokio::test]
    async fn sending_is_called_off_in_time() {
        let (_sender, mut news) = watch::channel(None);
        let mut watching = Watching::new(&mut news, 1);
        watching.deadline = tokio::time::Instant::now();
        assert!(tokio::time::timeout(SOON, watching.called_off()).await.is_ok());
    }
}
