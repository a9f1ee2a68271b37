//! A state that will be the only one, on its way onto the disk before the freeze: each round as it lands. The source hears what is
//! there, as it hears of files that are in place elsewhere, so that the freeze waits for nothing but what it has sent itself.

use super::TargetDriver;
use super::integrity::not_received;
use crate::agent::failure::retryable;
use crate::agent::target::event::Event;
use crate::agent::transfer::message::FromTarget;
use crate::agent::transfer::receive::Landing;
use crate::causes::chain;
use tideover_crds::{Failure, FailureReason};
use tracing::warn;

/// What of one container is brought to the disk.
#[derive(Debug, Default)]
pub(super) struct Syncing {
    is_under_way: bool,
    /// The last round that has landed since that was begun.
    next: Option<u32>,
}

impl Syncing {
    /// A round has landed. Whether it is to be begun with it now.
    fn landed(&mut self, round: u32) -> bool {
        if self.is_under_way {
            self.next = Some(round);
        }
        !std::mem::replace(&mut self.is_under_way, true)
    }

    /// It has ended. The round that it is to be begun with again, if any has landed meanwhile.
    fn ended(&mut self) -> Option<u32> {
        self.is_under_way = self.next.is_some();
        self.next.take()
    }
}

impl TargetDriver {
    /// Sees to it that round `round`, and all before it, come to the disk.
    pub(super) fn bring_to_disk(&mut self, lane: usize, round: u32) {
        if self.lanes[lane].syncing.landed(round) {
            self.begin_to_sync(lane, round);
        }
    }

    /// What had landed up to round `round` is on the disk.
    pub(super) async fn was_synced(&mut self, lane: usize, round: u32, result: Result<(), Failure>) {
        match result {
            // The last round has synced all of it again.
            Err(failure) if self.committed_here() => {
                return warn!(
                    migration = self.key.name,
                    message = failure.message,
                    "a round before the last was not synced"
                );
            }
            Err(failure) => return self.fail(failure).await,
            Ok(()) => {}
        }
        self.tell_source_of(lane, FromTarget::Placed { round }).await;
        if let Some(next) = self.lanes[lane].syncing.ended() {
            self.begin_to_sync(lane, next);
        }
    }

    fn begin_to_sync(&self, lane: usize, round: u32) {
        let (directory, events, attempt) = (self.lane_directory(lane), self.own_events.clone(), self.local.attempt);
        let container = self.lanes[lane].container.clone();
        tokio::spawn(async move {
            let syncing = tokio::task::spawn_blocking(move || Landing::sync(&directory));
            let result = match syncing.await {
                Ok(synced) => synced.map_err(|error| not_received(&error)),
                Err(error) => Err(retryable(FailureReason::TransferFailed, chain(&error))),
            };
            // A driver that is gone does not need it.
            events.send(Event::Synced { attempt, container, round, result }).await.ok();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lands_meanwhile_is_brought_to_the_disk_after_it_all_at_once() {
        let mut syncing = Syncing::default();
        assert!(syncing.landed(1));
        assert!(!syncing.landed(2) && !syncing.landed(3), "one at a time");
        assert_eq!(syncing.ended(), Some(3));
        assert!(!syncing.landed(4));
        assert_eq!(syncing.ended(), Some(4));
        assert_eq!(syncing.ended(), None);
        assert!(syncing.landed(5));
    }
}
