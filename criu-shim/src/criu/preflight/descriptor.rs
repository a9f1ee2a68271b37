//! Open descriptors: what each is, and whether CRIU knows that kind.

use super::{Finding, PreflightError, unless_gone};
use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Anonymous inodes that CRIU dumps. Source: CRIU's `criu/files.c`, `dump_one_file`.
const KNOWN_INODES: [&str; 8] =
    ["[eventfd]", "[eventpoll]", "[signalfd]", "[timerfd]", "inotify", "[fanotify]", "[pidfd]", "bpf-map"];

/// Socket families that CRIU dumps: UNIX, INET, INET6, NETLINK, PACKET. Source: CRIU's `criu/sockets.c`.
const KNOWN_FAMILIES: [u16; 5] = [1, 2, 10, 16, 17];

/// IPPROTO_MPTCP, the default of listeners in newer Go. Source: linux/in.h.
const MPTCP: u32 = 262;

/// File system magic of POSIX message queues. Source: linux `ipc/mqueue.c`.
const MQUEUE_MAGIC: i128 = 0x1980_0202;

/// What `/proc/PID/fd/N` points to.
#[derive(Debug, PartialEq, Eq)]
enum Link<'a> {
    Pipe(&'a str),
    Socket,
    Inotify,
    Known,
    Unknown(&'a str),
    /// A name without a directory: maybe a message queue.
    TopLevel,
}

fn classify(link: &str) -> Link<'_> {
    if let Some(kind) = link.strip_prefix("anon_inode:") {
        return match kind {
            "inotify" => Link::Inotify,
            kind if KNOWN_INODES.contains(&kind) => Link::Known,
            kind => Link::Unknown(kind),
        };
    }
    if let Some(inode) = link.strip_prefix("pipe:") {
        return Link::Pipe(inode);
    }
    if link.starts_with("socket:") {
        return Link::Socket;
    }
    if link.starts_with("/secretmem") {
        return Link::Unknown("memfd_secret");
    }
    match link.strip_prefix('/') {
        Some(name) if !name.contains('/') => Link::TopLevel,
        _ => Link::Known,
    }
}

pub(super) fn inspect(
    pid: i32,
    init: i32,
    pipes: &mut BTreeSet<String>,
    findings: &mut Vec<Finding>,
) -> Result<(), PreflightError> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let Some(entries) = unless_gone(std::fs::read_dir(&directory), &directory)? else { return Ok(()) };
    for entry in entries.flatten() {
        let path = entry.path();
        let Some(fd) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Some(link) = unless_gone(std::fs::read_link(&path), &path)? else { continue };
        let link = link.to_string_lossy();
        match classify(&link) {
            Link::Known => {}
            Link::Pipe(inode) => {
                pipes.insert(inode.to_owned());
            }
            Link::Unknown(kind) => findings.push(Finding::Descriptor { pid, fd, kind: kind.to_owned() }),
            Link::Inotify if watches_root(pid, init, fd) => findings.push(Finding::InotifyOnRoot { pid, fd }),
            Link::Inotify => {}
            Link::TopLevel if is_message_queue(&path) => findings.push(Finding::MessageQueue { pid, fd }),
            Link::TopLevel => {}
            Link::Socket => findings.extend(unknown_socket(pid, fd).map(|kind| Finding::Socket { pid, fd, kind })),
        }
    }
    Ok(())
}

fn is_message_queue(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|statfs| i128::from(statfs.f_type) == MQUEUE_MAGIC)
}

/// True if one of the watches is on the file system that holds the container's root.
fn watches_root(pid: i32, init: i32, fd: i32) -> bool {
    let Ok(root) = std::fs::metadata(format!("/proc/{init}/root/")) else { return false };
    let Ok(info) = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")) else { return false };
    watched_devices(&info).any(|device| device == root.st_dev())
}

/// Source: proc_pid_fdinfo(5): `inotify wd:1 ino:9e7e sdev:800013 ...`, the device as the kernel encodes it inside.
fn watched_devices(info: &str) -> impl Iterator<Item = u64> + '_ {
    info.lines().filter(|line| line.starts_with("inotify ")).filter_map(|line| {
        let device = line.split(' ').find_map(|field| field.strip_prefix("sdev:"))?;
        let device = u64::from_str_radix(device, 16).ok()?;
        Some(rustix::fs::makedev((device >> 20) as u32, (device & 0xf_ffff) as u32))
    })
}

/// What is wrong with a socket; none if nothing is, or if it is gone.
fn unknown_socket(pid: i32, fd: i32) -> Option<String> {
    let socket = borrow(pid, fd)?;
    let family = sockopt::socket_domain(&socket).ok()?.as_raw();
    if !KNOWN_FAMILIES.contains(&family) {
        return Some(format!("address family {family}"));
    }
    let protocol = sockopt::socket_protocol(&socket).ok()??.as_raw().get();
    (protocol == MPTCP).then(|| "protocol MPTCP".to_owned())
}

fn borrow(pid: i32, fd: i32) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_criu_does_not_know_is_named() {
        assert_eq!(classify("anon_inode:[io_uring]"), Link::Unknown("[io_uring]"));
        assert_eq!(classify("anon_inode:[userfaultfd]"), Link::Unknown("[userfaultfd]"));
        assert_eq!(classify("anon_inode:[perf_event]"), Link::Unknown("[perf_event]"));
        assert_eq!(classify("anon_inode:bpf-prog"), Link::Unknown("bpf-prog"));
        assert_eq!(classify("/secretmem (deleted)"), Link::Unknown("memfd_secret"));
    }

    #[test]
    fn what_criu_knows_passes() {
        for link in ["anon_inode:[eventpoll]", "/var/lib/db/file", "/memfd:x (deleted)/y", "mnt:[4026]"] {
            assert_eq!(classify(link), Link::Known);
        }
        assert_eq!(classify("pipe:[99]"), Link::Pipe("[99]"));
        assert_eq!(classify("socket:[98]"), Link::Socket);
        assert_eq!(classify("/queue"), Link::TopLevel);
    }

    #[test]
    fn an_inotify_watch_is_matched_by_device() {
        let info =
            "pos:\t0\nflags:\t00\ninotify wd:2 ino:7ef82a sdev:800001 mask:800afff ignored_mask:0 fhandle-bytes:8\n";
        assert_eq!(watched_devices(info).collect::<Vec<_>>(), [rustix::fs::makedev(8, 1)]);
    }

    #[test]
    fn sockets_are_told_apart_by_asking_them() {
        use std::os::fd::AsRawFd;
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(unknown_socket(std::process::id() as i32, socket.as_raw_fd()), None);
    }
}
