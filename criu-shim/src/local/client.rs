//! The blocking client of shim and relay. Standard library only: it is in the way of every container start.

use super::line::{LineError, MAX_LINE, decode, encode};
use super::message::{Hello, Role};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long a write may take before the agent counts as gone.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// What went wrong between a client and the agent.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody listens, or the socket is not there.
    #[error("connect to the agent")]
    Connect(#[source] std::io::Error),
    /// The message could not be sent.
    #[error("send to the agent")]
    Send(#[source] std::io::Error),
    /// The answer could not be received.
    #[error("receive from the agent")]
    Receive(#[source] std::io::Error),
    /// The agent closed the connection.
    #[error("the agent closed the connection")]
    Closed,
    /// No line within the time given.
    #[error("the agent was silent for {0:?}")]
    Silent(Duration),
    /// What came is no message.
    #[error("talk to the agent")]
    Line(#[from] LineError),
}

/// One connection to the agent.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    pending: Vec<u8>,
}

impl Client {
    /// Connects and says hello.
    ///
    /// # Errors
    /// [`ClientError::Connect`] where nobody listens: the agent is not running, or not yet.
    pub fn connect(socket: &Path, role: Role) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(socket).map_err(ClientError::Connect)?;
        stream.set_write_timeout(Some(WRITE_LIMIT)).map_err(ClientError::Connect)?;
        let mut client = Self { stream, pending: Vec::new() };
        client.send(&Hello::new(role))?;
        Ok(client)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`ClientError::Send`]; the connection is of no further use then.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ClientError> {
        self.stream.write_all(&encode(message)?).map_err(ClientError::Send)
    }

    /// Receives one message, waiting no longer than `limit` (for ever with none).
    ///
    /// # Errors
    /// [`ClientError::Silent`] leaves the connection usable; every other error does not.
    pub fn receive<T: DeserializeOwned>(&mut self, limit: Option<Duration>) -> Result<T, ClientError> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(decode(&line)?);
            }
            if self.pending.len() > MAX_LINE {
                return Err(LineError::TooLong.into());
            }
            self.fill(limit.unwrap_or_default(), deadline)?;
        }
    }

    fn fill(&mut self, limit: Duration, deadline: Option<Instant>) -> Result<(), ClientError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ClientError::Silent(limit));
        }
        self.stream.set_read_timeout(left).map_err(ClientError::Receive)?;
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ClientError::Closed),
            Ok(length) => {
                self.pending.extend_from_slice(&chunk[..length]);
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(ClientError::Silent(limit))
            }
            Err(error) => Err(ClientError::Receive(error)),
        }
    }

    /// True if a whole message has been received already, so that [`Self::receive`] will not block.
    pub fn has_message(&self) -> bool {
        self.pending.contains(&b'\n')
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
