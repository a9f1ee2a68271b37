//! TLS and HTTP around the webhooks, with bounds on how many connections there are and how long they may take.

use crate::certificates::ServingCertificate;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use std::fmt::{self, Debug, Formatter};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// The most connections at a time; API servers keep a few open each.
const CONNECTIONS: usize = 256;

/// How long a handshake, or the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long connections are accepted after the process was told to stop: until every API server knows that this
/// replica is no endpoint any more. A connection refused is a pod not created.
const LINGER: Duration = Duration::from_secs(5);

/// How long connections get to end after that.
const FAREWELL: Duration = Duration::from_secs(10);

/// Pause after a failure to accept: it is not the connection's fault but a shortage of the process's.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Why the webhooks can't be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is not free.
    #[error("listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// TLS can't be set up.
    #[error("set TLS up")]
    Tls(#[source] rustls::Error),
}

/// Where the webhooks are to be served: connections queue here from the moment it exists, so a replica that has one may
/// call itself ready.
pub struct Endpoint {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Debug for Endpoint {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Endpoint").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Takes the address. It may be taken for a while: a predecessor in the same pod that nobody waited for still
    /// lingers.
    ///
    /// # Errors
    /// As [`ServeError`] says.
    pub async fn open(address: SocketAddr, certificate: Arc<ServingCertificate>) -> Result<Self, ServeError> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(ServeError::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(certificate);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Bind { address, source })?;
        Ok(Self { listener, acceptor })
    }
}

/// Serves `router` until a little after `stop`, then lets what is under way end. A connection that fails is only its
/// own failure.
pub async fn serve(endpoint: Endpoint, router: Router, stop: CancellationToken) {
    let Endpoint { listener, acceptor } = endpoint;
    info!("webhooks are served");
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    let closing = CancellationToken::new();
    let mut lingered = pin!(async {
        stop.cancelled().await;
        sleep(LINGER).await;
    });
    loop {
        let accepted = tokio::select! {
            () = lingered.as_mut() => break,
            accepted = listener.accept() => accepted,
        };
        match (accepted, room.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let (acceptor, router, closing) = (acceptor.clone(), router.clone(), closing.clone());
                connections.spawn(async move {
                    connection(stream, acceptor, router, closing).await;
                    drop(place);
                });
            }
            (Ok((_, peer)), Err(_)) => warn!(%peer, "too many connections: one is closed"),
            (Err(error), _) => {
                warn!(%error, "accepting a connection");
                sleep(SHORTAGE).await;
            }
        }
    }
    closing.cancel();
    connections.close();
    if timeout(FAREWELL, connections.wait()).await.is_err() {
        warn!("connections were cut off");
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router, closing: CancellationToken) {
    let stream = match timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "a TLS handshake failed"),
        Err(_) => return debug!("a TLS handshake took too long"),
    };
    let service = TowerToHyperService::new(router);
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended badly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::a_serving_certificate;

    #[tokio::test]
    async fn an_address_that_is_taken_is_an_error_and_not_a_replica_that_nobody_reaches() {
        let certificate = Arc::new(a_serving_certificate());
        let first = Endpoint::open(([127, 0, 0, 1], 0).into(), certificate.clone()).await.expect("a free port");
        let address = first.listener.local_addr().expect("an address");
        let second = Endpoint::open(address, certificate.clone()).await;
        assert!(matches!(second, Err(ServeError::Bind { .. })));
        drop(first);
        Endpoint::open(address, certificate).await.expect("the port is free again");
    }
}
