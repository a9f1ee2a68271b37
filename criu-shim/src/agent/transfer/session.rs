//! The connections of a link, one after the other: when one is lost, the next goes on where it ended.
//!
//! Both ends count the frames that they have taken, and keep those that the other has not confirmed. A new connection begins
//! with both counts; each end forgets what the other has, and sends the rest again. So what is above sees one stream in
//! which nothing is missing and nothing comes twice, and nobody has to remember what a round that was cut in half had brought.

use crate::agent::transfer::counts::Counts;
use crate::agent::transfer::hello::{self, Answer};
use crate::agent::transfer::incoming::{End, Inbox};
use crate::agent::transfer::link::{LinkError, SILENCE};
use crate::agent::transfer::message::Message;
use crate::agent::transfer::outgoing::Outbox;
use crate::causes::chain;
use std::future::pending;
use std::marker::PhantomData;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

/// Another connection of a link.
#[derive(Debug)]
pub struct Renewed<S> {
    /// It; the peer has shown who it is.
    pub stream: S,
    /// Frames that the peer has taken, on all connections before.
    pub peer_has: u64,
    /// The peer has still to be told how many were taken here.
    pub unanswered: bool,
}

/// Where a link gets another connection from.
pub trait Renewal: Send + 'static {
    /// What its connections are.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The connection was lost after `taken` frames of the peer were taken. None where there will be no other; it gives up by
    /// itself.
    fn renew(&mut self, taken: u64) -> impl Future<Output = Option<Renewed<Self::Stream>>> + Send;

    /// Ends when the peer comes with another connection: it has lost the one in use. Dropping the future loses nothing.
    fn replaced(&mut self) -> impl Future<Output = Renewed<Self::Stream>> + Send {
        pending()
    }
}

/// A link has one connection, and no other.
#[derive(Debug)]
pub struct Never<S>(PhantomData<fn() -> S>);

impl<S> Default for Never<S> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Renewal for Never<S> {
    type Stream = S;

    async fn renew(&mut self, _: u64) -> Option<Renewed<S>> {
        None
    }
}

/// A link that waits for its peer to connect again.
#[derive(Debug)]
pub struct Awaited<S> {
    /// Takes the connections.
    pub connections: mpsc::Receiver<Renewed<S>>,
    /// How long the next one is waited for.
    pub limit: Duration,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Renewal for Awaited<S> {
    type Stream = S;

    async fn renew(&mut self, _: u64) -> Option<Renewed<S>> {
        timeout(self.limit, self.connections.recv()).await.ok().flatten()
    }

    async fn replaced(&mut self) -> Renewed<S> {
        match self.connections.recv().await {
            Some(renewed) => renewed,
            None => pending().await,
        }
    }
}

/// A link, as its task has it.
pub(super) struct Session<R, I> {
    pub(super) renewal: R,
    pub(super) outbox: Outbox,
    /// None once the peer has said all, or nobody wants to know.
    pub(super) inbox: Option<Inbox<I>>,
    /// Whether a connection that is lost may be followed by another.
    pub(super) may_renew: watch::Receiver<bool>,
    pub(super) counts: Counts,
}

/// How a connection ended for its link.
enum After<S> {
    /// Nothing is left to say or to hear.
    Over,
    /// It was lost.
    Lost(LinkError),
    /// The peer does not keep to the protocol.
    Broken(LinkError),
    /// The peer has lost it, and there is another.
    Replaced(Renewed<S>),
}

impl<R: Renewal, I: Message> Session<R, I> {
    /// Goes on until both ends have said all, or a connection was lost and there is no other.
    pub(super) async fn run(mut self, first: R::Stream) {
        let mut after = self.use_up(first).await;
        let error = loop {
            let renewed = match after {
                After::Over => return,
                After::Broken(error) => break error,
                After::Replaced(renewed) => renewed,
                After::Lost(error) => match self.renew(&error).await {
                    Some(renewed) => renewed,
                    None => break error,
                },
            };
            after = match self.go_on(renewed).await {
                Ok(stream) => self.use_up(stream).await,
                Err(after) => after,
            };
        };
        debug!(error = chain(&error), "a link has ended");
        if let Some(inbox) = self.inbox.filter(|_| !matches!(error, LinkError::Closed)) {
            // Where nobody listens any more, nobody has to know.
            inbox.stream.send(Err(error)).await.ok();
        }
    }

    async fn use_up(&mut self, stream: R::Stream) -> After<R::Stream> {
        let (reader, writer) = tokio::io::split(stream);
        let Self { renewal, outbox, inbox, counts, .. } = self;
        let (counts, mut reads, mut writes) = (&*counts, inbox.is_some(), true);
        let kept = inbox.clone();
        let mut reading = pin!(async move {
            match kept {
                Some(inbox) => inbox.read(reader, counts).await,
                None => End::Unwanted,
            }
        });
        let mut writing = pin!(outbox.write(writer, counts));
        while reads || writes {
            tokio::select! {
                end = &mut reading, if reads => match end {
                    End::Lost(error) => return After::Lost(error),
                    End::Broken(error) => return After::Broken(error),
                    End::Finished | End::Unwanted => {
                        (reads, *inbox) = (false, None);
                        counts.turn_deaf();
                    }
                },
                written = &mut writing, if writes => match written {
                    Err(error @ LinkError::Count { .. }) => return After::Broken(error),
                    // What the peer said last may still be read. That is how a lost connection is noticed, too.
                    Err(error) => {
                        debug!(error = chain(&error), "nothing can be written any more");
                        writes = false;
                    }
                    Ok(()) => writes = false,
                },
                renewed = renewal.replaced(), if reads => return After::Replaced(renewed),
            }
        }
        After::Over
    }

    /// Another connection, if there may be one and somebody wants it.
    async fn renew(&mut self, lost: &LinkError) -> Option<Renewed<R::Stream>> {
        let inbox = self.inbox.as_ref().filter(|_| !self.outbox.has_ended() && *self.may_renew.borrow())?;
        warn!(error = chain(lost), taken = self.counts.taken(), "a connection was lost");
        let since = Instant::now();
        let renewed = tokio::select! {
            renewed = self.renewal.renew(self.counts.taken()) => renewed,
            _ = self.may_renew.wait_for(|may| !may) => None,
            () = inbox.stream.closed() => None,
        };
        self.outbox.was_held_back(since.elapsed());
        renewed
    }

    /// Agrees with the peer on where to go on.
    async fn go_on(&mut self, renewed: Renewed<R::Stream>) -> Result<R::Stream, After<R::Stream>> {
        let Renewed { mut stream, peer_has, unanswered } = renewed;
        self.outbox.confirm(peer_has).map_err(After::Broken)?;
        self.counts.confirm(peer_has);
        if unanswered {
            let answer = Answer::GoesOn { taken: self.counts.say() };
            match timeout(SILENCE, hello::answer(&mut stream, &answer)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(After::Lost(error)),
                Err(_) => return Err(After::Lost(LinkError::Silent)),
            }
        }
        info!(taken = self.counts.taken(), confirmed = peer_has, "a lost connection is made again");
        Ok(stream)
    }
}
