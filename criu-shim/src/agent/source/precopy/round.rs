//! Sending one round.

use super::reader::PageReader;
use super::{Followed, Trees, Unfollowed, Written, send_shared};
use crate::agent::failure::retryable;
use crate::agent::transfer::link::LinkSender;
use crate::agent::transfer::manifest::Manifest;
use crate::agent::transfer::message::FromSource;
use crate::agent::transfer::send::{self, RoundSender, SendError};
use crate::causes::chain;
use crate::memory::ReadError;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason};
use tokio::time::Instant;

/// A round that was sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) followed: Option<Followed>,
    pub(super) manifest: Manifest,
    /// When it was looked what is written.
    pub(super) at: Instant,
    /// Whether it was looked at everything.
    pub(super) all_looked: bool,
    /// How long the limit on the connection held data back.
    pub(super) held_back: Duration,
}

/// Sends what was written since the round before, and what `trees` have; round `round`.
///
/// # Errors
/// With the failure to report.
pub(super) async fn send_round(
    sender: &LinkSender<FromSource>,
    round: u32,
    mut followed: Option<Followed>,
    trees: Option<Trees>,
) -> Result<Sent, Failure> {
    let (at, held_back) = (Instant::now(), sender.held_back());
    let looking = trees.map(|trees| trees.look(round, false));
    let looked = tokio::task::spawn_blocking(move || {
        let (written, shared) = match &mut followed {
            Some(followed) => (followed.written(), followed.shared()),
            None => (Ok((Vec::new(), true)), Ok(Some(Vec::new()))),
        };
        (written, shared, at.elapsed(), followed)
    });
    let looked = looked.await.map_err(|error| retryable(FailureReason::DumpFailed, chain(&error)))?;
    let (written, shared, took, mut followed) = looked;
    let failed = |error: Unfollowed| retryable(FailureReason::DumpFailed, chain(&error));
    let ((written, all_written), shared) = (written.map_err(failed)?, shared.map_err(failed)?);
    let all_looked = all_written && shared.is_some() && looking.is_some();
    let shared = shared.unwrap_or_default();
    let looks = !shared.is_empty();
    let sent = async {
        let mut sending = send::begin(sender, round, false).await?;
        send_pages(&mut sending, round, written, false).await?;
        let compared = send_shared(&mut sending, round, shared, false).await?;
        if let Some(looking) = looking {
            looking.send(&mut sending).await?;
        }
        Ok::<_, SendError>((sending.end().await?, compared))
    };
    let (manifest, compared) = sent.await.map_err(|error| retryable(FailureReason::TransferFailed, chain(&error)))?;
    if let Some(followed) = followed.as_mut().filter(|_| looks) {
        followed.shared.rest_after(took + compared);
    }
    Ok(Sent { followed, manifest, at, all_looked, held_back: sender.held_back() - held_back })
}

/// Sends what was written as parts of a round, but for what the target has as it is, or elsewhere. Of processes that are
/// `frozen`, all of it must be there.
///
/// # Errors
/// Where the connection is gone or the memory can't be read.
pub async fn send_pages(
    sending: &mut RoundSender,
    round: u32,
    written: Vec<Written>,
    frozen: bool,
) -> Result<(), SendError> {
    for one in written {
        let part = one.part(round);
        match PageReader::open(one, frozen) {
            Ok(reader) => sending.part(part, reader).await?,
            // It has ended: nothing of it will be dumped.
            Err(ReadError::Open { source, .. }) if !frozen && source.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(SendError::Read { part, source: std::io::Error::other(error) }),
        }
    }
    Ok(())
}
