//! What lives in the pod's IPC namespace. That belongs to the sandbox, so CRIU, which dumps such a namespace whole or not at all,
//! leaves it out: segments that are mapped make it fail, everything else would be lost in silence.

use super::{Finding, PreflightError};
use nix::sched::{CloneFlags, setns};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// System V objects, as `/proc/sysvipc` names them, and what they are.
const SYSV: [(&str, &str); 3] =
    [("shm", "System V shared memory"), ("sem", "System V semaphores"), ("msg", "System V message queues")];

/// Looks at the IPC namespace of process `pid`.
///
/// # Errors
/// [`PreflightError::Ipc`], also for a process that has ended.
pub(super) fn inspect(pid: i32, findings: &mut Vec<Finding>) -> Result<(), PreflightError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/ipc"));
    // The namespace of a thread shows in what it opens; this one ends in the other.
    let looked = std::thread::scope(|scope| scope.spawn(|| look(&path)).join());
    let looked = looked.unwrap_or_else(|_| Err(io::Error::other("the thread that looked has panicked")));
    let Objects { sysv, queues } = looked.map_err(|source| PreflightError::Ipc { pid, source })?;
    findings.extend(sysv.into_iter().map(|(kind, count)| Finding::SystemV { kind, count }));
    findings.extend((queues > 0).then_some(Finding::MessageQueues { count: queues }));
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Objects {
    sysv: Vec<(&'static str, usize)>,
    queues: usize,
}

/// What is in the namespace at `path`, into which the calling thread goes.
fn look(path: &Path) -> io::Result<Objects> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWIPC)?;
    let mut objects = Objects { queues: queues()?, ..Objects::default() };
    for (file, kind) in SYSV {
        // The first line has the names of the columns. Source: sysvipc(7).
        let count = std::fs::read_to_string(format!("/proc/sysvipc/{file}"))?.lines().skip(1).count();
        objects.sysv.extend((count > 0).then_some((kind, count)));
    }
    Ok(objects)
}

/// How many POSIX message queues there are, wherever their file system is mounted, if it is at all. A kernel without them has none.
fn queues() -> io::Result<usize> {
    let context = match fsopen("mqueue", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(rustix::io::Errno::NODEV) => return Ok(0),
        context => context?,
    };
    fsconfig_create(&context)?;
    // A mount in no namespace: it is gone with its descriptor.
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    Ok(std::fs::read_dir(format!("/proc/self/fd/{}", mount.as_raw_fd()))?.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// What is found in a new namespace in which `make` was done.
    fn found_after(make: impl FnOnce() -> i64 + Send) -> Vec<Finding> {
        let (ready, made) = mpsc::channel();
        let (done, looked) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                nix::sched::unshare(CloneFlags::CLONE_NEWIPC).expect("a namespace");
                assert!(make() >= 0, "{}", io::Error::last_os_error());
                ready.send(nix::unistd::gettid().as_raw()).expect("said");
                looked.recv().expect("heard");
            });
            let mut findings = Vec::new();
            inspect(made.recv().expect("made"), &mut findings).expect("a look");
            done.send(()).expect("said");
            findings
        })
    }

    #[test]
    fn an_empty_namespace_holds_nothing() {
        assert_eq!(found_after(|| 0), []);
    }

    #[test]
    fn system_v_objects_are_named_and_counted() {
        let found = found_after(|| {
            // SAFETY: calls that take numbers and touch no memory.
            let made = unsafe {
                libc::shmget(libc::IPC_PRIVATE, 4096, 0o600)
                    | libc::semget(libc::IPC_PRIVATE, 1, 0o600)
                    | libc::semget(libc::IPC_PRIVATE, 1, 0o600)
                    | libc::msgget(libc::IPC_PRIVATE, 0o600)
            };
            i64::from(made)
        });
        let expected: Vec<_> =
            SYSV.iter().zip([1, 2, 1]).map(|(&(_, kind), count)| Finding::SystemV { kind, count }).collect();
        assert_eq!(found, expected);
        assert!(found.iter().all(Finding::blocks));
    }

    #[test]
    fn a_posix_message_queue_is_found_that_nobody_has_open_or_mounted() {
        let found = found_after(|| {
            let none = std::ptr::null::<libc::mq_attr>();
            // SAFETY: a name that ends in zero, and no attributes. The descriptor is a new one, closed once.
            unsafe {
                let queue = libc::mq_open(c"/kept".as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, none);
                i64::from(if queue < 0 { queue } else { libc::mq_close(queue) })
            }
        });
        assert_eq!(found, [Finding::MessageQueues { count: 1 }]);
    }

    #[test]
    fn looking_leaves_the_caller_where_it_is() {
        let own = || std::fs::read_link("/proc/thread-self/ns/ipc").expect("a name");
        let before = own();
        found_after(|| 0);
        assert_eq!(own(), before);
    }
}
