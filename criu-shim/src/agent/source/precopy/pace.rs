//! The time that one attempt has for its rounds, and what its policy asks of them. Pure: the time is an argument.
//!
//! The operator ends an attempt that has not come to the freeze within the policy's `timeout`. So the rounds must leave enough of
//! it for the handover. It counts from when this agent first saw the attempt, which needs no clock of another node.

use super::converge::Aims;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};
use tideover_crds::{MigrationPolicy, ResolvedPolicy};

/// What of the attempt's time is kept for the handover, at most: a reservation ends, a replacement is scheduled, its sandbox and
/// volumes come up. Seconds, unless images of sandboxes are pulled.
const HANDOVER: Duration = Duration::from_secs(30);
/// What part of the attempt's time that may be.
const HANDOVER_PART: u32 = 4;

/// How long rounds may go on after the go. kubelet gives the replacement's `create` two minutes, of which dump, transfer and
/// restore need the most where they are slow.
const AT_THE_GO: Duration = Duration::from_secs(20);

/// What the rounds of one attempt have to keep to.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// What the policy asks of them.
    pub aims: Aims,
    /// The most bytes of data that rounds send in a second.
    pub bandwidth_limit: Option<NonZeroU64>,
    /// How long the attempt may take before the freeze.
    timeout: Duration,
    begun: Instant,
}

impl Pace {
    /// Of an attempt that was first seen at `begun`; the defaults where no policy was resolved.
    pub fn new(policy: Option<&ResolvedPolicy>, begun: Instant) -> Self {
        let default = || ResolvedPolicy::from_policy(None, &MigrationPolicy::default());
        let policy = policy.cloned().unwrap_or_else(default);
        Self {
            aims: Aims::from(&policy),
            bandwidth_limit: policy.pre_copy.bandwidth_limit_bytes,
            timeout: Duration::from_millis(policy.timeout_millis),
            begun,
        }
    }

    /// The same attempt under `policy`.
    pub fn under(&self, policy: Option<&ResolvedPolicy>) -> Self {
        Self::new(policy, self.begun)
    }

    /// What is left for rounds before the handover.
    pub fn left_before(&self, now: Instant) -> Duration {
        let handover = HANDOVER.min(self.timeout / HANDOVER_PART);
        self.left(now).saturating_sub(handover)
    }

    /// What is left for rounds at the go, which was given at `go`.
    pub fn left_at_the_go(&self, go: Instant, now: Instant) -> Duration {
        AT_THE_GO.saturating_sub(now.saturating_duration_since(go)).min(self.left(now))
    }

    fn left(&self, now: Instant) -> Duration {
        self.timeout.saturating_sub(now.saturating_duration_since(self.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(timeout: u64, begun: Instant) -> Pace {
        let policy = ResolvedPolicy::from_policy(None, &MigrationPolicy::default());
        Pace::new(Some(&ResolvedPolicy { timeout_millis: timeout * 1_000, ..policy }), begun)
    }

    #[test]
    fn rounds_leave_time_for_the_handover() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(pace(150, begun).left_before(after(20)), Duration::from_secs(100));
        assert_eq!(pace(150, begun).left_before(after(120)), Duration::ZERO);
        assert_eq!(pace(20, begun).left_before(after(5)), Duration::from_secs(10), "a quarter where that is less");
    }

    #[test]
    fn at_the_go_neither_create_nor_the_attempt_is_kept_waiting() {
        let begun = Instant::now();
        let after = |seconds| begun + Duration::from_secs(seconds);
        let pace = pace(150, begun);
        assert_eq!(pace.left_at_the_go(after(30), after(30)), AT_THE_GO);
        assert_eq!(pace.left_at_the_go(after(30), after(50)), Duration::ZERO);
        assert_eq!(pace.left_at_the_go(after(140), after(140)), Duration::from_secs(10));
        assert_eq!(pace.left_at_the_go(after(160), after(160)), Duration::ZERO);
    }
}
