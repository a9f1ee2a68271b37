//! A thread that is stopped, made to run system calls, and let go as it was.

use super::restart::resumed;
use super::state::State;
use crate::memory::ptrace::{self, Registers, Stop};
use crate::memory::{AttachError, Range};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Longest wait for a thread to stop. A thread that waits for a disk or in vfork(2) does not stop, nor one in a frozen
/// v1 cgroup.
const LIMIT: Duration = Duration::from_secs(1);

/// How often a thread in a restartable sequence is let go and stopped again. Such a sequence takes nanoseconds.
const TRIES: u32 = 10;

/// Code segment of 64-bit programs: `__USER_CS` of the kernel.
const CODE_64: u64 = 0x33;

/// Every signal.
const ALL: u64 = u64::MAX;

/// A stopped first thread of a process. On drop it gets back its registers and signal mask and runs on.
#[derive(Debug)]
pub struct Traced {
    pid: i32,
    registers: Registers,
    mask: u64,
    /// True when the registers are others than it had.
    foreign: bool,
    /// True once it runs on, or has ended.
    released: bool,
    /// A SIGSTOP came meanwhile. It is the one signal that can't be blocked and must not be lost.
    stop_again: bool,
}

impl Traced {
    /// Stops the first thread of process `pid`, where it can be made to run system calls.
    pub fn stop(pid: i32, state: &State) -> Result<Self, AttachError> {
        seize(pid, state)?;
        for _ in 0..TRIES {
            wait_interrupted(pid)?;
            let stopped = |source| AttachError::Inject { pid, source };
            let registers = ptrace::registers(pid).map_err(stopped)?;
            let registers = resumed(registers);
            let mask = ptrace::signal_mask(pid).map_err(stopped)?;
            let traced = Self { pid, registers, mask, foreign: false, released: false, stop_again: false };
            if registers.cs != CODE_64 {
                return Err(AttachError::Compat { pid });
            }
            if ptrace::dispatches_syscalls(pid).map_err(stopped)? {
                return Err(AttachError::SyscallDispatch { pid });
            }
            if !in_restartable_sequence(pid, registers.rip).map_err(stopped)? {
                // A signal that came now would be handled amid the foreign registers.
                ptrace::set_signal_mask(pid, ALL).map_err(stopped)?;
                return Ok(traced);
            }
            // The kernel would see the foreign registers, take it that the sequence was left, and not abort it.
            let mut traced = traced;
            traced.released = true;
            ptrace::run(pid, 0).map_err(stopped)?;
        }
        Err(AttachError::RestartableSequence { pid, tries: TRIES })
    }

    /// Where the thread goes on.
    pub fn instruction(&self) -> u64 {
        self.registers.rip
    }

    /// Whether the thread goes on in `range`, or has its stack there.
    pub fn is_in(&self, range: &Range) -> bool {
        [self.registers.rip, self.registers.rsp].iter().any(|address| (range.start..range.end).contains(address))
    }

    /// Runs a system call with two arguments at most; the inner result is what it returned.
    ///
    /// There is no limit to the wait: what was begun with foreign registers must end before anything else can be done.
    pub fn call(&mut self, site: u64, number: i64, arguments: [u64; 2]) -> io::Result<io::Result<u64>> {
        let mut registers = self.registers;
        registers.rip = site;
        registers.rax = number as u64;
        // Not amid a system call: the kernel must not restart anything with these registers.
        registers.orig_rax = u64::MAX;
        [registers.rdi, registers.rsi] = arguments;
        self.foreign = true;
        ptrace::set_registers(self.pid, &registers)?;
        self.run_to(Stop::Syscall)?;
        self.run_to(Stop::Syscall)?;
        let result = ptrace::registers(self.pid)?.rax.cast_signed();
        // Source: the kernel's MAX_ERRNO.
        Ok(if (-4095..0).contains(&result) {
            Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL)))
        } else {
            Ok(result.cast_unsigned())
        })
    }

    /// Lets the thread run on as it was.
    pub fn release(mut self) -> io::Result<()> {
        self.restore()
    }

    fn restore(&mut self) -> io::Result<()> {
        if self.released {
            return Ok(());
        }
        self.released = true;
        if self.foreign {
            ptrace::set_registers(self.pid, &self.registers)?;
            // A system call that the first stop had interrupted is restarted where signals are handled, and only there.
            // Going through another such stop makes sure that the thread passes that place with its own registers.
            ptrace::interrupt(self.pid)?;
            self.run_to(Stop::Interrupted)?;
        }
        ptrace::set_signal_mask(self.pid, self.mask)?;
        ptrace::detach(self.pid)?;
        if self.stop_again {
            let pid = nix::unistd::Pid::from_raw(self.pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
        }
        Ok(())
    }

    /// Lets the thread run until it stops in this way. When the process is stopped meanwhile it goes on regardless; the
    /// kernel stops it after the tracing.
    fn run_to(&mut self, wanted: Stop) -> io::Result<()> {
        loop {
            if wanted == Stop::Syscall {
                ptrace::run_to_syscall(self.pid)?;
            } else {
                ptrace::run(self.pid, 0)?;
            }
            match ptrace::stop(self.pid, true)? {
                Some(stop) if stop == wanted => return Ok(()),
                Some(Stop::Ended) => {
                    self.released = true;
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                Some(Stop::Signal(libc::SIGSTOP)) => self.stop_again = true,
                _ => {}
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // What fails here fails because the process has ended; and the tracing ends with this thread.
        let _ = self.restore();
    }
}

fn seize(pid: i32, state: &State) -> Result<(), AttachError> {
    let suspend = if state.seccomp { ptrace::OPTION_SUSPEND_SECCOMP } else { 0 };
    let Err(source) = ptrace::seize(pid, ptrace::OPTION_SYSCALL_GOOD | suspend) else { return Ok(()) };
    if source.raw_os_error() == Some(libc::ESRCH) {
        return Err(AttachError::Gone { pid });
    }
    // Refused the same way by a process that somebody has begun to trace, and by one that may not be traced at all.
    super::state::read(pid)?.refuse(pid)?;
    if state.seccomp && ptrace::seize(pid, ptrace::OPTION_SYSCALL_GOOD).is_ok() {
        return Err(AttachError::SeccompSuspend { pid, source });
    }
    Err(AttachError::Seize { pid, source })
}

/// Interrupts the thread and waits until it stands where signals are handled.
fn wait_interrupted(pid: i32) -> Result<(), AttachError> {
    let begin = Instant::now();
    let failed = |source| AttachError::Inject { pid, source };
    ptrace::interrupt(pid).map_err(failed)?;
    let mut tries = 0u32;
    loop {
        match ptrace::stop(pid, false).map_err(failed)? {
            Some(Stop::Interrupted) => return Ok(()),
            Some(Stop::Ended) => return Err(AttachError::Gone { pid }),
            Some(Stop::Group) => {
                ptrace::detach(pid).map_err(failed)?;
                return Err(AttachError::Stopped { pid });
            }
            // On its way already when the tracing began; the interruption comes after it.
            Some(Stop::Signal(signal)) => ptrace::run(pid, signal).map_err(failed)?,
            Some(Stop::Syscall) => ptrace::run(pid, 0).map_err(failed)?,
            None if begin.elapsed() >= LIMIT => return Err(AttachError::NotStopped { pid, limit: LIMIT }),
            None => {
                tries += 1;
                // It usually stops within the time that a sleep would take at least.
                if tries < 200 {
                    std::thread::yield_now();
                } else {
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }
}

/// True when the thread would go on at `next` inside a restartable sequence.
/// Source: `struct rseq` and `struct rseq_cs` in include/uapi/linux/rseq.h of the kernel.
fn in_restartable_sequence(pid: i32, next: u64) -> io::Result<bool> {
    const POINTER: u64 = 8;
    const START: u64 = 8;
    const LENGTH: u64 = 16;
    let rseq = match ptrace::rseq(pid) {
        Ok(rseq) => rseq,
        // A kernel without restartable sequences.
        Err(error) if [Some(libc::EIO), Some(libc::EINVAL)].contains(&error.raw_os_error()) => return Ok(false),
        Err(error) => return Err(error),
    };
    if rseq.address == 0 {
        return Ok(false);
    }
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let word = |address| {
        let mut bytes = [0; 8];
        memory.read_exact_at(&mut bytes, address).map(|()| u64::from_le_bytes(bytes))
    };
    let sequence = word(rseq.address + POINTER)?;
    if sequence == 0 {
        return Ok(false);
    }
    let (start, length) = (word(sequence + START)?, word(sequence + LENGTH)?);
    Ok(next.checked_sub(start).is_some_and(|offset| offset < length))
}
