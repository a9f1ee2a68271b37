//! What ends the work with several containers of a pod, none of which goes without the others.

use std::sync::OnceLock;
use tideover_crds::Failure;
use tokio_util::sync::CancellationToken;

/// The first thing that went wrong with any container; what it led to with the others is no news.
#[derive(Debug, Default)]
pub(super) struct FirstFailure {
    failure: OnceLock<Failure>,
    /// Cancelled once there is one.
    pub(super) token: CancellationToken,
}

impl FirstFailure {
    /// This one has failed.
    pub(super) fn note(&self, failure: Failure) {
        // A second one has the first for its reason.
        self.failure.set(failure).ok();
        self.token.cancel();
    }

    /// # Errors
    /// With the failure, where there is one.
    pub(super) fn taken(&self) -> Result<(), Failure> {
        self.failure.get().map_or(Ok(()), |failure| Err(failure.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::failure::retryable;
    use tideover_crds::FailureReason;

    #[test]
    fn the_first_failure_counts_and_stops_the_others() {
        let first = FirstFailure::default();
        assert_eq!(first.taken(), Ok(()));
        assert!(!first.token.is_cancelled());
        let failure = |message: &str| retryable(FailureReason::DumpFailed, message.to_owned());
        first.note(failure("one"));
        first.note(failure("what came of it"));
        assert_eq!(first.taken(), Err(failure("one")));
        assert!(first.token.is_cancelled());
    }
}
