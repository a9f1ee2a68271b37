//! The connection with CRIU.
//!
//! The protocol of `criu lazy-pages`, as CRIU 4.2 speaks it (`criu/uffd.c`: `send_uffd`, `ud_open`,
//! `lazy_sk_read_event`), over one stream connection for all processes of a restore. For each process that is alive: its
//! pid, an `int`, then one byte with the userfaultfd by SCM_RIGHTS. For each zombie: its pid, negative, and nothing
//! else. When every process is about to run: [`FINISHED`]. CRIU counts the processes to tell that number from a pid;
//! here it is enough that no pid is as large. A pid is the one in the images, that of the restored PID namespace
//! (`vpid(current)`), whatever namespace CRIU itself runs in.

use super::error::DaemonError;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::io::{self, ErrorKind, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Name of the socket in the work directory: CRIU connects to it there.
pub const SOCKET: &str = "lazy-pages.socket";

/// `LAZY_PAGES_RESTORE_FINISHED`. A pid is below 2^22.
const FINISHED: i32 = 0x5253_5446;

/// What CRIU said.
#[derive(Debug)]
pub(super) enum Heard {
    /// A process is being restored; its pid is that of the images.
    Process { pid: i32, userfault: OwnedFd },
    /// A process is dead already and has no memory.
    Zombie { pid: i32 },
    /// Everything is restored. CRIU lets the processes run now.
    Finished,
    /// The connection is over.
    Closed,
}

/// Makes the socket, in the place of one that a former daemon left behind.
///
/// # Errors
/// [`DaemonError::Listen`].
pub(super) fn listen(work: &Path) -> Result<UnixListener, DaemonError> {
    let path = work.join(SOCKET);
    let listen = || {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // A work directory may have a longer name than a socket address has room for.
        let directory = std::fs::File::open(work)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| DaemonError::Listen { path: path.clone(), source })
}

/// The connection of one restore.
#[derive(Debug)]
pub(super) struct Link {
    stream: UnixStream,
    number: [u8; 4],
    /// How many bytes of `number` are there; with all four, a userfaultfd comes next.
    filled: usize,
}

impl Link {
    /// Takes CRIU's connection.
    ///
    /// # Errors
    /// [`DaemonError::Accept`].
    pub(super) fn accept(listener: &UnixListener) -> Result<Self, DaemonError> {
        let (stream, _) = listener.accept().map_err(DaemonError::Accept)?;
        stream.set_nonblocking(true).map_err(DaemonError::Accept)?;
        Ok(Self { stream, number: [0; 4], filled: 0 })
    }

    /// The next thing that CRIU said in full; nothing if there is none yet.
    ///
    /// # Errors
    /// [`DaemonError::Receive`], [`DaemonError::NoUserfault`].
    pub(super) fn hear(&mut self) -> Result<Option<Heard>, DaemonError> {
        while self.filled < self.number.len() {
            match self.stream.read(&mut self.number[self.filled..]) {
                Ok(0) => return Ok(Some(Heard::Closed)),
                Ok(length) => self.filled += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // CRIU was ended with something unread.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Some(Heard::Closed)),
                Err(error) => return Err(DaemonError::Receive(error)),
            }
        }
        let number = i32::from_ne_bytes(self.number);
        let heard = match number {
            FINISHED => Heard::Finished,
            ..0 => Heard::Zombie { pid: number.wrapping_neg() },
            pid => match self.receive_descriptor() {
                Ok(Some(userfault)) => Heard::Process { pid, userfault },
                Ok(None) => return Err(DaemonError::NoUserfault { pid }),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(DaemonError::Receive(error)),
            },
        };
        self.filled = 0;
        Ok(Some(heard))
    }

    fn receive_descriptor(&self) -> io::Result<Option<OwnedFd>> {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(&self.stream, &mut [IoSliceMut::new(&mut byte)], &mut control, flags)?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let descriptor = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        Ok(descriptor)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
