//! Takes connections of other agents: TLS, the preamble, and then they belong to their Migration's task.

use crate::agent::context::Context;
use crate::agent::identity::peer_names;
use crate::agent::target::event::{Arrival, Event};
use crate::agent::target::registry::Registry;
use crate::agent::transfer::link::{self, Incoming};
use crate::agent::transfer::message::{FromSource, FromTarget};
use crate::agent::transfer::wire;
use crate::causes::chain;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

/// Connections that may be between "accepted" and "preamble read" at once.
const MAX_STRANGERS: usize = 32;
/// How long handshake and preamble may take together.
const INTRODUCTION_LIMIT: Duration = Duration::from_secs(5);
/// Pause after accepting has failed, which happens when descriptors run out.
const AGAIN: Duration = Duration::from_millis(200);

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
    #[error("read its preamble")]
    Link(#[from] link::LinkError),
    #[error("its first message was no preamble")]
    NoPreamble,
    #[error("it took longer than {} s to introduce itself", INTRODUCTION_LIMIT.as_secs())]
    Slow,
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
                Ok(arrival) => hand_over(&registry, peer, arrival).await,
                Err(error) => debug!(%peer, error = %chain(&error), "connection refused"),
            }
        });
    }
}

async fn introduce(context: &Context, stream: TcpStream) -> Result<Arrival, StrangerError> {
    let tls = context.identity.borrow().clone().ok_or(StrangerError::NoIdentity)?;
    let stream = wire::accept(stream, &tls).await.map_err(StrangerError::Handshake)?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let names = certificate.map_or(Ok(Vec::new()), peer_names).map_err(StrangerError::Names)?;
    let (sender, mut receiver) = link::open::<_, FromTarget, FromSource>(stream);
    match receiver.next().await? {
        Incoming::Message(FromSource::Preamble(preamble)) => Ok(Arrival { names, preamble, sender, receiver }),
        _ => Err(StrangerError::NoPreamble),
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
