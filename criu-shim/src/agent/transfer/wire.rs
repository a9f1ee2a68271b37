//! The TLS connection between two agents: what its socket is set to, and the handshake.

use crate::agent::identity::Tls;
use rustls::pki_types::ServerName;
use std::io::Result;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Bytes that are read from a connection at once. Larger ones were no faster.
const READ_AHEAD: usize = 64 << 10;

/// The source's end of a connection.
pub type SourceStream = client::TlsStream<TcpStream>;
/// The target's end of a connection.
pub type TargetStream = server::TlsStream<BufReader<TcpStream>>;

/// Makes `stream` a connection to the agent that is called `name`.
///
/// # Errors
/// Where the handshake fails, or its other end is another agent.
pub async fn connect(stream: TcpStream, tls: &Tls, name: ServerName<'static>) -> Result<SourceStream> {
    stream.set_nodelay(true)?;
    TlsConnector::from(tls.client()).connect(name, stream).await
}

/// Takes `stream` for a connection of another agent.
///
/// # Errors
/// Where the handshake fails.
pub async fn accept(stream: TcpStream, tls: &Tls) -> Result<TargetStream> {
    stream.set_nodelay(true)?;
    // The TLS library asks for 4 KiB at a time; without this each would be a system call.
    TlsAcceptor::from(tls.server()).accept(BufReader::with_capacity(READ_AHEAD, stream)).await
}
