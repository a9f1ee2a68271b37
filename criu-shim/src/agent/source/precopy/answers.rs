//! What the target says of rounds, in whatever order it comes.

use crate::agent::failure::retryable;
use crate::agent::transfer::link::{Incoming, LinkReceiver};
use crate::agent::transfer::message::FromTarget;
use crate::causes::chain;
use tideover_crds::{Failure, FailureReason};

/// What the target says of a round: its number, and the digest over what has landed.
pub(super) type Answer = (u32, String);

/// What the target says of rounds. When something is in place it says whenever that is, between any two other words.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The last round of which all files are in place.
    placed: Option<u32>,
}

impl Answers {
    /// The target's answer to a round. Dropping the future loses nothing.
    pub(super) async fn verified(&mut self, receiver: &mut LinkReceiver<FromTarget>) -> Result<Answer, Failure> {
        loop {
            match said(receiver).await? {
                FromTarget::Verified { round, digest } => return Ok((round, digest)),
                FromTarget::Placed { round } => self.placed = Some(round),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Waits until the files of rounds up to `round` are in place.
    pub(super) async fn placed(&mut self, receiver: &mut LinkReceiver<FromTarget>, round: u32) -> Result<(), Failure> {
        while self.placed.is_none_or(|placed| placed < round) {
            match said(receiver).await? {
                FromTarget::Placed { round } => self.placed = Some(round),
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }
}

async fn said(receiver: &mut LinkReceiver<FromTarget>) -> Result<FromTarget, Failure> {
    match receiver.next().await.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error)))? {
        Incoming::Message(FromTarget::Failed { failure }) => Err(failure),
        Incoming::Message(message) => Ok(message),
        Incoming::Data(_) | Incoming::Packed(_) => {
            Err(retryable(FailureReason::TransferFailed, "the target sent data"))
        }
    }
}

fn unexpected(said: &FromTarget) -> Failure {
    retryable(FailureReason::TransferFailed, format!("the target answered {said:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::transfer::link;
    use crate::agent::transfer::message::FromSource;
    use std::time::Duration;

    #[tokio::test]
    async fn files_that_are_in_place_are_heard_of_between_other_words_and_waited_for_by_their_round() {
        let (here, there) = tokio::io::duplex(1 << 16);
        let (_source, mut heard) = link::open::<_, FromSource, FromTarget>(here);
        let (target, _heard) = link::open::<_, FromTarget, FromSource>(there);
        let mut answers = Answers::default();
        target.say(&FromTarget::Placed { round: 1 }).await.expect("say");
        target.say(&FromTarget::Verified { round: 2, digest: "d".into() }).await.expect("say");
        assert_eq!(answers.verified(&mut heard).await.expect("verified"), (2, "d".to_owned()));
        answers.placed(&mut heard, 1).await.expect("heard before");
        let early = tokio::time::timeout(Duration::from_millis(20), answers.placed(&mut heard, 2)).await;
        early.expect_err("only an earlier round is in place");
        target.say(&FromTarget::Placed { round: 2 }).await.expect("say");
        answers.placed(&mut heard, 2).await.expect("in place");
    }
}
