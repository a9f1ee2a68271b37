//! Sending: rounds of parts, each part read by a thread of its own, so that reading, hashing and the wire overlap.

use crate::agent::transfer::hashing::Hashing;
use crate::agent::transfer::link::{LinkError, LinkSender};
use crate::agent::transfer::manifest::{Landed, Manifest};
use crate::agent::transfer::message::{FromSource, Part};
use bytes::Bytes;
use std::io::{ErrorKind, Read};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

/// Why a part did not go.
#[derive(Debug, Error)]
pub enum SendError {
    /// The connection is gone.
    #[error("send {what} to the target")]
    Link {
        /// What was being sent.
        what: String,
        /// Why.
        #[source]
        source: LinkError,
    },
    /// Its bytes can't be read.
    #[error("read {part} to send it")]
    Read {
        /// What was being sent.
        part: Part,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Two parts of one round have the same name.
    #[error("{0} was to be sent twice in one round")]
    Twice(Part),
}

/// A round that is being sent.
#[derive(Debug)]
pub struct RoundSender {
    link: LinkSender<FromSource>,
    manifest: Manifest,
}

/// Begins round `round`.
///
/// # Errors
/// Where the connection is gone.
pub async fn begin(link: &LinkSender<FromSource>, round: u32, last: bool) -> Result<RoundSender, SendError> {
    say(link, FromSource::RoundBegin { round, last }).await?;
    Ok(RoundSender { link: link.clone(), manifest: Manifest::default() })
}

/// Begins round `round`, a cut for the rehearsal.
///
/// # Errors
/// Where the connection is gone.
pub async fn begin_rehearsal(link: &LinkSender<FromSource>, round: u32) -> Result<RoundSender, SendError> {
    say(link, FromSource::RehearsalBegin { round }).await?;
    Ok(RoundSender { link: link.clone(), manifest: Manifest::default() })
}

impl RoundSender {
    /// Sends one part from `reader` to its end.
    ///
    /// # Errors
    /// Where the connection is gone or the reader fails; the round can't be completed then.
    pub async fn part<R: Read + Send + 'static>(&mut self, part: Part, reader: R) -> Result<(), SendError> {
        say(&self.link, FromSource::FileBegin { part: part.clone() }).await?;
        // Where this future is dropped, nobody wants the rest.
        let (unwanted, link) = (CancellationToken::new(), self.link.clone());
        let _guard = unwanted.clone().drop_guard();
        let hashing = Hashing::of(&part);
        let sending = tokio::task::spawn_blocking(move || send_chunks(reader, hashing, &link, &unwanted));
        let landed = match sending.await.unwrap_or_else(|error| Err(Unsent::Read(std::io::Error::other(error)))) {
            Ok(landed) => landed,
            Err(Unsent::Link(source)) => return Err(SendError::Link { what: part.to_string(), source }),
            Err(Unsent::Read(source)) => return Err(SendError::Read { part, source }),
        };
        let digest = landed.digest.to_string();
        say(&self.link, FromSource::FileEnd { bytes: landed.bytes, digest }).await?;
        if self.manifest.add(part.clone(), landed) { Ok(()) } else { Err(SendError::Twice(part)) }
    }

    /// Sends one part that is in memory already, of at most [`MAX_DATA`] bytes.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn whole(&mut self, part: Part, content: Bytes) -> Result<(), SendError> {
        let landed = Landed { bytes: content.len() as u64, digest: blake3::hash(&content).into() };
        let digest = landed.digest.to_string();
        say(&self.link, FromSource::Whole { part: part.clone(), digest }).await?;
        let sent = self.link.data(content).await;
        sent.map_err(|source| SendError::Link { what: part.to_string(), source })?;
        if self.manifest.add(part.clone(), landed) { Ok(()) } else { Err(SendError::Twice(part)) }
    }

    /// Closes the round. Returns what was sent; the target must answer with the same digest.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn end(self) -> Result<Manifest, SendError> {
        say(&self.link, FromSource::RoundEnd { digest: self.manifest.digest() }).await?;
        Ok(self.manifest)
    }
}

async fn say(link: &LinkSender<FromSource>, message: FromSource) -> Result<(), SendError> {
    link.say(&message).await.map_err(|source| SendError::Link { what: "a message".to_owned(), source })
}

/// Why the bytes of a part did not go.
enum Unsent {
    Link(LinkError),
    Read(std::io::Error),
}

/// A chunk is sent when less than this is free in its buffer: a page and its header fit into it.
const FULL: usize = 8 << 10;

/// Sends `reader` to its end, in chunks that are read to where they are sent from. Blocking.
fn send_chunks<R: Read>(
    mut reader: R,
    mut hashing: Hashing,
    link: &LinkSender<FromSource>,
    unwanted: &CancellationToken,
) -> Result<Landed, Unsent> {
    let mut bytes = 0;
    loop {
        let mut chunk = link.buffer();
        let mut ended = unwanted.is_cancelled();
        while !ended && chunk.spare().len() >= FULL {
            match reader.read(chunk.spare()) {
                Ok(0) => ended = true,
                Ok(count) => chunk.fill(count),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Unsent::Read(error)),
            }
        }
        let filled = chunk.as_ref();
        hashing.update(filled);
        bytes += filled.len() as u64;
        if !filled.is_empty() {
            link.data_blocking(chunk.freeze()).map_err(Unsent::Link)?;
        }
        if ended {
            return Ok(Landed { bytes, digest: hashing.finish() });
        }
    }
}
