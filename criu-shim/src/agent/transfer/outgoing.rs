//! The writing task of a connection: which frame goes next.
//!
//! A message that goes ahead of the stream waits for the frame that is being written, and for no other: it overtakes what is
//! queued, and data that is held back by the limit. The socket keeps little that is not on its way ([`wire`](super::wire)).

use crate::agent::transfer::frame::{Frame, FrameError, write_frame};
use crate::agent::transfer::link::HEARTBEAT;
use crate::agent::transfer::message::Message;
use crate::agent::transfer::rate::Bucket;
use bytes::Bytes;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// What waits for the wire.
pub(super) struct Queues {
    /// Frames of the stream of parts, in their order.
    pub(super) stream: mpsc::Receiver<Frame>,
    /// Messages that go ahead of them, in theirs.
    pub(super) ahead: mpsc::Receiver<Bytes>,
    /// Bytes of data per second, if there is a limit.
    pub(super) limits: watch::Receiver<Option<NonZeroU64>>,
    /// Nanoseconds for which it has held data back.
    pub(super) held_back: Arc<AtomicU64>,
}

/// Writes what is queued until nobody can queue anything any more, then closes the stream.
///
/// # Errors
/// Where the stream fails.
pub(super) async fn write_all<O: Message, W: AsyncWrite + Unpin>(writer: W, queues: Queues) -> Result<(), FrameError> {
    let Queues { mut stream, mut ahead, mut limits, held_back } = queues;
    // Small messages that follow each other leave together; a frame of data passes by the buffer.
    let mut writer = BufWriter::with_capacity(8 << 10, writer);
    let alive = Frame::Control(serde_json::to_vec(&O::alive()).unwrap_or_default().into());
    let mut bucket: Option<Bucket> = None;
    // Data that the limit holds back, and since when.
    let mut held: Option<(Frame, Instant)> = None;
    loop {
        let due = bucket.as_ref().map_or_else(Instant::now, Bucket::due);
        let frame = tokio::select! {
            biased;
            Some(message) = ahead.recv() => Frame::Control(message),
            Ok(()) = limits.changed() => {
                let limit = *limits.borrow_and_update();
                bucket = limit.map(|limit| Bucket::new(limit, Instant::now()));
                continue;
            }
            () = sleep_until(due), if held.is_some() => match held.take() {
                Some((frame, since)) => {
                    let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    held_back.fetch_add(nanos, Ordering::Relaxed);
                    frame
                }
                None => continue,
            },
            frame = stream.recv(), if held.is_none() => match frame {
                Some(frame @ Frame::Data(_)) if bucket.is_some() => {
                    held = Some((frame, Instant::now()));
                    continue;
                }
                Some(frame) => frame,
                None => break,
            },
            () = sleep(HEARTBEAT) => alive.clone(),
        };
        if let (Frame::Data(bytes), Some(bucket)) = (&frame, &mut bucket) {
            bucket.take(bytes.len(), Instant::now());
        }
        write_frame(&mut writer, &frame).await?;
        if stream.is_empty() && ahead.is_empty() || bucket.is_some() {
            writer.flush().await.map_err(FrameError::Write)?;
        }
    }
    while let Some(message) = ahead.recv().await {
        write_frame(&mut writer, &Frame::Control(message)).await?;
    }
    writer.shutdown().await.map_err(FrameError::Write)
}
