//! What the probe says of itself to its supervisor, by the protocol of sd_notify(3).

use std::io;
use std::os::unix::net::UnixDatagram;

/// Names the socket of the supervisor: a path, as `tideover-init` gives it.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Sends one message.
pub(crate) fn say(message: &str) -> io::Result<()> {
    let path = std::env::var_os(SOCKET).ok_or_else(|| io::Error::other(format!("nobody listens: no {SOCKET}")))?;
    UnixDatagram::unbound()?.send_to(message.as_bytes(), path).map(drop)
}
