//! Before the freeze: connecting, and rounds of memory for as long as they are worth it.

use super::SourceDriver;
use crate::agent::context::News;
use crate::agent::duty::SourceAt;
use crate::agent::failure::retryable;
use crate::agent::source::connect::{self, Connected, Peer};
use crate::agent::source::freeze::millis;
use crate::agent::source::precopy::converge::{self, Next, RoundSeen};
use crate::agent::source::precopy::{LeftOut, PreCopy};
use crate::agent::source::watching::Watching;
use crate::agent::transfer::link::Incoming;
use crate::agent::transfer::message::{FromTarget, IMAGES};
use crate::causes::chain;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, MemoryEngine, Migration, PreCopied, Round, SourceStep, Strategy};
use tokio::sync::watch::error::RecvError;

/// Most rounds that a report lists: those before the handover.
const LISTED: usize = 32;

/// What is said where a state waits on the target's disk for the name to be free.
const ON_DISK: &str =
    "all memory is copied in the freeze, because the state lies on the target's disk until the pod's name is free";

impl SourceDriver {
    pub(super) async fn connect(&mut self, migration: &Migration, attempt: u32) {
        let status = migration.status.as_ref();
        let address = status.and_then(|status| status.target_now()?.address.clone());
        let node = status.and_then(|status| status.target_node.clone());
        let (Some(address), Some(node), Some(inspected)) = (address, node, self.inspected.clone()) else { return };
        let replace_first = status.is_some_and(|status| status.strategy == Some(Strategy::ReplaceFirst));
        self.aim = status
            .and_then(|status| status.policy.as_ref())
            .map_or(self.aim, |policy| Duration::from_millis(policy.max_downtime_millis));
        let peer = Peer { node, address };
        let mut connected =
            match connect::connect(&self.context, &self.key, attempt, &peer, inspected, replace_first).await {
                Ok(connected) => connected,
                Err(failure) => return self.fail(failure).await,
            };
        let freezer = connected.inspected.container.freezer.clone();
        let following = match connected.whole.clone() {
            _ if !replace_first => Err(ON_DISK.to_owned()),
            Some(reason) => Err(reason),
            None => PreCopy::begin(freezer, connected.round).await,
        };
        match following {
            Ok(precopy) => {
                connected.precopy = Some(precopy);
                self.report.engine = Some(MemoryEngine::WriteProtect);
                self.connected = Some(connected);
                self.reach(SourceAt::Connected, SourceStep::PreCopying);
            }
            Err(reason) => {
                self.report.notes.push(reason);
                self.report.engine = Some(MemoryEngine::StopAndCopy);
                self.connected = Some(connected);
                self.reach(SourceAt::Connected, SourceStep::PreCopying);
                // Without a round before the freeze, it has converged as soon as it is connected.
                self.reach(SourceAt::Connected, SourceStep::Converged);
            }
        }
    }

    /// Waits for news of the object, or from the target. Meanwhile memory is copied.
    pub(super) async fn wait(&mut self, news: &mut News) -> Result<(), RecvError> {
        let Some(connected) = &mut self.connected else { return news.changed().await };
        let Connected { sender, receiver, precopy, .. } = connected;
        let copied = match precopy {
            Some(precopy) => tokio::select! {
                changed = news.changed() => return changed,
                copied = precopy.next(sender, receiver) => copied,
            },
            None => tokio::select! {
                changed = news.changed() => return changed,
                said = receiver.next() => Err(match said {
                    Ok(Incoming::Message(FromTarget::Failed { failure })) => failure,
                    Ok(other) => retryable(FailureReason::TransferFailed, format!("the target said {other:?} too early")),
                    Err(error) => retryable(FailureReason::TransferFailed, chain(&error)),
                }),
            },
        };
        match copied {
            Ok(round) => self.copied(round),
            Err(failure) => self.fail(failure).await,
        }
        Ok(())
    }

    /// Another round has landed.
    fn copied(&mut self, round: RoundSeen) {
        let Some(precopy) = self.connected.as_mut().and_then(|connected| connected.precopy.as_mut()) else { return };
        self.report.pre_copied = Some(pre_copied(&precopy.seen));
        let next = converge::next(&precopy.seen, self.aim);
        if next != Next::Again {
            precopy.rest();
        }
        if self.report.step >= SourceStep::Converged {
            return;
        }
        if self.report.rounds.len() < LISTED {
            self.report.rounds.push(Round { bytes: round.bytes, millis: millis(round.took) });
        }
        match next {
            Next::Again => self.reporter.report(self.report.clone()),
            Next::Converged(_) => self.reach(SourceAt::Connected, SourceStep::Converged),
            Next::Stalled(predicted) => {
                self.report.notes.push(format!(
                    "memory is written about as fast as it is copied: the freeze may take {:.0} ms, {:.0} ms were aimed for",
                    millis(predicted),
                    millis(self.aim)
                ));
                self.reach(SourceAt::Connected, SourceStep::Converged);
            }
        }
    }

    /// The last round before the freeze, and what the dump can leave out for it.
    ///
    /// # Errors
    /// With the failure to report, also where the attempt is called off meanwhile. Nothing is frozen.
    pub(super) async fn last_round(
        &mut self,
        connected: &mut Connected,
        news: &mut News,
    ) -> Result<Option<LeftOut>, Failure> {
        let Some(precopy) = connected.precopy.take() else { return Ok(None) };
        let mut watching = Watching::new(news, connected.attempt);
        let (followed, seen, round) = tokio::select! {
            finished = precopy.finish(&connected.sender, &mut connected.receiver) => finished?,
            failure = watching.called_off() => return Err(failure),
        };
        connected.round = round;
        self.report.pre_copied = Some(pre_copied(&seen));
        LeftOut::of(followed, connected.directory.join(IMAGES)).await.map(Some)
    }
}

fn pre_copied(rounds: &[RoundSeen]) -> PreCopied {
    PreCopied {
        rounds: u32::try_from(rounds.len()).unwrap_or(u32::MAX),
        bytes: rounds.iter().map(|round| round.bytes).sum(),
        millis: rounds.iter().map(|round| millis(round.took)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_counts() {
        let rounds = [(7, 2), (3, 1)].map(|(bytes, took)| RoundSeen { bytes, took: Duration::from_millis(took) });
        assert_eq!(pre_copied(&rounds), PreCopied { rounds: 2, bytes: 10, millis: 3.0 });
    }
}
