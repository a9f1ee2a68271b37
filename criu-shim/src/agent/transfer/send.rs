//! Sending: rounds of parts, each part read by a thread of its own, so that reading, hashing and the wire overlap.

use crate::agent::transfer::frame::MAX_CONTROL;
use crate::agent::transfer::hashing::Hashing;
use crate::agent::transfer::link::{LinkError, LinkSender};
use crate::agent::transfer::manifest::{Landed, Manifest};
use crate::agent::transfer::message::{FromSource, Part, Small};
use crate::agent::transfer::packed::Packer;
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
        let of = part.clone();
        let sending = tokio::task::spawn_blocking(move || send_chunks(reader, &of, &link, &unwanted));
        let landed = match sending.await.unwrap_or_else(|error| Err(Unsent::Read(std::io::Error::other(error)))) {
            Ok(landed) => landed,
            Err(Unsent::Link(source)) => return Err(SendError::Link { what: part.to_string(), source }),
            Err(Unsent::Read(source)) => return Err(SendError::Read { part, source }),
        };
        let digest = landed.digest.to_string();
        say(&self.link, FromSource::FileEnd { bytes: landed.bytes, digest }).await?;
        if self.manifest.add(part.clone(), landed) { Ok(()) } else { Err(SendError::Twice(part)) }
    }

    /// Sends parts that are in memory already, each of at most [`MAX_DATA`](super::frame::MAX_DATA) bytes: as many together as a frame holds.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn together(&mut self, parts: Vec<(Part, Bytes)>) -> Result<(), SendError> {
        let mut parts = parts.into_iter().peekable();
        while parts.peek().is_some() {
            let (mut frame, mut small) = (self.link.buffer(), Vec::new());
            while let Some((part, content)) =
                parts.next_if(|(_, content)| small.len() < MOST_TOGETHER && content.len() <= frame.spare().len())
            {
                frame.spare()[..content.len()].copy_from_slice(&content);
                frame.fill(content.len());
                let (bytes, digest) = (content.len() as u64, blake3::hash(&content));
                small.push(Small { part: part.clone(), bytes, digest: digest.to_string() });
                let landed = Landed { bytes, digest: digest.into() };
                if !self.manifest.add(part.clone(), landed) {
                    return Err(SendError::Twice(part));
                }
            }
            if let (true, Some((part, _))) = (small.is_empty(), parts.peek()) {
                let source = std::io::Error::from(ErrorKind::FileTooLarge);
                return Err(SendError::Read { part: part.clone(), source });
            }
            say(&self.link, FromSource::Together { parts: small }).await?;
            let sent = self.link.data(frame.freeze()).await;
            sent.map_err(|source| SendError::Link { what: "small files".to_owned(), source })?;
        }
        Ok(())
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

/// Most parts that share a frame: what is said of them fits into a message, of which each takes less than 400 bytes.
const MOST_TOGETHER: usize = MAX_CONTROL / 400;

/// A chunk is sent when less than this is free in its buffer: a page and its header fit into it.
const FULL: usize = 8 << 10;

/// Sends `reader` to its end, in chunks that are read to where they are sent from. Blocking.
fn send_chunks<R: Read>(
    mut reader: R,
    part: &Part,
    link: &LinkSender<FromSource>,
    unwanted: &CancellationToken,
) -> Result<Landed, Unsent> {
    let (mut bytes, mut hashing) = (0, Hashing::of(part));
    let mut packer = part.is_memory().then(Packer::new);
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
            let sent = match &mut packer {
                Some(packer) => link.pages_blocking(chunk, packer),
                None => link.data_blocking(chunk.freeze()),
            };
            sent.map_err(Unsent::Link)?;
        }
        if ended {
            return Ok(Landed { bytes, digest: hashing.finish() });
        }
    }
}
