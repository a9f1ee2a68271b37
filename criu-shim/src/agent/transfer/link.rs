//! A connection as two ends that can be used from several places: messages in, messages out, and a sign of life.
//!
//! A task of its own writes and another reads, so that dropping a future that sends or waits never leaves half a
//! frame on the wire. Each end says that it is there at least every [`HEARTBEAT`].

use crate::agent::transfer::frame::{Frame, FrameError, read_frame, write_frame};
use crate::agent::transfer::message::Message;
use bytes::Bytes;
use std::io::ErrorKind;
use std::marker::PhantomData;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::mpsc;
use tracing::debug;

/// How often an end speaks at least.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// After how much silence the peer is taken for lost.
pub const SILENCE: Duration = Duration::from_secs(3);

/// Frames that wait for the wire, per direction. With frames of at most 256 KiB this bounds the memory of a connection.
const BACKLOG: usize = 8;

/// Why nothing more comes from the peer.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The stream failed.
    #[error("the connection failed")]
    Frame(#[from] FrameError),
    /// The peer closed.
    #[error("the other agent closed the connection")]
    Closed,
    /// Nothing was heard.
    #[error("nothing was heard from the other agent for {} ms", SILENCE.as_millis())]
    Silent,
    /// What came is no message of this protocol.
    #[error("the peer sent a message that can't be read")]
    Decode(#[source] serde_json::Error),
    /// What is to be said can't be written as JSON.
    #[error("encode a message")]
    Encode(#[source] serde_json::Error),
}

/// The sending end; clones speak on the same connection.
#[derive(Clone, Debug)]
pub struct LinkSender<O> {
    frames: mpsc::Sender<Frame>,
    messages: PhantomData<fn(O)>,
}

impl<O: Message> LinkSender<O> {
    /// Queues a message.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn say(&self, message: &O) -> Result<(), LinkError> {
        let json = serde_json::to_vec(message).map_err(LinkError::Encode)?;
        self.frames.send(Frame::Control(json.into())).await.map_err(|_| LinkError::Closed)
    }

    /// Queues bytes of the part that was begun last, at most [`MAX_DATA`](super::frame::MAX_DATA) of them.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn data(&self, bytes: Bytes) -> Result<(), LinkError> {
        self.frames.send(Frame::Data(bytes)).await.map_err(|_| LinkError::Closed)
    }
}

/// What came in.
#[derive(Debug)]
pub enum Incoming<I> {
    /// A message other than a sign of life.
    Message(I),
    /// Bytes of a part.
    Data(Bytes),
}

/// The receiving end.
#[derive(Debug)]
pub struct LinkReceiver<I> {
    frames: mpsc::Receiver<Result<Frame, LinkError>>,
    messages: PhantomData<fn() -> I>,
}

impl<I: Message> LinkReceiver<I> {
    /// The next thing from the peer. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Where the connection is gone, silent, or carries what can't be read.
    pub async fn next(&mut self) -> Result<Incoming<I>, LinkError> {
        loop {
            let frame = match tokio::time::timeout(SILENCE, self.frames.recv()).await {
                Err(_) => return Err(LinkError::Silent),
                Ok(None) => return Err(LinkError::Closed),
                Ok(Some(frame)) => frame?,
            };
            match frame {
                Frame::Data(bytes) => return Ok(Incoming::Data(bytes)),
                Frame::Control(json) => {
                    let message: I = serde_json::from_slice(&json).map_err(LinkError::Decode)?;
                    if !message.is_alive() {
                        return Ok(Incoming::Message(message));
                    }
                }
            }
        }
    }
}

/// Makes the two ends of a connection that says `O` and hears `I`. Must be called inside a tokio runtime.
pub fn open<S, O, I>(stream: S) -> (LinkSender<O>, LinkReceiver<I>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    O: Message,
    I: Message,
{
    let (reader, writer) = tokio::io::split(stream);
    let (out_sender, out_receiver) = mpsc::channel(BACKLOG);
    let (in_sender, in_receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        if let Err(error) = write_all::<O, _>(BufWriter::with_capacity(8 << 10, writer), out_receiver).await {
            debug!(%error, "the sending end of a connection ended");
        }
    });
    tokio::spawn(read_all(BufReader::with_capacity(8 << 10, reader), in_sender));
    (
        LinkSender { frames: out_sender, messages: PhantomData },
        LinkReceiver { frames: in_receiver, messages: PhantomData },
    )
}

async fn write_all<O: Message, W: AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), FrameError> {
    let alive = Frame::Control(serde_json::to_vec(&O::alive()).unwrap_or_default().into());
    loop {
        match tokio::time::timeout(HEARTBEAT, frames.recv()).await {
            Ok(Some(frame)) => {
                write_frame(&mut writer, &frame).await?;
                if frames.is_empty() {
                    writer.flush().await.map_err(FrameError::Write)?;
                }
            }
            Ok(None) => return writer.shutdown().await.map_err(FrameError::Write),
            Err(_) => {
                write_frame(&mut writer, &alive).await?;
                writer.flush().await.map_err(FrameError::Write)?;
            }
        }
    }
}

async fn read_all<R: AsyncRead + Unpin>(mut reader: R, frames: mpsc::Sender<Result<Frame, LinkError>>) {
    loop {
        let read = tokio::select! {
            read = read_frame(&mut reader) => read,
            () = frames.closed() => return,
        };
        let (item, last) = match read {
            Ok(Some(frame)) => (Ok(frame), false),
            // An end inside a frame is what a peer that was killed looks like.
            Ok(None) => return,
            Err(FrameError::Read(error)) if error.kind() == ErrorKind::UnexpectedEof => return,
            Err(error) => (Err(LinkError::Frame(error)), true),
        };
        if frames.send(item).await.is_err() || last {
            return;
        }
    }
}
