use super::child::{Child, MIB, wait_for};
use crate::memory::{AttachError, Injector, Tracker};
use std::time::{Duration, Instant};

/// A seccomp filter that answers userfaultfd(2) with `action` and allows all else, as its program and its header.
fn filter(action: u32) -> u64 {
    let rule = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let program = Vec::leak(vec![
        // Load the number, which is the first field of struct seccomp_data.
        rule((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
        rule((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, libc::SYS_userfaultfd as u32),
        rule((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, action),
        rule((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]);
    let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    std::ptr::from_mut(Box::leak(Box::new(header))) as u64
}

fn filtered(action: u32) -> Child {
    let filter = filter(action);
    let mut child = Child::new();
    child.good(libc::SYS_prctl, &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0]);
    child.good(libc::SYS_prctl, &[libc::PR_SET_SECCOMP as u64, libc::SECCOMP_MODE_FILTER as u64, filter]);
    child
}

fn works(child: &mut Child) {
    let area = child.island(2 * MIB);
    child.store(area.start, 1);
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    assert!(tracker.take_written().unwrap().iter().any(|range| range.start == area.start));
    child.store(area.start, 2);
    assert!(tracker.take_written().unwrap().iter().any(|range| range.start == area.start));
}

#[test]
fn a_filter_that_refuses_is_suspended_and_stands_again_after() {
    let mut child = filtered(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    works(&mut child);
    assert_eq!(child.call(libc::SYS_userfaultfd, &[1]), -i64::from(libc::EPERM));
}

#[test]
fn a_filter_that_kills_is_suspended_and_stands_again_after() {
    let mut child = filtered(libc::SECCOMP_RET_KILL_PROCESS);
    works(&mut child);
    child.tell(libc::SYS_userfaultfd, &[1]);
    wait_for(|| child.status("State").starts_with('Z'));
    assert_eq!(libc::WTERMSIG(child.end()), libc::SIGSYS);
}

#[test]
fn the_process_is_as_before() {
    let mut child = Child::new();
    let area = child.island(2 * MIB);
    child.store(area.start, 1);
    child.wait_idle();
    let before = (child.descriptors(), child.syscall(), child.status("SigBlk"), child.status("SigCgt"));
    let mut tracker = Tracker::attach(child.pid, &Injector::Here).unwrap();
    child.wait_idle();
    assert_eq!((child.descriptors(), child.syscall(), child.status("SigBlk"), child.status("SigCgt")), before);
    assert_eq!(child.status("TracerPid"), "0");
    tracker.take_written().unwrap();
    let marked = || {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", child.pid)).unwrap();
        smaps.lines().filter(|line| line.starts_with("VmFlags:")).any(|line| line.contains(" uw"))
    };
    assert!(marked());
    drop(tracker);
    assert!(!marked());
    assert_eq!(child.descriptors(), before.0);
}

/// Runs a call that waits, attaches amid it, and returns what it returned and how long it took.
fn attached_amid(child: &mut Child, number: i64, arguments: &[u64], end: impl FnOnce(&mut Child)) -> (i64, Duration) {
    child.wait_idle();
    let begin = Instant::now();
    child.tell(number, arguments);
    child.wait_in(number);
    for _ in 0..20 {
        drop(Tracker::attach(child.pid, &Injector::Here).unwrap());
    }
    end(child);
    (child.answer(), begin.elapsed())
}

#[test]
fn a_sleep_is_neither_cut_short_nor_begun_anew() {
    let mut child = Child::new();
    let time = child.words(&[0, 400_000_000, 7, 7]);
    child.wait_idle();
    let begin = Instant::now();
    child.tell(libc::SYS_nanosleep, &[time, time + 16]);
    wait_for(|| !child.syscall().starts_with("running") && !child.syscall().starts_with("0 "));
    while begin.elapsed() < Duration::from_millis(250) {
        drop(Tracker::attach(child.pid, &Injector::Here).unwrap());
    }
    assert_eq!(child.answer(), 0);
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(400), "{took:?}");
    // Begun anew it would take 650 ms.
    assert!(took < Duration::from_millis(620), "{took:?}");
}

#[test]
fn a_read_a_poll_and_a_futex_go_on() {
    let mut child = Child::new();
    let place = child.words(&[0]);
    let pipe = child.words(&[0]);
    child.good(libc::SYS_pipe2, &[pipe, 0]);
    let ends = child.peek(pipe, 8);
    let end = |at: usize| u64::from(ends[at]);
    let (read, write) = (end(0), end(4));
    let write = std::fs::File::options().write(true).open(format!("/proc/{}/fd/{write}", child.pid)).unwrap();
    let say = |_: &mut Child| {
        std::io::Write::write_all(&mut &write, b"x").unwrap();
    };
    let (result, _) = attached_amid(&mut child, libc::SYS_read, &[read, place, 1], say);
    assert_eq!(result, 1);

    let epoll = child.good(libc::SYS_epoll_create1, &[0]);
    let event = child.words(&[libc::EPOLLIN as u64, 0]);
    child.good(libc::SYS_epoll_ctl, &[epoll, libc::EPOLL_CTL_ADD as u64, read, event]);
    let (result, _) = attached_amid(&mut child, libc::SYS_epoll_wait, &[epoll, event, 1, u64::MAX], say);
    assert_eq!(result, 1);

    let futex = child.words(&[5]);
    let limit = child.words(&[0, 300_000_000]);
    let wait = [futex, libc::FUTEX_WAIT as u64, 5, limit];
    let begin = Instant::now();
    child.wait_idle();
    child.tell(libc::SYS_futex, &wait);
    wait_for(|| !child.syscall().starts_with("running") && !child.syscall().starts_with("0 "));
    for _ in 0..20 {
        drop(Tracker::attach(child.pid, &Injector::Here).unwrap());
    }
    assert_eq!(child.answer(), -i64::from(libc::ETIMEDOUT));
    assert!(begin.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_wait_for_a_signal_goes_on_and_the_signal_arrives() {
    let mut child = Child::new();
    let set = child.words(&[1 << (libc::SIGUSR1 - 1)]);
    child.good(libc::SYS_rt_sigprocmask, &[libc::SIG_BLOCK as u64, set, 0, 8]);
    let send = |child: &mut Child| {
        child.signal(libc::SIGUSR1);
    };
    let (result, _) = attached_amid(&mut child, libc::SYS_rt_sigtimedwait, &[set, 0, 0, 8], send);
    assert_eq!(result, i64::from(libc::SIGUSR1));
}

#[test]
fn a_program_that_computes_is_attached_to() {
    let mut child = Child::new();
    let area = child.island(4 * MIB);
    child.fill(area, 1);
    // Long work in the kernel and outside, over and over.
    for _ in 0..50 {
        child.tell(libc::SYS_getrandom, &[area.start, area.len(), 0]);
        drop(Tracker::attach(child.pid, &Injector::Here).unwrap());
        // Whatever interrupts this call, it returns what it has done so far.
        assert!(child.answer() > 0);
    }
}

#[test]
fn a_stopped_process_is_refused_and_stays_stopped() {
    let mut child = Child::new();
    child.signal(libc::SIGSTOP);
    wait_for(|| child.status("State").starts_with('T'));
    assert!(matches!(Tracker::attach(child.pid, &Injector::Here), Err(AttachError::Stopped { .. })));
    assert!(child.status("State").starts_with('T'));
    child.signal(libc::SIGCONT);
    works(&mut child);
}

#[test]
fn a_traced_process_is_refused_by_name() {
    let child = Child::new();
    let pid = child.pid;
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let (seized, ready) = std::sync::mpsc::channel();
    let tracer = std::thread::spawn(move || {
        crate::memory::ptrace::seize(pid, 0).unwrap();
        seized.send(()).unwrap();
        wait.recv().unwrap();
    });
    ready.recv().unwrap();
    let own = std::process::id() as i32;
    match Tracker::attach(pid, &Injector::Here) {
        // The kernel names the tracing thread, not its process.
        Err(AttachError::Traced { tracer, .. }) => assert!(tracer > 0, "{own}"),
        other => panic!("{other:?}"),
    }
    done.send(()).unwrap();
    tracer.join().unwrap();
    // A thread is joined a moment before the kernel lets go of what it has traced.
    wait_for(|| child.status("TracerPid") == "0");
    assert!(Tracker::attach(pid, &Injector::Here).is_ok());
}

#[test]
fn a_process_that_has_ended_is_refused_by_name() {
    let mut child = Child::new();
    let pid = child.pid;
    child.end();
    assert!(matches!(Tracker::attach(pid, &Injector::Here), Err(AttachError::Gone { .. })));
}

#[test]
fn a_process_without_a_free_descriptor_is_refused_by_name() {
    let mut child = Child::new();
    let limit = child.words(&[0, 0]);
    child.good(libc::SYS_prlimit64, &[0, u64::from(libc::RLIMIT_NOFILE), limit, 0]);
    match Tracker::attach(child.pid, &Injector::Here) {
        Err(AttachError::NoUserfaultfd { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::EMFILE)),
        other => panic!("{other:?}"),
    }
    assert_eq!(child.status("TracerPid"), "0");
    assert_eq!(child.good(libc::SYS_getpid, &[]), child.pid as u64);
}

#[test]
fn a_32_bit_program_is_refused_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pause32");
    std::fs::write(&path, pause_32()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    // A kernel without 32-bit programs has nothing to refuse.
    let Ok(mut program) = std::process::Command::new(&path).spawn() else { return };
    let pid = program.id() as i32;
    let status = format!("/proc/{pid}/wchan");
    wait_for(|| std::fs::read_to_string(&status).is_ok());
    let refused = Tracker::attach(pid, &Injector::Here);
    let alive = program.try_wait().unwrap().is_none();
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(matches!(refused, Err(AttachError::Compat { .. })), "{refused:?}");
    assert!(alive);
}

/// The smallest 32-bit program: pause(2) for ever.
fn pause_32() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    // mov eax, 29; int 0x80; jmp back
    let code = [0xb8, 29, 0, 0, 0, 0xcd, 0x80, 0xeb, 0xf7];
    let length = HEADERS + code.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend(value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend(value.to_le_bytes());
    half(&mut file, 2);
    half(&mut file, 3);
    [1, BASE + HEADERS, 52, 0, 0].into_iter().for_each(|value| word(&mut file, value));
    [52, 32, 1, 0, 0, 0].into_iter().for_each(|value| half(&mut file, value));
    [1, 0, BASE, BASE, length, length, 5, 0x1000].into_iter().for_each(|value| word(&mut file, value));
    file.extend(code);
    file
}
