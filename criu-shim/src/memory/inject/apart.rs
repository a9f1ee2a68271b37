//! The process that traces: starting it, telling it what to do, and its own life.
//!
//! Its standard input is one end of a socket pair. A message there is a [`Work`] in JSON, and the answer `null` or an [`AttachError`] in
//! JSON, with the descriptor if there is one. It ends when the other end is gone.

use super::{Work, carry_out};
use crate::memory::{AttachError, Range};
use nix::sys::signal::{SigSet, Signal};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::ffi::CStr;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Longest message, bytes. An answer may quote a line of `/proc/PID/maps`, or the whole of `/proc/PID/status`.
const LONGEST: usize = 64 << 10;
/// What `ps` calls the process that traces.
const NAME: &CStr = c"tideover-inject";

/// Who makes processes run system calls.
#[derive(Debug)]
pub enum Injector {
    /// The calling process, with which the process that it works on may be damaged.
    Here,
    /// A process of its own, started with the first work.
    Apart {
        /// The program and its arguments: it calls [`serve`].
        command: (PathBuf, Vec<String>),
        /// The process, if it runs.
        running: Mutex<Option<Running>>,
    },
}

/// A process that traces for this one. Dropped, it is waited for, which it ends because of.
#[derive(Debug)]
pub struct Running {
    /// None once it is to end.
    socket: Option<OwnedFd>,
    child: Child,
}

impl Injector {
    /// One that has a process of its own for it, of this program.
    pub fn apart(program: PathBuf, arguments: Vec<String>) -> Self {
        Self::Apart { command: (program, arguments), running: Mutex::new(None) }
    }

    /// A userfaultfd of process `pid`'s address space. The process has not got it any more.
    ///
    /// # Errors
    /// Any of [`AttachError`]; the process runs on as before.
    pub fn userfaultfd(&self, pid: i32) -> std::result::Result<OwnedFd, AttachError> {
        let none = || Error::new(ErrorKind::InvalidData, "no descriptor came");
        self.have(Work::Userfaultfd { pid })?.ok_or_else(|| AttachError::Tracer { pid, source: none() })
    }

    /// Makes process `pid` unmap `ranges` and close `descriptors`, none of which is its own.
    ///
    /// # Errors
    /// Any of [`AttachError`]; the process runs on as before, with what it has not given back yet.
    pub fn give_back(
        &self,
        pid: i32,
        ranges: Vec<Range>,
        descriptors: Vec<u64>,
    ) -> std::result::Result<(), AttachError> {
        self.have(Work::GiveBack { pid, ranges, descriptors }).map(|_| ())
    }

    fn have(&self, work: Work) -> std::result::Result<Option<OwnedFd>, AttachError> {
        let Self::Apart { command, running } = self else { return carry_out(work) };
        let pid = work.pid();
        // What a thread that has panicked amid an exchange leaves in there is an end of a socket like any other.
        let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let exchanged = Running::ask(&mut running, command, &work);
        exchanged.map_err(|source| AttachError::Tracer { pid, source })?
    }
}

impl Running {
    /// Has `running` do the work, or another one where there is none that hears of it.
    fn ask(
        running: &mut Option<Self>,
        command: &(PathBuf, Vec<String>),
        work: &Work,
    ) -> Result<std::result::Result<Option<OwnedFd>, AttachError>> {
        let message = serde_json::to_vec(work)?;
        // Of one that was killed meanwhile nothing has begun.
        let told = running.take().filter(|process| process.tell(&message).is_ok());
        let process = match told {
            Some(process) => process,
            None => {
                let process = Self::start(command)?;
                process.tell(&message)?;
                process
            }
        };
        let answer = process.hear()?;
        *running = Some(process);
        Ok(answer)
    }

    fn start((program, arguments): &(PathBuf, Vec<String>)) -> Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::from(theirs)).stdout(Stdio::null()).process_group(0);
        let child = command.spawn()?;
        Ok(Self { socket: Some(ours), child })
    }

    fn socket(&self) -> Result<BorrowedFd<'_>> {
        Ok(self.socket.as_ref().ok_or(ErrorKind::NotConnected)?.as_fd())
    }

    fn tell(&self, message: &[u8]) -> Result<()> {
        send(self.socket()?, message, None)
    }

    fn hear(&self) -> Result<std::result::Result<Option<OwnedFd>, AttachError>> {
        let ended = || Error::new(ErrorKind::UnexpectedEof, "who traces has ended; the agent's log has its last words");
        let (answer, descriptor) = receive(self.socket()?)?.ok_or_else(ended)?;
        let refusal: Option<AttachError> = serde_json::from_slice(&answer)?;
        Ok(refusal.map_or(Ok(descriptor), Err))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.socket = None;
        // It can't fail for a child that nobody else waits for.
        self.child.wait().ok();
    }
}

/// The life of the process that traces, until the other end of standard input is gone. The caller has left its starter's container.
///
/// # Errors
/// Where it hears what is not for it, or its answers can't be sent.
pub fn serve() -> Result<()> {
    rustix::thread::set_name(NAME)?;
    // It ends when nobody wants anything from it any more, and not amid its work.
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM].into_iter().collect::<SigSet>().thread_block()?;
    let socket = std::io::stdin();
    while let Some((message, _)) = receive(socket.as_fd())? {
        let (refusal, descriptor) = match carry_out(serde_json::from_slice(&message)?) {
            Ok(descriptor) => (None, descriptor),
            Err(error) => (Some(error), None),
        };
        match send(socket.as_fd(), &serde_json::to_vec(&refusal)?, descriptor.as_ref().map(AsFd::as_fd)) {
            // Whoever wanted it is gone, and what was made goes with it.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            sent => sent?,
        }
    }
    Ok(())
}

fn send(socket: BorrowedFd<'_>, message: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(descriptor) = &descriptor {
        control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// The next message. None where the other end is gone.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut message = vec![0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Ok(None),
            received => break received?,
        }
    };
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Error::new(ErrorKind::InvalidData, "a message is too long"));
    }
    message.truncate(received.bytes);
    Ok(Some((message, descriptor)).filter(|(message, _)| !message.is_empty()))
}
