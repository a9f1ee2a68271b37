//! recvmsg(2) with what came beside the bytes.
//!
//! Written out, because what must not happen is that descriptors which the application sends stay open in init: those that
//! came with a truncated message (more than there is room for, or than init may open) are closed too.

use crate::notice::MAX_BYTES;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes for control messages: credentials need 32, two descriptors 24. The kernel opens no descriptor beyond that.
const CONTROL: usize = 56;

/// One datagram.
#[derive(Debug)]
pub(super) struct Datagram {
    /// Pid of the sender in this PID namespace, as the kernel vouches for it; 0 for one that it does not contain.
    pub(super) sender: Option<i32>,
    /// One byte more than a message may have, where it was longer.
    pub(super) text: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

#[repr(align(8))]
struct Control([u8; CONTROL]);

/// Takes one datagram from `socket`, which has SO_PASSCRED set.
///
/// # Errors
/// Of recvmsg(2); with a socket that does not block, also that there is none.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<Datagram> {
    let mut text = vec![0u8; MAX_BYTES + 1];
    let mut control = Control([0; CONTROL]);
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    // SAFETY: all zeros is a valid msghdr: null pointers with lengths of 0.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    // SAFETY: `header` points to one iovec over `text` and to `control`; both outlive the call, and their lengths are true.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let Ok(length) = usize::try_from(length) else { return Err(io::Error::last_os_error()) };
    text.truncate(length);
    let mut datagram = Datagram { sender: None, text, descriptors: Vec::new() };
    // SAFETY: the kernel has filled `header` and `control`, which is aligned for cmsghdr.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header inside `control`.
        let (level, kind, length) = unsafe { ((*message).cmsg_level, (*message).cmsg_type, (*message).cmsg_len) };
        // SAFETY: as above; the data begin behind the header.
        let data = unsafe { libc::CMSG_DATA(message) };
        let size = (message as usize + length).saturating_sub(data as usize);
        if level == libc::SOL_SOCKET && kind == libc::SCM_CREDENTIALS && size >= size_of::<libc::ucred>() {
            // SAFETY: the message is at least as long as the ucred that the kernel puts there; any bits are one.
            datagram.sender = Some(unsafe { data.cast::<libc::ucred>().read_unaligned() }.pid);
        }
        if level == libc::SOL_SOCKET && kind == libc::SCM_RIGHTS {
            for index in 0..size / size_of::<i32>() {
                // SAFETY: `index` is inside the message, and the kernel has just opened the descriptor for us alone.
                datagram
                    .descriptors
                    .push(unsafe { OwnedFd::from_raw_fd(data.cast::<i32>().add(index).read_unaligned()) });
            }
        }
        // SAFETY: `message` came from these functions and `header` is as the kernel left it.
        message = unsafe { libc::CMSG_NXTHDR(&raw const header, message) };
    }
    Ok(datagram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg, setsockopt, sockopt};
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn the_sender_is_the_kernels_word_and_no_descriptor_stays_open() {
        let (receiver, sender) = UnixDatagram::pair().unwrap();
        setsockopt(&receiver, sockopt::PassCred, &true).unwrap();
        receiver.set_nonblocking(true).unwrap();
        for count in [0, 1, 2, 100] {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            let descriptors = vec![theirs.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let control = if count == 0 { &[][..] } else { &rights[..] };
            sendmsg::<UnixAddr>(sender.as_raw_fd(), &[IoSlice::new(b"READY=1")], control, MsgFlags::empty(), None)
                .unwrap();
            drop(theirs);
            let datagram = receive(receiver.as_fd()).unwrap();
            assert_eq!(datagram.sender, Some(std::process::id().cast_signed()));
            assert_eq!(datagram.text, b"READY=1");
            assert_eq!(datagram.descriptors.len(), count.min(2));
            drop(datagram);
            // It ends once no descriptor of the other side is open anywhere.
            assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(receive(receiver.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn one_that_is_too_long_is_seen_to_be() {
        let (receiver, sender) = UnixDatagram::pair().unwrap();
        sender.send(&[b'x'; MAX_BYTES + 100]).unwrap();
        assert_eq!(receive(receiver.as_fd()).unwrap().text.len(), MAX_BYTES + 1);
    }
}
