//! `/metrics` over HTTP, in the OpenMetrics text format.
//!
//! Anybody who reaches the address may read it, so it is bounded: few connections at a time, each of them short, and no request
//! has a body that is read. Nothing of the agent's work waits for it.

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

/// The most connections at a time: a few Prometheus servers, and a person.
const CONNECTIONS: usize = 16;
/// How long one may take. There is one request a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause before an address that is taken is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// Pause after a failure to accept: it is not the connection's fault but a shortage of the process's.
const SHORTAGE: Duration = Duration::from_millis(100);
/// What the answer is.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves `registry` at `address` for ever; without one, nothing.
pub async fn serve(address: Option<SocketAddr>, registry: Arc<Registry>) {
    let Some(address) = address else { return std::future::pending().await };
    let listener = bind(address).await;
    info!(%address, "metrics are served");
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        match (listener.accept().await, room.clone().try_acquire_owned()) {
            (Ok((stream, _)), Ok(place)) => {
                let registry = registry.clone();
                tokio::spawn(async move {
                    if timeout(PATIENCE, connection(stream, registry)).await.is_err() {
                        debug!("a request for metrics took too long");
                    }
                    drop(place);
                });
            }
            (Ok((_, peer)), Err(_)) => debug!(%peer, "too many connections: one is closed"),
            (Err(error), _) => {
                warn!(%error, "accepting a connection");
                sleep(SHORTAGE).await;
            }
        }
    }
}

/// The address is the node's, and another program may have it: that is said, and nothing else stops for it.
async fn bind(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                warn!(%address, %error, "metrics can't be served; trying again in {} s", RETRY.as_secs());
                sleep(RETRY).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, registry: Arc<Registry>) {
    let service = service_fn(move |request| {
        let answer = answer(&request, &registry);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "a connection ended badly");
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<String> {
    let mut text = String::new();
    let status = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match encode(&mut text, registry) {
            Ok(()) => StatusCode::OK,
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
        },
        (_, "/metrics") => StatusCode::METHOD_NOT_ALLOWED,
        _ => StatusCode::NOT_FOUND,
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// An address that was free a moment ago.
    async fn free() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(HERE).await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn registry() -> Arc<Registry> {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        counter.inc_by(3);
        registry.register("tideover_crashes", "Crashes", counter);
        Arc::new(registry)
    }

    /// The whole answer to `request`, once somebody listens.
    async fn asked(address: SocketAddr, request: &str) -> String {
        let mut stream = loop {
            match TcpStream::connect(address).await {
                Ok(stream) => break stream,
                Err(_) => sleep(Duration::from_millis(10)).await,
            }
        };
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn what_is_registered_is_served_and_nothing_else() {
        let (listener, address) = free().await;
        drop(listener);
        let serving = tokio::spawn(serve(Some(address), registry()));
        let metrics = asked(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains("application/openmetrics-text"), "{metrics}");
        assert!(metrics.contains("tideover_crashes_total 3\n") && metrics.ends_with("# EOF\n"), "{metrics}");
        assert!(asked(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(asked(address, "DELETE /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_taken_is_waited_for() {
        let (taken, address) = free().await;
        let serving = tokio::spawn(serve(Some(address), registry()));
        // The clock runs only while nobody has anything to do: by then the address was tried.
        sleep(RETRY / 2).await;
        drop(taken);
        assert!(asked(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("tideover_crashes_total"));
        serving.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_connects_keeps_nobody_out_for_long() {
        let (listener, address) = free().await;
        drop(listener);
        let serving = tokio::spawn(serve(Some(address), registry()));
        let answer = asked(address, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 404"));
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS {
            idle.push(TcpStream::connect(address).await.unwrap());
        }
        sleep(PATIENCE + SHORTAGE).await;
        assert!(asked(address, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.contains("tideover_crashes_total"));
        serving.abort();
    }
}
