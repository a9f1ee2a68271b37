//! The calls of ptrace(2) that are needed, and waiting for a traced thread. It holds the `unsafe` of those calls and
//! nothing else.
//!
//! Source of the numbers: include/uapi/linux/ptrace.h of the kernel.

use libc::{c_long, c_void, pid_t};
use std::io;

pub use libc::user_regs_struct as Registers;

/// A stop of a system call is told from a SIGTRAP.
pub const OPTION_SYSCALL_GOOD: usize = 0x1;
/// No seccomp filter is asked while the thread is traced.
pub const OPTION_SUSPEND_SECCOMP: usize = 1 << 21;

const CONT: i64 = 7;
const GET_REGISTERS: i64 = 12;
const SET_REGISTERS: i64 = 13;
const DETACH: i64 = 17;
const SYSCALL: i64 = 24;
const SEIZE: i64 = 0x4206;
const INTERRUPT: i64 = 0x4207;
const GET_SIGNAL_MASK: i64 = 0x420a;
const SET_SIGNAL_MASK: i64 = 0x420b;
const GET_RSEQ: i64 = 0x420f;
const GET_SYSCALL_DISPATCH: i64 = 0x4210;

const EVENT_STOP: i32 = 128;

/// How a traced thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It was interrupted.
    Interrupted,
    /// It takes part in a stop of the whole process.
    Group,
    /// It is about to be handed this signal.
    Signal(i32),
    /// It enters or leaves a system call.
    Syscall,
    /// It has ended.
    Ended,
}

/// Where a thread keeps its restartable sequence.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Rseq {
    /// Address of its `struct rseq`, 0 without one.
    pub address: u64,
    size: u32,
    signature: u32,
    flags: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Debug, Default)]
struct SyscallDispatch {
    mode: u64,
    selector: u64,
    offset: u64,
    length: u64,
}

/// Starts to trace thread `tid`, which runs on. The tracing ends with the calling thread at the latest.
pub fn seize(tid: pid_t, options: usize) -> io::Result<()> {
    // SAFETY: the data of SEIZE is a number.
    unsafe { request(SEIZE, tid, 0, options as *mut c_void) }
}

/// Asks the thread to stop.
pub fn interrupt(tid: pid_t) -> io::Result<()> {
    // SAFETY: INTERRUPT has no data.
    unsafe { request(INTERRUPT, tid, 0, std::ptr::null_mut()) }
}

/// Lets a stopped thread run, and hands it `signal` unless that is 0.
pub fn run(tid: pid_t, signal: i32) -> io::Result<()> {
    // SAFETY: the data of CONT is a number.
    unsafe { request(CONT, tid, 0, signal as usize as *mut c_void) }
}

/// Lets a stopped thread run to where it enters or leaves a system call.
pub fn run_to_syscall(tid: pid_t) -> io::Result<()> {
    // SAFETY: the data of SYSCALL is a number.
    unsafe { request(SYSCALL, tid, 0, std::ptr::null_mut()) }
}

/// Ends the tracing of a stopped thread, which runs on.
pub fn detach(tid: pid_t) -> io::Result<()> {
    // SAFETY: the data of DETACH is a number.
    unsafe { request(DETACH, tid, 0, std::ptr::null_mut()) }
}

/// The registers of a stopped thread.
pub fn registers(tid: pid_t) -> io::Result<Registers> {
    let mut registers = no_registers();
    // SAFETY: the kernel writes one struct user_regs_struct to the data.
    unsafe { request(GET_REGISTERS, tid, 0, (&raw mut registers).cast()) }?;
    Ok(registers)
}

/// Registers that are all zero.
pub fn no_registers() -> Registers {
    // SAFETY: all fields are integers, for which zeroes are a value.
    unsafe { std::mem::zeroed() }
}

/// Gives a stopped thread these registers.
pub fn set_registers(tid: pid_t, registers: &Registers) -> io::Result<()> {
    // SAFETY: the kernel reads one struct user_regs_struct from the data.
    unsafe { request(SET_REGISTERS, tid, 0, std::ptr::from_ref(registers).cast_mut().cast()) }
}

/// The signals that a stopped thread blocks: bit 0 for signal 1.
pub fn signal_mask(tid: pid_t) -> io::Result<u64> {
    let mut mask = 0u64;
    // SAFETY: the kernel writes as many bytes to the data as the address says.
    unsafe { request(GET_SIGNAL_MASK, tid, size_of::<u64>(), (&raw mut mask).cast()) }?;
    Ok(mask)
}

/// Gives a stopped thread this mask of blocked signals.
pub fn set_signal_mask(tid: pid_t, mask: u64) -> io::Result<()> {
    // SAFETY: the kernel reads as many bytes from the data as the address says.
    unsafe { request(SET_SIGNAL_MASK, tid, size_of::<u64>(), (&raw const mask).cast_mut().cast()) }
}

/// Where a stopped thread keeps its restartable sequence.
pub fn rseq(tid: pid_t) -> io::Result<Rseq> {
    let mut rseq = Rseq::default();
    // SAFETY: the kernel writes as many bytes to the data as the address says.
    unsafe { request(GET_RSEQ, tid, size_of::<Rseq>(), (&raw mut rseq).cast()) }?;
    Ok(rseq)
}

/// True when a stopped thread has system calls handed to itself.
pub fn dispatches_syscalls(tid: pid_t) -> io::Result<bool> {
    let mut dispatch = SyscallDispatch::default();
    // SAFETY: the kernel writes as many bytes to the data as the address says.
    unsafe { request(GET_SYSCALL_DISPATCH, tid, size_of::<SyscallDispatch>(), (&raw mut dispatch).cast()) }?;
    Ok(dispatch.mode != 0)
}

/// How thread `tid` stands since it was asked last: none while it runs. With `patient`, waits until it stops.
pub fn stop(tid: pid_t, patient: bool) -> io::Result<Option<Stop>> {
    let mut status = 0;
    let options = libc::__WALL | if patient { 0 } else { libc::WNOHANG };
    // SAFETY: `status` lives through the call.
    match unsafe { libc::waitpid(tid, &raw mut status, options) } {
        0 => return Ok(None),
        -1 => return Err(io::Error::last_os_error()),
        _ => {}
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Some(Stop::Ended));
    }
    let signal = libc::WSTOPSIG(status);
    Ok(Some(match status >> 16 {
        EVENT_STOP if signal == libc::SIGTRAP => Stop::Interrupted,
        EVENT_STOP => Stop::Group,
        _ if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        _ => Stop::Signal(signal),
    }))
}

/// # Safety
/// `data` must be what `code` expects: a number, or a pointer to memory that the kernel may read or write for it.
unsafe fn request(code: i64, tid: pid_t, address: usize, data: *mut c_void) -> io::Result<()> {
    // SAFETY: as the caller has promised.
    let answer: c_long = unsafe { libc::ptrace(code as _, tid, address as *mut c_void, data) };
    if answer == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
