//! The reading task of a connection: what came in goes to the queue that its order asks for.
//!
//! It reads on only while there is room in the queues, so that a peer that sends faster than its data can be kept is slowed
//! down by TCP. Only while it reads does the peer's silence count.

use crate::agent::transfer::buffers::Buffers;
use crate::agent::transfer::frame::{Frame, FrameError, read_frame};
use crate::agent::transfer::link::{Incoming, LinkError, SILENCE};
use crate::agent::transfer::message::{Message, Order};
use std::io::ErrorKind;
use tokio::io::{AsyncRead, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Reads until the stream ends, or nobody wants to know. Why it ended is the last thing in the queue of the stream, unless
/// the peer hung up.
pub(super) async fn read_all<R: AsyncRead + Unpin, I: Message>(
    reader: R,
    stream: mpsc::Sender<Result<Incoming<I>, LinkError>>,
    ahead: mpsc::Sender<I>,
) {
    let mut reader = BufReader::with_capacity(8 << 10, reader);
    let buffers = Buffers::default();
    loop {
        let read = tokio::select! {
            read = timeout(SILENCE, read_frame(&mut reader, &buffers)) => read,
            () = stream.closed() => return,
        };
        let item = match read {
            Ok(Ok(Some(Frame::Data(bytes)))) => Ok(Incoming::Data(bytes)),
            Ok(Ok(Some(Frame::Control(json)))) => match serde_json::from_slice::<I>(&json) {
                Ok(message) if message.is_alive() => continue,
                Ok(message) => match message.order() {
                    Order::InStream => Ok(Incoming::Message(message)),
                    Order::Ahead if ahead.send(message).await.is_ok() => continue,
                    Order::Ahead => return,
                },
                Err(error) => Err(LinkError::Decode(error)),
            },
            // An end inside a frame is what a peer that was killed looks like.
            Ok(Ok(None)) => return,
            Ok(Err(FrameError::Read(error))) if error.kind() == ErrorKind::UnexpectedEof => return,
            Ok(Err(error)) => Err(LinkError::Frame(error)),
            Err(_) => Err(LinkError::Silent),
        };
        let last = item.is_err();
        if stream.send(item).await.is_err() || last {
            return;
        }
    }
}
