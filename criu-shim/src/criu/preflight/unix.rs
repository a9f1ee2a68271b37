//! Unix sockets that are connected to a process outside of the container: to another container of the pod, by way of a volume that
//! both have. CRIU dumps both ends of a connection or none.

use super::{Finding, PreflightError, unless_gone};
use nix::sched::{CloneFlags, setns};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// Bytes of `struct nlmsghdr`, and two of its message types. Source: linux/netlink.h.
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// Bytes of `struct nlattr`.
const ATTRIBUTE: usize = 4;
/// `SOCK_DIAG_BY_FAMILY`. Source: linux/sock_diag.h.
const BY_FAMILY: u16 = 20;
/// Bytes of `struct unix_diag_req` and of `struct unix_diag_msg`, `UDIAG_SHOW_PEER`, `UNIX_DIAG_PEER`. Source: linux/unix_diag.h.
const REQUEST: usize = 24;
const SOCKET: usize = 16;
const SHOW_PEER: u32 = 4;
const PEER: u16 = 2;
/// More than the kernel puts into one answer, bytes.
const ANSWER: usize = 64 << 10;

/// The sockets that processes hold, by inode: one process and its descriptor for each.
type Held = BTreeMap<u32, (i32, i32)>;
/// Inodes of connected sockets, and of those that they are connected to.
type Peers = BTreeMap<u32, u32>;

/// Those of the processes `pids`, which are all of the container whose first is `init`.
pub(super) fn inspect(init: i32, pids: &[i32]) -> Result<Vec<Finding>, PreflightError> {
    let mut findings = outside(init, pids)?;
    if !findings.is_empty() {
        // The other end of one may have been accepted between two looks of the first.
        let again = outside(init, pids)?;
        findings.retain(|finding| again.contains(finding));
    }
    Ok(findings)
}

fn outside(init: i32, pids: &[i32]) -> Result<Vec<Finding>, PreflightError> {
    let mut held = Held::new();
    for pid in pids {
        hold(*pid, &mut held)?;
    }
    let path = PathBuf::from(format!("/proc/{init}/ns/net"));
    // The namespace of a thread shows in the socket that it opens; this one ends in the other.
    let looked = std::thread::scope(|scope| scope.spawn(|| peers(&path)).join());
    let looked = looked.unwrap_or_else(|_| Err(io::Error::other("the thread that looked has panicked")));
    let peers = looked.map_err(|source| PreflightError::Sockets { pid: init, source })?;
    let is_outside = |inode: &u32| peers.get(inode).is_some_and(|peer| !held.contains_key(peer));
    let outside = held.iter().filter(|(inode, _)| is_outside(inode));
    Ok(outside.map(|(_, &(pid, fd))| Finding::OutsideSocket { pid, fd }).collect())
}

/// Adds the sockets of a process. One that has ended has none.
fn hold(pid: i32, held: &mut Held) -> Result<(), PreflightError> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let Some(entries) = unless_gone(std::fs::read_dir(&directory), &directory)? else { return Ok(()) };
    for entry in entries.flatten() {
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = entry.path();
        let Some(link) = unless_gone(std::fs::read_link(&path), path)? else { continue };
        let link = link.to_string_lossy();
        let inode = link.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')?.parse().ok());
        if let Some(inode) = inode {
            held.insert(inode, (pid, fd));
        }
    }
    Ok(())
}

/// The connected unix sockets of the network namespace at `path`, into which the calling thread goes.
fn peers(path: &Path) -> io::Result<Peers> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    let kernel = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    send(&kernel, &request(), SendFlags::empty())?;
    let (mut peers, mut answer) = (Peers::new(), vec![0; ANSWER]);
    loop {
        let (length, _) = recv(&kernel, answer.as_mut_slice(), RecvFlags::empty())?;
        if read(&answer[..length], &mut peers)? {
            return Ok(peers);
        }
    }
}

/// Asks for the peers of all unix sockets, whatever their state.
fn request() -> Vec<u8> {
    let length = (HEADER + REQUEST) as u32;
    let mut request = Vec::with_capacity(HEADER + REQUEST);
    request.extend(length.to_ne_bytes());
    request.extend([BY_FAMILY, DUMP].map(u16::to_ne_bytes).concat());
    // The number of the question and who asks: there is one.
    request.extend([0; 8]);
    request.extend([AddressFamily::UNIX.as_raw() as u8, 0, 0, 0]);
    // States, any inode, what to tell, no cookie.
    request.extend([u32::MAX, 0, SHOW_PEER, 0, 0].map(u32::to_ne_bytes).concat());
    request
}

/// Reads one answer of the kernel's. Returns whether it was the last.
fn read(mut answer: &[u8], peers: &mut Peers) -> io::Result<bool> {
    while !answer.is_empty() {
        let (length, kind) = (u32_at(answer, 0)? as usize, u16_at(answer, 4)?);
        let message = answer.get(HEADER..length).ok_or(ErrorKind::InvalidData)?;
        match kind {
            DONE => return Ok(true),
            ERROR => return Err(io::Error::from_raw_os_error((u32_at(message, 0)? as i32).wrapping_neg())),
            BY_FAMILY => {
                let inode = u32_at(message, 4)?;
                // One that nobody has accepted yet has none.
                if let Some(peer) =
                    peer(message.get(SOCKET..).ok_or(ErrorKind::InvalidData)?)?.filter(|peer| *peer != 0)
                {
                    peers.insert(inode, peer);
                }
            }
            _ => {}
        }
        answer = answer.get(aligned(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// The peer among the attributes of a socket.
fn peer(mut attributes: &[u8]) -> io::Result<Option<u32>> {
    while !attributes.is_empty() {
        let (length, kind) = (usize::from(u16_at(attributes, 0)?), u16_at(attributes, 2)?);
        let value = attributes.get(ATTRIBUTE..length).ok_or(ErrorKind::InvalidData)?;
        if kind == PEER {
            return u32_at(value, 0).map(Some);
        }
        attributes = attributes.get(aligned(length)..).unwrap_or_default();
    }
    Ok(None)
}

/// Messages and attributes begin at multiples of four bytes.
fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    Ok(u32::from_ne_bytes(bytes.ok_or(ErrorKind::InvalidData)?))
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let bytes = bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    Ok(u16::from_ne_bytes(bytes.ok_or(ErrorKind::InvalidData)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    #[test]
    fn a_socket_whose_other_end_another_process_has_is_connected_to_the_outside() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut sleep = Command::new("sleep");
        sleep.arg("60").stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = sleep.spawn().unwrap();
        let (own, pid) = (std::process::id() as i32, child.id() as i32);
        let found = inspect(pid, &[pid]).unwrap();
        let both = inspect(pid, &[pid, own]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [Finding::OutsideSocket { pid, fd: 0 }]);
        let held = [Finding::OutsideSocket { pid, fd: 0 }, Finding::OutsideSocket { pid: own, fd: ours.as_raw_fd() }];
        assert!(!held.iter().any(|finding| both.contains(finding)), "{both:?}");
    }

    #[test]
    fn a_connection_that_nobody_has_accepted_leads_nowhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let own = std::process::id() as i32;
        let ours = [listener.as_raw_fd(), client.as_raw_fd()].map(|fd| Finding::OutsideSocket { pid: own, fd });
        let found = inspect(own, &[own]).unwrap();
        assert!(!ours.iter().any(|finding| found.contains(finding)), "{found:?}");
    }

    #[test]
    fn an_answer_that_is_cut_off_is_an_error() {
        let mut peers = Peers::new();
        assert!(read(&request(), &mut peers).is_err(), "no attribute is shorter than its header");
        read(&[1, 2, 3], &mut peers).expect_err("no header");
        read(&[255, 0, 0, 0, 20, 0, 0, 0], &mut peers).expect_err("shorter than it says");
    }
}
