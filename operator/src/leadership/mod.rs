//! One leader among the replicas, by a Lease.
//!
//! [`lead`] owns the Lease. It hands out leadership as a future that is dropped the moment it can't be proven any more:
//! what the leader was doing stops at its next await, as if the process had been killed there. That is safe, because
//! every write of the operator applies only to what it was decided on.

mod bid;

use crate::causes::chain;
use bid::{Bid, Seen};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use std::time::Duration;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Name of the Lease.
pub const LEASE: &str = "tideover-operator";

/// How long a Lease lasts without being renewed: a follower takes it over after that, by its own clock.
const DURATION: Duration = Duration::from_secs(15);

/// How long a leader that can't renew goes on. Shorter than [`DURATION`], so that it has stopped before another begins.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

/// Pause between two looks at the Lease.
const PAUSE: Duration = Duration::from_secs(2);

/// Longest wait for one answer of the API server.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// Why the Lease could not be read or written.
#[derive(Debug, Error)]
enum LeaseError {
    #[error("read the Lease")]
    Read(#[source] Box<kube::Error>),
    #[error("write the Lease")]
    Write(#[source] Box<kube::Error>),
    #[error("the API server did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Silence(#[source] tokio::time::error::Elapsed),
}

/// Runs `work` while this replica is the leader, again and again, until `stop`. The Lease is given back at the end.
pub async fn lead<F: Future<Output = ()>>(
    client: Client,
    namespace: &str,
    identity: &str,
    stop: CancellationToken,
    work: impl Fn() -> F,
) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let mut candidate = Candidate { leases, identity: identity.to_owned(), seen: Seen::default() };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = candidate.wait_for_turn() => {}
        }
        info!(identity, "leading");
        tokio::select! {
            () = stop.cancelled() => {
                candidate.give_back().await;
                return;
            }
            () = candidate.hold() => warn!(identity, "leadership is lost"),
            () = work() => warn!(identity, "the controllers have ended"),
        }
    }
}

struct Candidate {
    leases: Api<Lease>,
    identity: String,
    seen: Seen,
}

impl Candidate {
    /// Returns once the Lease is this replica's.
    async fn wait_for_turn(&mut self) {
        loop {
            match self.bid().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => warn!(error = chain(&error), "bidding for the Lease"),
            }
            sleep(PAUSE).await;
        }
    }

    /// Renews the Lease. Returns once it is lost, or may be.
    async fn hold(&mut self) {
        let mut renewed = Instant::now();
        loop {
            sleep(PAUSE).await;
            // Counted from before the request: the Lease lasts from when it was written, not from when that was known.
            let asked = Instant::now();
            match self.bid().await {
                Ok(true) => renewed = asked,
                Ok(false) => return,
                Err(error) => warn!(error = chain(&error), "renewing the Lease"),
            }
            if renewed.elapsed() > RENEW_WITHIN {
                return;
            }
        }
    }

    /// One try. True where the Lease is this replica's now.
    async fn bid(&mut self) -> Result<bool, LeaseError> {
        timeout(ANSWER_WITHIN, self.bid_at_leisure()).await.map_err(LeaseError::Silence)?
    }

    async fn bid_at_leisure(&mut self) -> Result<bool, LeaseError> {
        let lease = self.leases.get_opt(LEASE).await.map_err(|error| LeaseError::Read(Box::new(error)))?;
        let unchanged = self.seen.unchanged_for(lease.as_ref(), Instant::now());
        let written = match bid::bid(lease.as_ref(), &self.identity, unchanged, DURATION, Timestamp::now()) {
            Bid::Wait => return Ok(false),
            Bid::Create(lease) => self.leases.create(&PostParams::default(), &lease).await,
            // The version that was read goes along: of two that take over, one is refused.
            Bid::Replace(lease) => self.leases.replace(&lease.name_any(), &PostParams::default(), &lease).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(false),
            Err(error) => Err(LeaseError::Write(Box::new(error))),
        }
    }

    /// Lets the next one begin at once.
    async fn give_back(&mut self) {
        let given = async {
            let Ok(Some(mut lease)) = self.leases.get_opt(LEASE).await else { return };
            let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
            else {
                return;
            };
            spec.holder_identity = None;
            if let Err(error) = self.leases.replace(LEASE, &PostParams::default(), &lease).await {
                warn!(%error, "the Lease could not be given back; it will run out");
            }
        };
        if timeout(ANSWER_WITHIN, given).await.is_err() {
            warn!("the Lease could not be given back; it will run out");
        }
    }
}
