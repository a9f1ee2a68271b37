//! A connection as two ends that can be used from several places: messages in, messages out, and a sign of life.
//!
//! A task of its own writes ([`outgoing`](super::outgoing)) and reads ([`incoming`](super::incoming)), so that dropping
//! a future that sends or waits never leaves half a frame on the wire, and goes on where another connection takes the place of one
//! that is lost ([`session`](super::session)). Each end says that it is there at least every [`HEARTBEAT`]. What belongs to the stream of parts keeps its order; every other message goes ahead of it
//! ([`Order`]), on the way out and on the way in.

use crate::agent::transfer::buffers::{Buffer, Buffers};
use crate::agent::transfer::counts::Counts;
use crate::agent::transfer::flow::Flow;
use crate::agent::transfer::frame::{Frame, FrameError, Packed};
use crate::agent::transfer::incoming::Inbox;
use crate::agent::transfer::message::{Codec, Message, Order};
use crate::agent::transfer::outgoing::Outbox;
use crate::agent::transfer::packed::Packer;
use crate::agent::transfer::packing::Packing;
use crate::agent::transfer::session::{Never, Renewal, Session};
use crate::agent::transfer::tally::Tally;
use crate::agent::transfer::worth::Verdict;
use bytes::Bytes;
use std::marker::PhantomData;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

/// How often an end speaks at least.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// After how much silence the peer is taken for lost.
pub const SILENCE: Duration = Duration::from_secs(3);

/// Frames of the stream that wait, per direction. With frames of at most 256 KiB this bounds the memory of a connection.
const BACKLOG: usize = 8;
/// Messages that go ahead of the stream and wait, per direction. There are a handful in a whole move.
const AHEAD: usize = 16;

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
    /// The peer says of frames that it has taken them, which it can't have, or has them no more.
    #[error(
        "the peer says that it has taken {said} frames: {sent} were sent, of which it had taken {confirmed} before"
    )]
    Count {
        /// What it says.
        said: u64,
        /// Frames that were sent.
        sent: u64,
        /// What it said before.
        confirmed: u64,
    },
}

/// The sending end; clones speak on the same connection.
#[derive(Clone, Debug)]
pub struct LinkSender<O> {
    stream: mpsc::Sender<Frame>,
    ahead: mpsc::Sender<Bytes>,
    limit: watch::Sender<Option<NonZeroU64>>,
    flow: Arc<Flow>,
    packing: Packing,
    buffers: Buffers,
    may_renew: watch::Sender<bool>,
    messages: PhantomData<fn(O)>,
}

impl<O: Message> LinkSender<O> {
    /// Queues a message, where its [`Order`] says.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn say(&self, message: &O) -> Result<(), LinkError> {
        let json = Bytes::from(serde_json::to_vec(message).map_err(LinkError::Encode)?);
        let queued = match message.order() {
            Order::InStream => self.stream.send(Frame::Control(json)).await.is_ok(),
            Order::Ahead => self.ahead.send(json).await.is_ok(),
        };
        if queued { Ok(()) } else { Err(LinkError::Closed) }
    }

    /// Queues bytes of the part that was begun last, at most [`MAX_DATA`](super::frame::MAX_DATA) of them.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub async fn data(&self, bytes: Bytes) -> Result<(), LinkError> {
        self.frame(Frame::Data(bytes)).await
    }

    /// Queues a frame in the stream.
    pub(super) async fn frame(&self, frame: Frame) -> Result<(), LinkError> {
        self.stream.send(frame).await.map_err(|_| LinkError::Closed)
    }

    /// As [`LinkSender::data`], for a thread that may block.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub fn data_blocking(&self, bytes: Bytes) -> Result<(), LinkError> {
        self.stream.blocking_send(Frame::Data(bytes)).map_err(|_| LinkError::Closed)
    }

    /// As [`LinkSender::data_blocking`], for pages, which cross compressed by `packer` where that was agreed and wins.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub(super) fn pages_blocking(&self, pages: Buffer, packer: &mut Packer) -> Result<(), LinkError> {
        let limit = *self.limit.borrow();
        let frame = match self.packing.look(pages.as_ref(), packer, &self.flow, limit) {
            Some(tally) => packer.pack(pages.as_ref(), self.buffer()).map(|packed| {
                tally.packed(packed.length, packed.block.len());
                Frame::Packed(packed)
            }),
            None => None,
        };
        let frame = frame.unwrap_or_else(|| Frame::Data(pages.freeze()));
        self.stream.blocking_send(frame).map_err(|_| LinkError::Closed)
    }

    /// The target has said how pages may be compressed, if they may. What becomes of it is counted in `tally`.
    pub fn agree(&self, codec: Option<Codec>, tally: Tally) {
        self.packing.agree(codec, tally);
    }

    /// Whether pages are compressed, once that is decided.
    pub fn compression(&self) -> Option<Verdict> {
        self.packing.verdict()
    }

    /// An empty buffer for data.
    pub fn buffer(&self) -> Buffer {
        self.buffers.take()
    }

    /// How long data was held back so far, by the limit or for lack of a connection.
    pub fn held_back(&self) -> Duration {
        self.flow.held_back()
    }

    /// From now on no more than `limit` bytes of data per second are sent, or as many as can be. Messages are not held back.
    pub fn set_limit(&self, limit: Option<NonZeroU64>) {
        self.limit.send_replace(limit);
    }

    /// From now on, a connection that is lost ends the link.
    pub fn renew_no_more(&self) {
        self.may_renew.send_replace(false);
    }
}

/// What came in.
#[derive(Debug)]
pub enum Incoming<I> {
    /// A message other than a sign of life.
    Message(I),
    /// Bytes of a part.
    Data(Bytes),
    /// The same, compressed.
    Packed(Packed),
}

/// The receiving end.
#[derive(Debug)]
pub struct LinkReceiver<I> {
    stream: mpsc::Receiver<Result<Incoming<I>, LinkError>>,
    ahead: mpsc::Receiver<I>,
    /// Why nothing more comes, while something that was said before is still being handed over.
    end: Option<LinkError>,
    may_renew: watch::Sender<bool>,
}

impl<I: Message> LinkReceiver<I> {
    /// From now on, a connection that is lost ends the link.
    pub fn renew_no_more(&self) {
        self.may_renew.send_replace(false);
    }

    /// The next thing from the peer. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Where the connection is gone, silent, or carries what can't be read.
    pub async fn next(&mut self) -> Result<Incoming<I>, LinkError> {
        let item = tokio::select! {
            biased;
            Some(message) = self.ahead.recv() => return Ok(Incoming::Message(message)),
            item = self.stream.recv() => item,
        };
        match item {
            Some(Ok(item)) => return Ok(item),
            Some(Err(error)) => self.end = Some(error),
            None => {}
        }
        // What was said last may say why.
        match self.ahead.recv().await {
            Some(message) => Ok(Incoming::Message(message)),
            None => Err(self.end.take().unwrap_or(LinkError::Closed)),
        }
    }
}

/// Makes the two ends of a link of one connection, which says `O` and hears `I`. Must be called inside a tokio runtime.
pub fn open<S, O, I>(stream: S) -> (LinkSender<O>, LinkReceiver<I>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    O: Message,
    I: Message,
{
    open_lasting(stream, Never::default())
}

/// Makes the two ends of a link that goes on over the connections that `renewal` has, when the first is lost. Must be called
/// inside a tokio runtime.
pub fn open_lasting<R, O, I>(first: R::Stream, renewal: R) -> (LinkSender<O>, LinkReceiver<I>)
where
    R: Renewal,
    O: Message,
    I: Message,
{
    let (stream_out, stream_queue) = mpsc::channel(BACKLOG);
    let (ahead_out, ahead_queue) = mpsc::channel(AHEAD);
    let (limit, limits) = watch::channel(None);
    let (may_renew, renewable) = watch::channel(true);
    let flow = Arc::new(Flow::default());
    let (stream_sink, stream_in) = mpsc::channel(BACKLOG);
    let (ahead_sink, ahead_in) = mpsc::channel(AHEAD);
    let session = Session {
        renewal,
        outbox: Outbox::new(stream_queue, ahead_queue, limits, flow.clone()),
        inbox: Some(Inbox { stream: stream_sink, ahead: ahead_sink, buffers: Buffers::default() }),
        may_renew: renewable,
        counts: Counts::default(),
    };
    tokio::spawn(session.run(first));
    let sender = LinkSender {
        stream: stream_out,
        ahead: ahead_out,
        limit,
        flow,
        packing: Packing::default(),
        buffers: Buffers::default(),
        may_renew: may_renew.clone(),
        messages: PhantomData,
    };
    (sender, LinkReceiver { stream: stream_in, ahead: ahead_in, end: None, may_renew })
}

#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "session_tests.rs"]
mod session_tests;
