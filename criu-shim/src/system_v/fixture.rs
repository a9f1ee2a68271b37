//! Objects for tests, each test in an IPC namespace of its own.

use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a new IPC namespace, which ends with it.
pub(crate) fn in_new_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let thread = || {
        unshare(CloneFlags::CLONE_NEWIPC).unwrap();
        test()
    };
    std::thread::scope(|scope| scope.spawn(thread).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn made(id: i32) -> i32 {
    assert!(id >= 0, "{}", std::io::Error::last_os_error());
    id
}

/// A segment of `bytes` bytes.
pub(crate) fn segment(bytes: usize) -> i32 {
    // SAFETY: numbers only.
    made(unsafe { libc::shmget(libc::IPC_PRIVATE, bytes, 0o600) })
}

/// A set of semaphores of these values.
pub(crate) fn semaphores(values: &[u16]) -> i32 {
    let count = i32::try_from(values.len()).unwrap();
    // SAFETY: numbers, and as many values as the set has.
    unsafe {
        let id = made(libc::semget(libc::IPC_PRIVATE, count, 0o600));
        assert_eq!(libc::semctl(id, 0, libc::SETALL, values.as_ptr()), 0);
        id
    }
}

/// A queue in which messages of these lengths wait.
pub(crate) fn queue(lengths: &[usize]) -> i32 {
    // SAFETY: a message is its type and as many bytes as the call says.
    unsafe {
        let id = made(libc::msgget(libc::IPC_PRIVATE, 0o600));
        for length in lengths {
            let message = vec![7_u64; 1 + length.div_ceil(8)];
            assert_eq!(libc::msgsnd(id, message.as_ptr().cast(), *length, 0), 0);
        }
        id
    }
}
