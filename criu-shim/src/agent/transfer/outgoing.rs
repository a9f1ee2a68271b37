//! The writing end of a connection: which frame goes next.
//!
//! A message that goes ahead of the stream waits for the frame that is being written, and for no other: it overtakes what is
//! queued, and data that is held back by the limit. The socket keeps little that is not on its way ([`wire`](super::wire)).
//! What the peer has not confirmed is kept, and goes first on the next connection.

use crate::agent::transfer::counts::Counts;
use crate::agent::transfer::flow::Flow;
use crate::agent::transfer::frame::{Frame, FrameError, Packed, write_frame};
use crate::agent::transfer::link::{HEARTBEAT, LinkError};
use crate::agent::transfer::rate::Bucket;
use bytes::Bytes;
use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt, BufWriter};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Most bytes that may be on their way, or with a peer that has not said so yet: what a link of 10 Gbit/s with a round trip of 6 ms
/// needs to be full. What is kept for another connection is as much.
pub(super) const WINDOW: usize = 8 << 20;
/// Most frames of them. CRIU's images are dozens of small ones, and cross in a freeze.
const MOST: usize = 1024;

/// What waits for the wire, and what may have to go again, whichever connection it goes by.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Frames of the stream of parts, in their order.
    stream: mpsc::Receiver<Frame>,
    /// Messages that go ahead of them, in theirs.
    ahead: mpsc::Receiver<Bytes>,
    /// Bytes of data per second, if there is a limit.
    limits: watch::Receiver<Option<NonZeroU64>>,
    /// What was written, and for how long data was held back.
    flow: Arc<Flow>,
    bucket: Option<Bucket>,
    /// Data that the limit holds back, and since when.
    held: Option<(Frame, Instant)>,
    /// What was written, and the peer has not confirmed: the oldest first.
    unconfirmed: VecDeque<Frame>,
    /// Bytes of them.
    unconfirmed_bytes: usize,
    /// How many frames were written before them.
    confirmed: u64,
    /// Nobody can queue anything any more.
    ended: bool,
    /// When a frame was written last.
    spoke: Instant,
}

impl Outbox {
    /// Of these queues, with nothing written yet.
    pub(super) fn new(
        stream: mpsc::Receiver<Frame>,
        ahead: mpsc::Receiver<Bytes>,
        limits: watch::Receiver<Option<NonZeroU64>>,
        flow: Arc<Flow>,
    ) -> Self {
        Self {
            stream,
            ahead,
            limits,
            flow,
            bucket: None,
            held: None,
            unconfirmed: VecDeque::new(),
            unconfirmed_bytes: 0,
            confirmed: 0,
            ended: false,
            spoke: Instant::now(),
        }
    }

    /// The peer has taken `count` frames in all.
    ///
    /// # Errors
    /// [`LinkError::Count`] where it can't have.
    pub(super) fn confirm(&mut self, count: u64) -> Result<(), LinkError> {
        let sent = self.confirmed + self.unconfirmed.len() as u64;
        if count < self.confirmed || count > sent {
            return Err(LinkError::Count { said: count, sent, confirmed: self.confirmed });
        }
        // No more than are in it.
        let confirmed = self.unconfirmed.drain(..(count - self.confirmed) as usize);
        self.unconfirmed_bytes -= confirmed.map(|frame| length(&frame)).sum::<usize>();
        self.confirmed = count;
        Ok(())
    }

    /// Whether all was queued that ever will be.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// For `time` there was no connection.
    pub(super) fn was_held_back(&self, time: Duration) {
        self.flow.was_held_back(time);
    }

    /// Writes what the peer has not confirmed, and then what is queued, until nobody can queue anything any more; then closes the
    /// connection. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Where the connection fails, or the peer confirms what it can't have.
    pub(super) async fn write<W: AsyncWrite + Unpin>(&mut self, writer: W, counts: &Counts) -> Result<(), LinkError> {
        // Small messages that follow each other leave together; a frame of data passes by the buffer.
        let mut writer = BufWriter::with_capacity(8 << 10, writer);
        for frame in &self.unconfirmed {
            write_frame(&mut writer, frame).await?;
        }
        writer.flush().await.map_err(FrameError::Write)?;
        while let Some(frame) = self.next(counts).await? {
            self.spoke = Instant::now();
            match &frame {
                Frame::Taken(_) | Frame::End => {}
                _ if counts.is_deaf() => {}
                _ => {
                    self.unconfirmed_bytes += length(&frame);
                    self.unconfirmed.push_back(frame.clone());
                }
            }
            write_frame(&mut writer, &frame).await?;
            let waits = self.stream.is_empty() || !self.has_room();
            if waits && self.ahead.is_empty() || self.bucket.is_some() {
                writer.flush().await.map_err(FrameError::Write)?;
            }
            if let Some(bytes) = data(&frame) {
                self.flow.wrote(bytes, self.spoke.elapsed());
            }
        }
        while let Some(message) = self.ahead.recv().await {
            write_frame(&mut writer, &Frame::Control(message)).await?;
        }
        write_frame(&mut writer, &Frame::End).await?;
        Ok(writer.shutdown().await.map_err(FrameError::Write)?)
    }

    fn has_room(&self) -> bool {
        self.unconfirmed_bytes < WINDOW && self.unconfirmed.len() < MOST
    }

    /// What goes next. None where nobody can queue anything any more.
    async fn next(&mut self, counts: &Counts) -> Result<Option<Frame>, LinkError> {
        loop {
            if counts.is_deaf() {
                self.unconfirmed.clear();
                self.unconfirmed_bytes = 0;
            } else {
                self.confirm(counts.confirmed())?;
            }
            if counts.has_to_say() {
                return Ok(Some(Frame::Taken(counts.say())));
            }
            let due = self.bucket.as_ref().map_or_else(Instant::now, Bucket::due);
            let has_room = self.has_room();
            let frame = tokio::select! {
                biased;
                Some(message) = self.ahead.recv() => Frame::Control(message),
                () = counts.news() => continue,
                Ok(()) = self.limits.changed() => {
                    let limit = *self.limits.borrow_and_update();
                    self.bucket = limit.map(|limit| Bucket::new(limit, Instant::now()));
                    continue;
                }
                () = sleep_until(due), if self.held.is_some() && has_room => match self.held.take() {
                    Some((frame, since)) => {
                        self.flow.was_held_back(since.elapsed());
                        frame
                    }
                    None => continue,
                },
                frame = self.stream.recv(), if self.held.is_none() && has_room => match frame {
                    Some(frame) if self.bucket.is_some() && data(&frame).is_some() => {
                        self.held = Some((frame, Instant::now()));
                        continue;
                    }
                    Some(frame) => frame,
                    None => {
                        self.ended = true;
                        return Ok(None);
                    }
                },
                // Not from now on: what is heard meanwhile does not make this end any less silent.
                () = sleep_until(self.spoke + HEARTBEAT) => Frame::Taken(counts.say()),
            };
            if let (Some(bytes), Some(bucket)) = (data(&frame), &mut self.bucket) {
                bucket.take(bytes, Instant::now());
            }
            return Ok(Some(frame));
        }
    }
}

/// Bytes that a frame keeps.
fn length(frame: &Frame) -> usize {
    match frame {
        Frame::Control(bytes) => bytes.len(),
        _ => data(frame).unwrap_or_default(),
    }
}

/// Bytes of a part that a frame has, as they cross.
fn data(frame: &Frame) -> Option<usize> {
    match frame {
        Frame::Data(bytes) | Frame::Packed(Packed { block: bytes, .. }) => Some(bytes.len()),
        Frame::Control(_) | Frame::Taken(_) | Frame::End => None,
    }
}
