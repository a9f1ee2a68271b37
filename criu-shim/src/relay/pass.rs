//! Packets of a SOCK_SEQPACKET socket, passed on with the descriptors that travel with them.

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Longest packet that is passed on, bytes. A request of runc's has a few KiB.
const MAX_PACKET: usize = 1 << 20;

/// Most descriptors in one packet. CRIU sends one (the master of an orphaned terminal).
const MAX_DESCRIPTORS: usize = 16;

/// A packet and what came with it.
#[derive(Debug)]
pub(super) struct Packet {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

/// The next packet; none at the end of the connection.
pub(super) fn receive(socket: BorrowedFd<'_>) -> std::io::Result<Option<Packet>> {
    receive_flags(socket, MsgFlags::empty())
}

/// The next packet, left where it is.
pub(super) fn peek(socket: BorrowedFd<'_>) -> std::io::Result<Option<Packet>> {
    receive_flags(socket, MsgFlags::MSG_PEEK)
}

fn receive_flags(socket: BorrowedFd<'_>, flags: MsgFlags) -> std::io::Result<Option<Packet>> {
    let length = next_length(socket)?;
    if length > MAX_PACKET {
        return Err(ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    let mut control = cmsg_space!([RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let message = loop {
        let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => break other?,
        }
    };
    let descriptors = message
        .cmsgs()?
        .filter_map(|control| if let ControlMessageOwned::ScmRights(fds) = control { Some(fds) } else { None })
        .flatten()
        // SAFETY: the kernel has just made these descriptors for this process, and nothing else knows of them.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect::<Vec<_>>();
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(ErrorKind::InvalidData.into());
    }
    let length = message.bytes;
    bytes.truncate(length);
    Ok((length > 0).then_some(Packet { bytes, descriptors }))
}

/// How long the next packet is, bytes; 0 at the end of the connection. A buffer for the longest one would have to be cleared for each:
/// 0.7 ms in the middle of a restore.
fn next_length(socket: BorrowedFd<'_>) -> std::io::Result<usize> {
    loop {
        // With MSG_TRUNC the kernel tells the real length (recv(2)).
        match recv(socket.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => return Ok(other?),
        }
    }
}

/// Sends a packet.
pub(super) fn send(socket: BorrowedFd<'_>, packet: &Packet) -> std::io::Result<()> {
    let fds: Vec<RawFd> = packet.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &rights[..0] } else { &rights[..] };
    let slices = [IoSlice::new(&packet.bytes)];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => return Ok(other.map(|_| ())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn descriptors_travel_with_their_packet() {
        let pair = || socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let ((a, b), (c, d)) = (pair(), pair());
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"content").unwrap();
        send(a.as_fd(), &Packet { bytes: b"hello".to_vec(), descriptors: vec![file.into()] }).unwrap();
        assert_eq!(peek(b.as_fd()).unwrap().unwrap().bytes, b"hello");
        send(c.as_fd(), &receive(b.as_fd()).unwrap().unwrap()).unwrap();
        let packet = receive(d.as_fd()).unwrap().unwrap();
        assert_eq!((packet.bytes.as_slice(), packet.descriptors.len()), (&b"hello"[..], 1));
        let mut file = std::fs::File::from(packet.descriptors.into_iter().next().unwrap());
        std::io::Seek::rewind(&mut file).unwrap();
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
    }

    #[test]
    fn each_packet_has_its_own_length_up_to_a_limit() {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let packet = |length: usize| Packet { bytes: vec![7; length], descriptors: Vec::new() };
        for length in [3, 5000, 1] {
            send(a.as_fd(), &packet(length)).unwrap();
        }
        for length in [3, 5000, 1] {
            assert_eq!(peek(b.as_fd()).unwrap().unwrap().bytes.len(), length);
            assert_eq!(receive(b.as_fd()).unwrap().unwrap().bytes, vec![7; length]);
        }
        let size = 4 * MAX_PACKET;
        nix::sys::socket::setsockopt(&a, nix::sys::socket::sockopt::SndBufForce, &size).unwrap();
        send(a.as_fd(), &packet(MAX_PACKET + 1)).unwrap();
        assert_eq!(receive(b.as_fd()).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn the_end_of_the_connection_is_no_packet() {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        drop(a);
        assert!(receive(b.as_fd()).unwrap().is_none());
    }
}
