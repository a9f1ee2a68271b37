//! Takes connections of other agents: TLS, what they are for, and then they belong to their Migration's task.

use crate::agent::context::Context;
use crate::agent::identity::peer_names;
use crate::agent::target::event::{Arrival, Event, Return};
use crate::agent::target::registry::Registry;
use crate::agent::transfer::hello::{self, Hello};
use crate::agent::transfer::link;
use crate::agent::transfer::message::FromTarget;
use crate::agent::transfer::session::Awaited;
use crate::agent::transfer::wire;
use crate::causes::chain;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tracing::{debug, info, warn};

/// Connections that may be between "accepted" and "introduced" at once.
const MAX_STRANGERS: usize = 32;
/// How long the handshake and what is said first may take together.
const INTRODUCTION_LIMIT: Duration = Duration::from_secs(5);
/// Pause after accepting has failed, which happens when descriptors run out.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a source that was lost may take to come again: somewhat longer than it tries.
const AGAIN_LIMIT: Duration = Duration::from_secs(30);
/// Connections of one source that may wait to take the place of the one before. The last of them counts.
const AHEAD: usize = 4;

/// Why nobody can connect.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The address is taken or not this node's.
    #[error("listen at {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a stranger was sent away.
#[derive(Debug, Error)]
enum StrangerError {
    #[error("this node has no certificate yet")]
    NoIdentity,
    #[error("the TLS handshake failed")]
    Handshake(#[source] std::io::Error),
    #[error("read the names in its certificate")]
    Names(#[source] crate::agent::identity::TlsError),
    #[error("read what it comes for")]
    Link(#[from] link::LinkError),
    #[error("it did not say what it comes for")]
    NoHello,
    #[error("it took longer than {} s to introduce itself", INTRODUCTION_LIMIT.as_secs())]
    Slow,
}

/// Who has connected.
enum Introduced {
    /// A source with its first connection.
    New(Box<Arrival>),
    /// One that has lost it.
    Known(Box<Return>),
}

/// Binds the address at which other agents reach this one.
///
/// # Errors
/// [`ListenError::Bind`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError::Bind { address, source })
}

/// Takes connections for ever.
pub async fn serve(context: Arc<Context>, registry: Registry, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        // More than that many strangers at once are no agents: they are hung up on, and moves under way don't notice.
        let Ok(permit) = strangers.clone().try_acquire_owned() else { continue };
        let (context, registry) = (context.clone(), registry.clone());
        tokio::spawn(async move {
            let introduced = tokio::time::timeout(INTRODUCTION_LIMIT, introduce(&context, stream)).await;
            drop(permit);
            match introduced.unwrap_or(Err(StrangerError::Slow)) {
                Ok(Introduced::New(arrival)) => hand_over(&registry, peer, *arrival).await,
                Ok(Introduced::Known(returned)) => hand_on(&registry, peer, returned).await,
                Err(error) => debug!(%peer, error = %chain(&error), "connection refused"),
            }
        });
    }
}

async fn introduce(context: &Context, stream: TcpStream) -> Result<Introduced, StrangerError> {
    let tls = context.identity.borrow().clone().ok_or(StrangerError::NoIdentity)?;
    let mut stream = wire::accept(stream, &tls).await.map_err(StrangerError::Handshake)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let names = certificate.map_or(Ok(Vec::new()), peer_names).map_err(StrangerError::Names)?;
    match hello::hear(&mut stream).await?.ok_or(StrangerError::NoHello)? {
        Hello::Begin(preamble) => {
            let (again, connections) = mpsc::channel(AHEAD);
            let (sender, receiver) = link::open_lasting(stream, Awaited { connections, limit: AGAIN_LIMIT });
            Ok(Introduced::New(Box::new(Arrival { names, preamble, sender, receiver, again })))
        }
        Hello::GoOn(link) => Ok(Introduced::Known(Box::new(Return { names, link, stream }))),
    }
}

async fn hand_on(registry: &Registry, peer: SocketAddr, returned: Box<Return>) {
    let uid = returned.link.migration.clone();
    info!(%peer, names = ?returned.names, migration = uid, attempt = returned.link.attempt, "source connected again");
    if let Some(target) = registry.target(&uid) {
        // A task that has ended drops the connection, and the source tries again or gives up.
        target.send(Event::Again(returned)).await.ok();
    }
}

async fn hand_over(registry: &Registry, peer: SocketAddr, arrival: Arrival) {
    let uid = arrival.preamble.migration.clone();
    info!(%peer, names = ?arrival.names, migration = uid, attempt = arrival.preamble.attempt, "source connected");
    let sender = arrival.sender.clone();
    let taken = match registry.target(&uid) {
        Some(target) => target.send(Event::Source(arrival)).await.is_ok(),
        None => false,
    };
    if !taken {
        let message = "no such move is expected here".to_owned();
        // A stranger that does not listen is gone all the same.
        sender.say(&FromTarget::Refused { message }).await.ok();
    }
}
