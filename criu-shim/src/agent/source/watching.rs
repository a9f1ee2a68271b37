//! What ends an attempt from outside while the source is at work on it.

use crate::agent::context::News;
use crate::agent::failure::retryable;
use std::time::{Duration, Instant};
use tideover_crds::migration::Verdict;
use tideover_crds::{Failure, FailureReason, Migration};
use tokio_util::sync::CancellationToken;

/// How long dump and transfer may take together, until everything is verified. The operator gives up soon after what the target has
/// not taken.
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
    /// A deletion of the Migration is a reason to stop.
    deleted: bool,
}

impl<'a> Watching<'a> {
    /// For attempt `attempt`, from now on.
    pub(super) fn new(news: &'a mut News, attempt: u32) -> Self {
        Self::within(news, attempt, SEND_LIMIT)
    }

    /// For attempt `attempt`, with `limit` for what has to be sent first.
    pub(super) fn within(news: &'a mut News, attempt: u32, limit: Duration) -> Self {
        let (deadline, others) = (tokio::time::Instant::now() + limit, CancellationToken::new());
        Self { news, attempt, limit, deadline, others, deleted: false }
    }

    /// Also stops where another container of the pod has `failed`: none is moved without the others.
    pub(super) fn together(self, failed: &CancellationToken) -> Self {
        Self { others: failed.clone(), ..self }
    }

    /// For attempt `attempt`, where everything must be verified at the time that another has.
    pub(super) fn until(news: &'a mut News, attempt: u32, deadline: Instant) -> Self {
        Self { deadline: deadline.into(), ..Self::new(news, attempt) }
    }

    /// When everything must be verified.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline.into()
    }

    /// Also stops where the Migration is being deleted: nothing is frozen yet.
    pub(super) fn unless_deleted(self) -> Self {
        Self { deleted: true, ..self }
    }

    /// Gives what is left to send the time that a whole attempt has.
    pub(super) fn extend(&mut self) {
        self.limit = SEND_LIMIT;
        self.deadline = tokio::time::Instant::now() + SEND_LIMIT;
    }

    /// Ends once the object shows that the target has taken the attempt, or that it is over, or after `limit`.
    pub(super) async fn taken(&mut self, limit: Duration) {
        let shown = self.shown(&[Verdict::Taken, Verdict::Aborted, Verdict::Committed]);
        tokio::time::timeout(limit, shown).await.ok();
    }

    /// Ends once the object shows that the attempt was decided.
    pub(super) async fn decided(&mut self) {
        self.shown(&[Verdict::Aborted, Verdict::Committed]).await;
    }

    /// Ends once the object shows one of `verdicts`. Where the object is gone, never.
    async fn shown(&mut self, verdicts: &[Verdict]) {
        let attempt = self.attempt;
        self.seen(|migration| verdicts.iter().any(|verdict| shows(migration, attempt, *verdict))).await;
    }

    /// Ends once the object is as `wanted`. Where it is gone, never.
    async fn seen(&mut self, wanted: impl Fn(Option<&Migration>) -> bool) {
        let seen = self.news.wait_for(|migration| wanted(migration.as_deref())).await.is_ok();
        if !seen {
            std::future::pending().await
        }
    }

    /// Ends only with a reason to stop before everything is verified: an abort, or the time.
    pub(super) async fn called_off(&mut self) -> Failure {
        let (deadline, limit) = (self.deadline, self.limit);
        let (others, attempt, deleted) = (self.others.clone(), self.attempt, self.deleted);
        let is_over = |migration: Option<&Migration>| {
            let is_deleted = migration.is_some_and(|migration| migration.metadata.deletion_timestamp.is_some());
            shows(migration, attempt, Verdict::Aborted) || (deleted && is_deleted)
        };
        tokio::select! {
            () = others.cancelled() => retryable(FailureReason::TransferFailed, "another container of the pod could not be sent"),
            () = self.seen(is_over) => retryable(FailureReason::TransferFailed, "aborted before all was sent"),
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
        sender.send_replace(Some(Arc::new(migration().attempt(2).owner("a", 1).deleted().build())));
        assert!(
            tokio::time::timeout(SOON, watching.called_off()).await.is_err(),
            "what is frozen is quicker to finish"
        );
        let mut before = watching.unless_deleted();
        assert!(tokio::time::timeout(SOON, before.called_off()).await.is_ok());
        let mut watching = before;
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
