//! What to do about the Lease: a pure decision.
//!
//! Clocks of nodes differ, so the time in the Lease is never compared with this node's. What counts is for how long this
//! node has seen it unchanged, by its own monotonic clock.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use std::time::Duration;
use tokio::time::Instant;

/// What to do.
#[derive(Debug, PartialEq)]
pub(super) enum Bid {
    /// Somebody else leads, or may.
    Wait,
    /// There is no Lease yet.
    Create(Lease),
    /// Renew it, or take it over.
    Replace(Lease),
}

/// The last version of the Lease that was seen, and when it was first seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    version: Option<String>,
    since: Option<Instant>,
}

impl Seen {
    /// For how long `lease` has been as it is, as far as this process knows.
    pub(super) fn unchanged_for(&mut self, lease: Option<&Lease>, now: Instant) -> Duration {
        let version = lease.and_then(|lease| lease.metadata.resource_version.clone());
        if self.version != version {
            *self = Self { version, since: Some(now) };
        }
        self.since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }
}

/// Decides for the replica `identity`.
pub(super) fn bid(
    lease: Option<&Lease>,
    identity: &str,
    unchanged: Duration,
    duration: Duration,
    now: Timestamp,
) -> Bid {
    let Some(lease) = lease else {
        let name = Some(super::LEASE.to_owned());
        let metadata = ObjectMeta { name, ..Default::default() };
        let spec = Some(spec(identity, duration, now, MicroTime(now), 0));
        return Bid::Create(Lease { metadata, spec });
    };
    let old = lease.spec.clone().unwrap_or_default();
    let holder = old.holder_identity.as_deref().filter(|holder| !holder.is_empty());
    let transitions = old.lease_transitions.unwrap_or(0);
    let renewed = match holder {
        Some(holder) if holder == identity => {
            let since = old.acquire_time.unwrap_or(MicroTime(now));
            spec(identity, duration, now, since, transitions)
        }
        Some(_) if unchanged <= lasts(&old, duration) => return Bid::Wait,
        _ => spec(identity, duration, now, MicroTime(now), transitions.saturating_add(1)),
    };
    Bid::Replace(Lease { spec: Some(renewed), ..lease.clone() })
}

/// The holder said how long its Lease lasts; a former version of the operator may have had another opinion.
fn lasts(spec: &LeaseSpec, default: Duration) -> Duration {
    let told = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    told.map_or(default, Duration::from_secs)
}

fn spec(identity: &str, duration: Duration, now: Timestamp, since: MicroTime, transitions: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
        acquire_time: Some(since),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(transitions),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn now() -> Timestamp {
        Timestamp::from_second(1_000).expect("a time")
    }

    fn held_by(holder: &str) -> Lease {
        let spec = spec(holder, DURATION, now(), MicroTime(now()), 3);
        Lease { spec: Some(spec), ..Default::default() }
    }

    fn check(lease: Option<&Lease>, unchanged: u64) -> Bid {
        bid(lease, "me", Duration::from_secs(unchanged), DURATION, now())
    }

    fn holder(bid: Bid) -> (Option<String>, Option<i32>) {
        let (Bid::Create(lease) | Bid::Replace(lease)) = bid else { panic!("{bid:?}") };
        let spec = lease.spec.expect("a spec");
        (spec.holder_identity, spec.lease_transitions)
    }

    #[test]
    fn the_first_one_makes_the_lease() {
        assert_eq!(holder(check(None, 0)), (Some("me".into()), Some(0)));
    }

    #[test]
    fn the_holder_renews() {
        assert_eq!(holder(check(Some(&held_by("me")), 1)), (Some("me".into()), Some(3)));
    }

    #[test]
    fn somebody_elses_lease_is_waited_for_until_it_runs_out() {
        assert_eq!(check(Some(&held_by("other")), 15), Bid::Wait);
        assert_eq!(holder(check(Some(&held_by("other")), 16)), (Some("me".into()), Some(4)));
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        assert_eq!(holder(check(Some(&held_by("")), 0)), (Some("me".into()), Some(4)));
    }

    #[test]
    fn every_change_starts_the_wait_anew() {
        let mut seen = Seen::default();
        let start = Instant::now();
        let lease = |version: &str| {
            let mut lease = held_by("other");
            lease.metadata.resource_version = Some(version.into());
            lease
        };
        seen.unchanged_for(Some(&lease("1")), start);
        assert_eq!(seen.unchanged_for(Some(&lease("1")), start + DURATION), DURATION);
        assert_eq!(seen.unchanged_for(Some(&lease("2")), start + DURATION), Duration::ZERO);
    }
}
