//! The TLS connection between two agents: what its socket is set to, and the handshake.

use crate::agent::identity::Tls;
use nix::sys::socket::setsockopt;
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use rustls::pki_types::ServerName;
use std::io::Result;
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Bytes that are read from a connection at once. Larger ones were no faster.
const READ_AHEAD: usize = 64 << 10;

/// Bytes that are encrypted before they are written: those of a data frame, so that one system call takes them.
const WRITE_BEHIND: usize = 256 << 10;
/// Bytes that the kernel keeps of what it can't send yet. What is here is what a message can't overtake any more.
const UNSENT: u32 = 256 << 10;

sockopt_impl!(
    /// How many bytes may wait in a socket before it takes no more of them. Source: tcp(7), `TCP_NOTSENT_LOWAT`.
    NotSentLowWater,
    Both,
    libc::IPPROTO_TCP,
    libc::TCP_NOTSENT_LOWAT,
    u32
);

/// The source's end of a connection.
pub type SourceStream = client::TlsStream<TcpStream>;
/// The target's end of a connection.
pub type TargetStream = server::TlsStream<BufReader<TcpStream>>;

/// Makes `stream` a connection to the agent that is called `name`.
///
/// # Errors
/// Where the handshake fails, or its other end is another agent.
pub async fn connect(stream: TcpStream, tls: &Tls, name: ServerName<'static>) -> Result<SourceStream> {
    prepare(&stream)?;
    let mut stream = TlsConnector::from(tls.client()).connect(name, stream).await?;
    stream.get_mut().1.set_buffer_limit(Some(WRITE_BEHIND));
    Ok(stream)
}

/// Takes `stream` for a connection of another agent.
///
/// # Errors
/// Where the handshake fails.
pub async fn accept(stream: TcpStream, tls: &Tls) -> Result<TargetStream> {
    prepare(&stream)?;
    // The TLS library asks for 4 KiB at a time; without this each would be a system call.
    TlsAcceptor::from(tls.server()).accept(BufReader::with_capacity(READ_AHEAD, stream)).await
}

/// Sets what both ends of a connection need: small messages leave at once, and little waits in the kernel.
pub(super) fn prepare(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    Ok(setsockopt(stream, NotSentLowWater, &UNSENT)?)
}
