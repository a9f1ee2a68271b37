//! The reading end of a connection: what came in goes to the queue that its order asks for.
//!
//! It reads on only while there is room in the queues, so that a peer that sends faster than its data can be kept is slowed
//! down by TCP. Only while it reads does the peer's silence count. A frame counts as taken once it is in a queue: one that was
//! not comes again on the next connection.

use crate::agent::transfer::buffers::Buffers;
use crate::agent::transfer::counts::Counts;
use crate::agent::transfer::frame::{Frame, FrameError, read_frame};
use crate::agent::transfer::link::{Incoming, LinkError, SILENCE};
use crate::agent::transfer::message::{Message, Order};
use std::io::ErrorKind;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Why nothing more is read from a connection.
#[derive(Debug)]
pub(super) enum End {
    /// The peer has nothing more to say.
    Finished,
    /// Nobody wants to know.
    Unwanted,
    /// The connection is gone, and another may go on.
    Lost(LinkError),
    /// The peer does not speak this protocol.
    Broken(LinkError),
}

/// Where what comes in goes, whichever connection it comes by.
#[derive(Debug)]
pub(super) struct Inbox<I> {
    /// Frames of the stream, in their order. Why it ended is the last thing in it, unless the peer has finished.
    pub(super) stream: mpsc::Sender<Result<Incoming<I>, LinkError>>,
    /// Messages that go ahead of them.
    pub(super) ahead: mpsc::Sender<I>,
    /// What data is read into.
    pub(super) buffers: Buffers,
}

impl<I> Clone for Inbox<I> {
    fn clone(&self) -> Self {
        Self { stream: self.stream.clone(), ahead: self.ahead.clone(), buffers: self.buffers.clone() }
    }
}

impl<I: Message> Inbox<I> {
    /// Reads until the connection ends, or nobody wants to know.
    pub(super) async fn read<R: AsyncRead + Unpin>(&self, mut reader: R, counts: &Counts) -> End {
        loop {
            let read = tokio::select! {
                read = timeout(SILENCE, read_frame(&mut reader, &self.buffers)) => read,
                () = self.stream.closed() => return End::Unwanted,
            };
            let queued = match read {
                Ok(Ok(Some(Frame::Data(bytes)))) => self.stream.send(Ok(Incoming::Data(bytes))).await.is_ok(),
                Ok(Ok(Some(Frame::Packed(packed)))) => self.stream.send(Ok(Incoming::Packed(packed))).await.is_ok(),
                Ok(Ok(Some(Frame::Control(json)))) => match serde_json::from_slice::<I>(&json) {
                    Ok(message) => match message.order() {
                        Order::InStream => self.stream.send(Ok(Incoming::Message(message))).await.is_ok(),
                        Order::Ahead => self.ahead.send(message).await.is_ok(),
                    },
                    Err(error) => return End::Broken(LinkError::Decode(error)),
                },
                Ok(Ok(Some(Frame::Taken(count)))) => {
                    counts.confirm(count);
                    continue;
                }
                Ok(Ok(Some(Frame::End))) => return End::Finished,
                // What a peer looks like that was killed, or that can't be reached any more.
                Ok(Ok(None)) => return End::Lost(LinkError::Closed),
                Ok(Err(FrameError::Read(error))) if error.kind() == ErrorKind::UnexpectedEof => {
                    return End::Lost(LinkError::Closed);
                }
                Ok(Err(error @ FrameError::Read(_))) => return End::Lost(LinkError::Frame(error)),
                Ok(Err(error)) => return End::Broken(LinkError::Frame(error)),
                Err(_) => return End::Lost(LinkError::Silent),
            };
            if !queued {
                return End::Unwanted;
            }
            counts.take();
        }
    }
}
