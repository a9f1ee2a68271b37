//! A question about TCP sockets whose answer is known: that there are none.
//!
//! CRIU asks for the sockets of a network namespace by sock_diag(7), for TCP over IPv4 and over IPv6. Either time the kernel walks the hash
//! table of all TCP sockets of the node, 0.4 ms for 262,144 buckets, however few sockets the namespace has. How many these are it counts:
//! a socket is counted from when it enters the table until it has left it (`inet_hash` and `inet_unhash` in linux
//! `net/ipv4/inet_hashtables.c`), and `/proc/PID/net/sockstat` says the sum.

use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};

/// Length of a request: `struct nlmsghdr` and `struct inet_diag_req_v2`. Source: linux `include/uapi/linux/{netlink,inet_diag}.h`.
pub(crate) const REQUEST: usize = 16 + 56;
/// Length of the answer that ends a list: `struct nlmsghdr` and a 0, "no error".
const DONE: usize = 16 + 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
/// More than a file of counts has.
const MOST: usize = 1024;

/// An answer that is to be given: to whom, and to which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    descriptor: c_int,
    sequence: u32,
}

/// The answer to the question in `message` that is put to `descriptor`, where it is one about sockets of which there are none by what
/// `count` says of the protocol.
///
/// # Safety
/// `message` must be one for sendmsg(2).
pub(crate) unsafe fn known(
    descriptor: c_int,
    message: &libc::msghdr,
    count: impl Fn(Protocol) -> Option<u64>,
) -> Option<Known> {
    let family = size_of::<libc::sa_family_t>();
    if message.msg_iovlen != 1 || message.msg_name.is_null() || (message.msg_namelen as usize) < family {
        return None;
    }
    // SAFETY: the caller's promise, for as many bytes as both lengths say.
    let (family, request) = unsafe {
        let part = &*message.msg_iov;
        if part.iov_len != REQUEST {
            return None;
        }
        let request = part.iov_base.cast::<[u8; REQUEST]>().read_unaligned();
        (message.msg_name.cast::<libc::sa_family_t>().read_unaligned(), request)
    };
    let protocol = (c_int::from(family) == libc::AF_NETLINK).then(|| asked_for(&request)).flatten()?;
    (count(protocol)? == 0).then(|| Known { descriptor, sequence: word(&request, 8) })
}

/// A protocol of which the kernel counts the sockets of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    TcpOverIpv6,
}

/// What a request asks for all sockets of.
fn asked_for(request: &[u8; REQUEST]) -> Option<Protocol> {
    let kind = u16::from_ne_bytes([request[4], request[5]]);
    if word(request, 0) as usize != REQUEST || kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    match (c_int::from(request[16]), c_int::from(request[17])) {
        (libc::AF_INET, libc::IPPROTO_TCP) => Some(Protocol::Tcp),
        (libc::AF_INET6, libc::IPPROTO_TCP) => Some(Protocol::TcpOverIpv6),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Known {
    /// Gives it, where the caller of recvmsg(2) on `descriptor` waits for it and has room. Returns its length.
    ///
    /// # Safety
    /// `message` must be one for recvmsg(2).
    pub(crate) unsafe fn give(self, descriptor: c_int, message: &mut libc::msghdr) -> Option<usize> {
        // SAFETY: the caller's promise.
        let part = unsafe { message.msg_iov.as_ref() }.filter(|_| message.msg_iovlen == 1)?;
        if descriptor != self.descriptor || part.iov_len < DONE {
            return None;
        }
        let mut answer = [0_u8; DONE];
        answer[..4].copy_from_slice(&(DONE as u32).to_ne_bytes());
        answer[4..6].copy_from_slice(&NLMSG_DONE.to_ne_bytes());
        answer[6..8].copy_from_slice(&NLM_F_MULTI.to_ne_bytes());
        answer[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        // SAFETY: there is room, the caller's promise.
        unsafe { part.iov_base.cast::<[u8; DONE]>().write_unaligned(answer) };
        (message.msg_flags, message.msg_controllen) = (0, 0);
        Some(DONE)
    }
}

/// How many sockets of the protocol the network namespace of this thread has; none where it is not said.
pub(crate) fn counted(protocol: Protocol) -> Option<u64> {
    let (path, name) = match protocol {
        Protocol::Tcp => (c"/proc/thread-self/net/sockstat", "TCP: inuse "),
        Protocol::TcpOverIpv6 => (c"/proc/thread-self/net/sockstat6", "TCP6: inuse "),
    };
    let mut text = [0_u8; MOST];
    let length = read(path, &mut text)?;
    in_use(std::str::from_utf8(&text[..length]).ok()?, name)
}

/// The number behind `name`, which begins a line.
fn in_use(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split(' ').next()?.parse().ok()
}

/// Reads the file, which is short. Returns how much it is.
fn read(path: &CStr, text: &mut [u8]) -> Option<usize> {
    // SAFETY: a C string, and a buffer of the length that is named; the descriptor is closed once, by who has it.
    unsafe {
        let descriptor = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        if descriptor < 0 {
            return None;
        }
        let length = libc::read(descriptor, text.as_mut_ptr().cast::<c_void>(), text.len());
        libc::close(descriptor);
        usize::try_from(length).ok()
    }
}

thread_local! {
    /// The answer that comes next.
    pub(crate) static NEXT: Cell<Option<Known>> = const { Cell::new(None) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request as CRIU makes it, with the number `sequence`.
    fn request(family: c_int, protocol: c_int, sequence: u32) -> [u8; REQUEST] {
        let mut request = [0_u8; REQUEST];
        request[..4].copy_from_slice(&(REQUEST as u32).to_ne_bytes());
        request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        request[6..8].copy_from_slice(&0x301_u16.to_ne_bytes());
        request[8..12].copy_from_slice(&sequence.to_ne_bytes());
        (request[16], request[17]) = (family as u8, protocol as u8);
        // All states.
        request[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
        request
    }

    /// A message of these bytes to or from an address of the family `to`.
    fn with_message<T>(bytes: &mut [u8], to: c_int, run: impl FnOnce(&mut libc::msghdr) -> T) -> T {
        // SAFETY: all zeroes are one of either.
        let (mut address, mut message) =
            unsafe { (std::mem::zeroed::<libc::sockaddr_nl>(), std::mem::zeroed::<libc::msghdr>()) };
        address.nl_family = to as libc::sa_family_t;
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        (message.msg_name, message.msg_namelen) = ((&raw mut address).cast(), size_of::<libc::sockaddr_nl>() as u32);
        run(&mut message)
    }

    fn answered(mut bytes: [u8; REQUEST], to: c_int, count: Option<u64>) -> Option<Known> {
        // SAFETY: a message of this test's own.
        with_message(&mut bytes, to, |message| unsafe { known(7, message, |_| count) })
    }

    #[test]
    fn what_is_known_is_that_there_are_none() {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let of_tcp = request(family, libc::IPPROTO_TCP, 24680);
            let known = Some(Known { descriptor: 7, sequence: 24680 });
            assert_eq!(answered(of_tcp, libc::AF_NETLINK, Some(0)), known);
            assert_eq!(answered(of_tcp, libc::AF_NETLINK, Some(1)), None);
            assert_eq!(answered(of_tcp, libc::AF_NETLINK, None), None, "nobody has counted");
            assert_eq!(answered(of_tcp, libc::AF_UNIX, Some(0)), None, "bytes to somebody else");
            assert_eq!(answered(request(family, libc::IPPROTO_UDP, 1), libc::AF_NETLINK, Some(0)), None);
        }
        assert_eq!(answered(request(libc::AF_UNIX, libc::IPPROTO_TCP, 1), libc::AF_NETLINK, Some(0)), None);
    }

    type Send = unsafe extern "C" fn(c_int, *const libc::msghdr, c_int) -> isize;
    type Receive = unsafe extern "C" fn(c_int, *mut libc::msghdr, c_int) -> isize;

    /// What is answered to who asks for TCP sockets of this thread's network namespace by these functions.
    fn answer(send: Send, receive: Receive) -> Vec<u8> {
        let mut bytes = request(libc::AF_INET, libc::IPPROTO_TCP, 24680);
        // SAFETY: system calls with what they ask for, and descriptors of this test's own.
        unsafe {
            let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG);
            assert!(socket >= 0, "{}", std::io::Error::last_os_error());
            let sent = with_message(&mut bytes, libc::AF_NETLINK, |message| send(socket, message, 0));
            assert_eq!(sent, bytes.len() as isize);
            let mut answer = vec![0_u8; 4096];
            let length = with_message(&mut answer, libc::AF_NETLINK, |message| receive(socket, message, 0));
            libc::close(socket);
            answer.truncate(length as usize);
            answer
        }
    }

    #[test]
    fn the_answer_is_the_kernels() {
        let asked = std::thread::spawn(|| {
            // SAFETY: of this thread alone.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                let error = std::io::Error::last_os_error();
                assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
                return;
            }
            let (ours, theirs) = (|| answer(crate::sendmsg, crate::recvmsg), || answer(libc::sendmsg, libc::recvmsg));
            // Whom the kernel answers it says too, by a number of the socket's.
            let but_the_port = |answer: Vec<u8>| [&answer[..12], &answer[16..]].concat();
            for protocol in [Protocol::Tcp, Protocol::TcpOverIpv6] {
                assert_eq!(counted(protocol), Some(0), "{protocol:?}");
            }
            assert_eq!(but_the_port(ours()), but_the_port(theirs()), "there are none");
            let listening = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
            assert_eq!((counted(Protocol::Tcp), counted(Protocol::TcpOverIpv6)), (Some(1), Some(0)));
            let (ours, theirs) = (ours(), theirs());
            assert!(ours.len() > DONE && ours.len() == theirs.len(), "it is asked about");
            drop(listening);
            assert_eq!(counted(Protocol::Tcp), Some(0));
        });
        asked.join().unwrap();
    }

    #[test]
    fn it_is_given_to_who_waits_for_it_and_has_room() {
        let known = Known { descriptor: 7, sequence: 1 };
        let give = |descriptor: c_int, room: usize| {
            // SAFETY: a message of this test's own.
            with_message(&mut vec![0; room], libc::AF_NETLINK, |message| unsafe { known.give(descriptor, message) })
        };
        assert_eq!((give(7, DONE), give(7, DONE - 1), give(8, DONE)), (Some(DONE), None, None));
    }

    #[test]
    fn counts_are_read_by_name() {
        let text = "sockets: used 120\nTCP: inuse 12 orphan 0 tw 3 alloc 20 mem 2\nUDP: inuse 4 mem 2\n";
        assert_eq!((in_use(text, "TCP: inuse "), in_use(text, "TCP6: inuse ")), (Some(12), None));
        assert_eq!(in_use("TCP: inuse\n", "TCP: inuse "), None);
    }
}
