//! What is said first on a connection: what it is for, or which link it goes on with. Read before anything else of it is.

use crate::agent::transfer::buffers::Buffers;
use crate::agent::transfer::frame::{Frame, FrameError, read_frame, write_frame};
use crate::agent::transfer::link::LinkError;
use crate::agent::transfer::message::Preamble;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// First frame of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Hello {
    /// The first connection of an attempt. What follows are frames of its link.
    Begin(Preamble),
    /// A connection of this link was lost. What follows, once the target has answered, are the frames that it has not taken.
    GoOn(GoOn),
}

/// Which link goes on, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GoOn {
    /// [`VERSION`](super::message::VERSION) of the sender.
    pub version: u32,
    /// UID of the Migration.
    pub migration: String,
    /// Attempt of it.
    pub attempt: u32,
    /// That of the preamble.
    pub session: String,
    /// Frames of the target that the source has taken.
    pub taken: u64,
}

/// What the target answers to [`Hello::GoOn`], before any other frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// The link goes on.
    GoesOn {
        /// Frames of the source that the target has taken.
        taken: u64,
    },
    /// There is no such link any more.
    Refused {
        /// Why.
        message: String,
    },
}

/// Says what a connection is for.
///
/// # Errors
/// Where the connection fails.
pub async fn say<S: AsyncWrite + Unpin>(stream: &mut S, hello: &Hello) -> Result<(), LinkError> {
    write(stream, hello).await
}

/// What the peer says that its connection is for. None where it says something else.
///
/// # Errors
/// Where the connection fails.
pub async fn hear<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<Hello>, LinkError> {
    read(stream).await
}

/// Asks the target to go on, and hears its answer. None where it says something else.
///
/// # Errors
/// Where the connection fails.
pub async fn go_on<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, link: GoOn) -> Result<Option<Answer>, LinkError> {
    write(stream, &Hello::GoOn(link)).await?;
    read(stream).await
}

/// Answers [`Hello::GoOn`].
///
/// # Errors
/// Where the connection fails.
pub async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, answer: &Answer) -> Result<(), LinkError> {
    write(stream, answer).await
}

/// What tells one link from all others: 128 random bits, hexadecimal.
///
/// # Errors
/// Where no random number is to be had.
pub fn new_session() -> std::io::Result<String> {
    let mut random = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn write<S: AsyncWrite + Unpin>(stream: &mut S, message: &impl Serialize) -> Result<(), LinkError> {
    let json = serde_json::to_vec(message).map_err(LinkError::Encode)?;
    write_frame(stream, &Frame::Control(json.into())).await?;
    Ok(stream.flush().await.map_err(FrameError::Write)?)
}

async fn read<S: AsyncRead + Unpin, M: DeserializeOwned>(stream: &mut S) -> Result<Option<M>, LinkError> {
    match read_frame(stream, &Buffers::default()).await? {
        Some(Frame::Control(json)) => serde_json::from_slice(&json).map(Some).map_err(LinkError::Decode),
        Some(_) => Ok(None),
        None => Err(LinkError::Closed),
    }
}
