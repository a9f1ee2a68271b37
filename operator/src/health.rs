//! `/healthz` and `/readyz`, without TLS, for kubelet.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Why the probes can't be served.
#[derive(Debug, Error)]
pub enum HealthError {
    /// The address is not free.
    #[error("listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Serving ended.
    #[error("serve the probes")]
    Serve(#[source] std::io::Error),
}

/// Serves the probes until `stop`. `ready` says whether the API server reaches the webhooks.
///
/// # Errors
/// As [`HealthError`] says.
pub async fn serve(address: SocketAddr, ready: Arc<AtomicBool>, stop: CancellationToken) -> Result<(), HealthError> {
    let answer = move || {
        let ready = ready.load(Ordering::Relaxed);
        async move { if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE } }
    };
    let router = Router::new().route("/healthz", get(|| async { StatusCode::OK })).route("/readyz", get(answer));
    let listener = TcpListener::bind(address).await.map_err(|source| HealthError::Bind { address, source })?;
    let stopped = async move { stop.cancelled().await };
    axum::serve(listener, router).with_graceful_shutdown(stopped).await.map_err(HealthError::Serve)
}
