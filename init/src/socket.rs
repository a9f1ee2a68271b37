//! The socket of sd_notify(3).
//!
//! It has a path, in the directory that only this container has, and no abstract name: those belong to the network
//! namespace, so that every container of the pod could send to it and fill its queue.

mod receive;

use receive::{Datagram, receive};

use nix::sys::socket::{setsockopt, sockopt};
use std::fs::Permissions;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Its name in the directory.
const NAME: &str = "notify";

/// Why there is no socket.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    /// What an earlier init left can't be removed.
    #[error("remove the socket {path:?} of an earlier start")]
    Remove { path: PathBuf, source: std::io::Error },
    /// It can't be made.
    #[error("bind the socket {path:?}")]
    Bind { path: PathBuf, source: std::io::Error },
    /// Its mode or options can't be set.
    #[error("set up the socket {path:?}")]
    SetUp { path: PathBuf, source: std::io::Error },
}

/// The socket.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UnixDatagram,
    path: PathBuf,
}

/// A message, and which process sent it according to the kernel.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) sender: i32,
    pub(crate) text: Vec<u8>,
    /// How many descriptors came with it. They are closed: for BARRIER=1 that is the answer, and nothing else may bring any.
    pub(crate) descriptors: usize,
}

impl Socket {
    /// Makes it in `directory`.
    pub(crate) fn bind(directory: &Path) -> Result<Self, SocketError> {
        let path = directory.join(NAME);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(SocketError::Remove { path, source }),
            _ => {}
        }
        let socket = match UnixDatagram::bind(&path) {
            Ok(socket) => socket,
            Err(source) => return Err(SocketError::Bind { path, source }),
        };
        let set_up = || {
            // An application may run under more users than one. Whose word counts is decided by process, not by user.
            std::fs::set_permissions(&path, Permissions::from_mode(0o777))?;
            setsockopt(&socket, sockopt::PassCred, &true)?;
            socket.set_nonblocking(true)
        };
        match set_up() {
            Ok(()) => Ok(Self { socket, path }),
            Err(source) => Err(SocketError::SetUp { path, source }),
        }
    }

    /// What NOTIFY_SOCKET is set to.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next message; `None` where none is waiting. Descriptors in it are closed when this returns.
    pub(crate) fn next(&self) -> std::io::Result<Option<Message>> {
        match receive(self.socket.as_fd()) {
            Ok(Datagram { sender, text, descriptors }) => {
                Ok(Some(Message { sender: sender.unwrap_or(0), text, descriptors: descriptors.len() }))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
