//! A second holder of every userfaultfd.
//!
//! Where the last descriptor of a userfaultfd is closed, the kernel shows zeros in place of what is missing, and the process
//! can't know. The daemon may be killed at any moment; so a process beside it, which does nothing else, holds what it
//! holds. After the daemon's death that goes on until the processes are gone: they stand still at the first page that they
//! lack, and the status says that they must be ended.

use super::status::Status;
use super::userfault::Userfault;
use nix::unistd::{ForkResult, fork};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// How often it is looked whether the processes are gone.
const PAUSE: Duration = Duration::from_millis(50);
/// What the status says after the daemon's death.
const KILLED: &str = "the page daemon was killed, and a process lacks memory";

const HOLD: u8 = b'h';
const LET_GO: u8 = b'l';
const END: u8 = b'e';
/// Kind, and number of the userfaultfd.
const LENGTH: usize = 9;

/// The guard, as the daemon sees it.
#[derive(Debug)]
pub(super) struct Guard {
    socket: OwnedFd,
}

impl Guard {
    /// Starts it. The caller has one thread.
    ///
    /// # Errors
    /// Where it can't be started.
    pub(super) fn start(work: &Path) -> Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // SAFETY: this program has one thread here, so the child may do anything.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => Ok(Self { socket: ours }),
            ForkResult::Child => {
                drop(ours);
                watch(&theirs, work);
                std::process::exit(0)
            }
        }
    }

    /// Has `userfault` held too. After success the daemon's death shows nobody zeros.
    ///
    /// # Errors
    /// Where the guard is gone.
    pub(super) fn hold(&self, number: u64, userfault: BorrowedFd<'_>) -> Result<()> {
        let descriptors = [userfault];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg(&self.socket, &[IoSlice::new(&message(HOLD, number))], &mut control, SendFlags::NOSIGNAL)?;
        self.acknowledged()
    }

    /// Has it let go of one behind which nothing is missing. The daemon's own is closed after that.
    ///
    /// # Errors
    /// Where the guard is gone.
    pub(super) fn let_go(&self, number: u64) -> Result<()> {
        send(&self.socket, &message(LET_GO, number), SendFlags::NOSIGNAL)?;
        self.acknowledged()
    }

    /// Nothing is missing anywhere.
    ///
    /// # Errors
    /// Where the guard is gone.
    pub(super) fn end(&self) -> Result<()> {
        send(&self.socket, &message(END, 0), SendFlags::NOSIGNAL)?;
        self.acknowledged()
    }

    fn acknowledged(&self) -> Result<()> {
        let mut answer = [0; 1];
        let (_, length) = recv(&self.socket, &mut answer, RecvFlags::empty())?;
        if length == 1 { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }
}

fn message(kind: u8, number: u64) -> [u8; LENGTH] {
    let mut message = [kind; LENGTH];
    message[1..].copy_from_slice(&number.to_ne_bytes());
    message
}

/// The guard's whole life. No error ends it while it holds anything: that would show zeros to somebody.
fn watch(socket: &OwnedFd, work: &Path) {
    let mut held = BTreeMap::new();
    while let Ok(Some(done)) = take(socket, &mut held) {
        if done {
            return;
        }
    }
    let mut said = false;
    while held.values().any(|userfault: &Userfault| !userfault.is_gone()) {
        if !said && !matches!(Status::read(work), Ok(Some(Status::Failed(_)))) {
            // A disk that is full now may not be later.
            said = Status::Failed(KILLED.to_owned()).write(work).is_ok();
        }
        std::thread::sleep(PAUSE);
    }
}

/// Takes one wish of the daemon's. None where the daemon is gone; true where it was the last.
fn take(socket: &OwnedFd, held: &mut BTreeMap<u64, Userfault>) -> Result<Option<bool>> {
    let mut bytes = [0; LENGTH];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received?,
        }
    };
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let [kind, number @ ..] = bytes;
    let number = u64::from_ne_bytes(number);
    match (received.bytes, kind, descriptor) {
        (0, ..) => return Ok(None),
        (LENGTH, HOLD, Some(descriptor)) => {
            held.insert(number, Userfault::new(descriptor)?);
        }
        (LENGTH, LET_GO, None) => {
            held.remove(&number);
        }
        (LENGTH, END, None) => {}
        _ => return Err(Error::from(ErrorKind::InvalidData)),
    }
    send(socket, b"+", SendFlags::NOSIGNAL)?;
    Ok(Some(kind == END))
}
