//! What lives in the pod's IPC namespace. That belongs to the sandbox: CRIU dumps such a namespace whole, from outside, or not at
//! all, and then what is in it would be lost in silence.

use super::{Finding, PreflightError};
use crate::system_v::{self, Kind, Object};
use nix::sched::{CloneFlags, setns};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Longest message that CRIU can restore, bytes (`MSGMAX` in CRIU's `criu/ipc_ns.c`): what the kernel allows where nobody says else.
const LONGEST_MESSAGE: u64 = 8192;

/// What was found in a namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Inside {
    /// What is worth a word.
    pub(super) findings: Vec<Finding>,
    /// Whether there are System V objects.
    pub(super) system_v: bool,
}

/// Looks at the IPC namespace of process `pid`.
///
/// # Errors
/// [`PreflightError::Ipc`], also for a process that has ended.
pub(super) fn inspect(pid: i32) -> Result<Inside, PreflightError> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/ipc"));
    // The namespace of a thread shows in what it opens; this one ends in the other.
    let looked = std::thread::scope(|scope| scope.spawn(|| look(&path)).join());
    let looked = looked.unwrap_or_else(|_| Err(io::Error::other("the thread that looked has panicked")));
    looked.map_err(|source| PreflightError::Ipc { pid, source })
}

/// What is in the namespace at `path`, into which the calling thread goes.
fn look(path: &Path) -> io::Result<Inside> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWIPC)?;
    let mut findings = Vec::new();
    let objects = system_v::list()?;
    if !objects.is_empty() {
        obstacles(&objects, &mut findings)?;
    }
    let queues = queues()?;
    findings.extend((queues > 0).then_some(Finding::MessageQueues { count: queues }));
    Ok(Inside { findings, system_v: !objects.is_empty() })
}

/// What CRIU would not bring back as it was, in the namespace of the calling thread.
fn obstacles(objects: &[Object], findings: &mut Vec<Finding>) -> io::Result<()> {
    let sysctl = |name: &str| -> io::Result<u64> {
        let value = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"))?;
        value.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("{name} is {value:?}")))
    };
    let (usual_limit, longest) = (sysctl("msgmnb")?, sysctl("msgmax")?);
    for object in objects {
        let &Object { kind, id, .. } = object;
        // Who made an object has its owner's rights. CRIU makes it as root, and gives it to its owner: what it has made itself,
        // for an earlier move, comes back as it is.
        let given_away = object.owner != object.creator && object.creator != [0, 0];
        findings.extend(given_away.then_some(Finding::OtherCreator { kind, id }));
        findings.extend(object.is_locked().then_some(Finding::LockedSegment { id }));
        if kind == Kind::Queue {
            let limit = system_v::queue_limit(id)?;
            findings.extend(limit.is_some_and(|limit| limit != usual_limit).then_some(Finding::QueueLimit { id }));
            let may_be_long = longest > LONGEST_MESSAGE && object.waiting > LONGEST_MESSAGE;
            findings.extend(may_be_long.then_some(Finding::LongMessages { id }));
        }
    }
    findings.extend(system_v::huge_segments(objects)?.into_iter().map(|id| Finding::HugeSegment { id }));
    let sets = objects.iter().filter(|object| object.kind == Kind::Semaphores).count();
    findings.extend((sets > 0).then_some(Finding::Semaphores { count: sets }));
    Ok(())
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
    use crate::system_v::fixture::{in_new_namespace, queue, segment, semaphores};

    /// What is found in a new namespace in which `make` was done.
    fn found_after<T>(make: impl FnOnce() -> T + Send) -> Inside {
        in_new_namespace(|| {
            make();
            let own = nix::unistd::gettid().as_raw();
            inspect(own).expect("a look")
        })
    }

    #[test]
    fn an_empty_namespace_holds_nothing() {
        assert_eq!(found_after(|| 0), Inside::default());
    }

    #[test]
    fn ordinary_objects_are_seen_and_do_not_block() {
        let found = found_after(|| (segment(4096), semaphores(&[1, 2]), semaphores(&[0]), queue(&[100, 0])));
        assert_eq!(found, Inside { findings: vec![Finding::Semaphores { count: 2 }], system_v: true });
        assert!(!found.findings.iter().any(Finding::blocks));
    }

    #[test]
    fn a_segment_that_is_locked_in_memory_blocks() {
        let found = found_after(|| {
            let id = segment(4096);
            // SAFETY: a command that takes numbers.
            assert_eq!(unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) }, 0);
        });
        assert!(matches!(found.findings[..], [Finding::LockedSegment { .. }]), "{found:?}");
        assert!(found.findings[0].blocks());
    }

    #[test]
    fn an_object_that_its_maker_gave_away_blocks() {
        let found = found_after(|| {
            become_user(2);
            let id = segment(4096);
            give_away(id);
            become_user(0);
        });
        assert!(matches!(found.findings[..], [Finding::OtherCreator { kind: Kind::Segment, .. }]), "{found:?}");
        assert!(found.findings[0].blocks());
    }

    #[test]
    fn an_object_that_root_gave_away_is_as_criu_would_make_it() {
        let found = found_after(|| give_away(segment(4096)));
        assert_eq!(found, Inside { findings: Vec::new(), system_v: true });
    }

    /// The effective user and group of this thread alone.
    fn become_user(id: libc::uid_t) {
        let kept = libc::uid_t::MAX;
        let (users, groups) = (libc::SYS_setresuid, libc::SYS_setresgid);
        let order = if id == 0 { [users, groups] } else { [groups, users] };
        for call in order {
            // SAFETY: numbers only.
            assert_eq!(unsafe { libc::syscall(call, kept, id, kept) }, 0);
        }
    }

    fn give_away(segment: i32) {
        let mut status = std::mem::MaybeUninit::<libc::shmid_ds>::uninit();
        // SAFETY: the kernel writes one such structure, and then reads it.
        unsafe {
            assert_eq!(libc::shmctl(segment, libc::IPC_STAT, status.as_mut_ptr()), 0);
            (*status.as_mut_ptr()).shm_perm.uid = 1;
            assert_eq!(libc::shmctl(segment, libc::IPC_SET, status.as_mut_ptr()), 0);
        }
    }

    #[test]
    fn a_queue_with_a_limit_or_with_messages_of_its_own_size_blocks() {
        let found = found_after(|| {
            // Both are the namespace's own. A queue keeps the limit that there was when it was made.
            let (limited, _) = (queue(&[]), set("msgmnb", 32_768));
            set("msgmax", 20_000);
            (limited, queue(&[LONGEST_MESSAGE as usize + 1]), queue(&[5]))
        });
        assert!(
            matches!(found.findings[..], [Finding::QueueLimit { .. }, Finding::LongMessages { .. }]),
            "{:?}",
            found.findings
        );
        assert!(found.findings.iter().all(Finding::blocks));
    }

    fn set(name: &str, value: u32) {
        std::fs::write(format!("/proc/sys/kernel/{name}"), value.to_string()).expect("a namespace's own setting");
    }

    #[test]
    fn a_posix_message_queue_is_found_that_nobody_has_open_or_mounted() {
        let found = found_after(|| {
            let none = std::ptr::null::<libc::mq_attr>();
            // SAFETY: a name that ends in zero, and no attributes. The descriptor is a new one, closed once.
            unsafe {
                let queue = libc::mq_open(c"/kept".as_ptr(), libc::O_CREAT | libc::O_RDWR, 0o600, none);
                assert!(queue >= 0 && libc::mq_close(queue) == 0, "{}", io::Error::last_os_error());
            }
        });
        assert_eq!(found.findings, [Finding::MessageQueues { count: 1 }]);
        assert!(found.findings[0].blocks() && !found.system_v);
    }

    #[test]
    fn looking_leaves_the_caller_where_it_is() {
        let own = || std::fs::read_link("/proc/thread-self/ns/ipc").expect("a name");
        let before = own();
        found_after(|| 0);
        assert_eq!(own(), before);
    }
}
