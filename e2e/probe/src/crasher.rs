//! A program that ends badly after a while: what is restarted in the benchmark of restarts.
//!
//! It reads the clock in its very first instructions, before the C library's and Rust's own start-up, so that what is measured
//! is how soon a program begins and not how long this one takes to get ready. What it has read it appends to a file that all
//! its runs share: `start <ns>` for each beginning, `crash <ns>` for each end, nanoseconds of CLOCK_MONOTONIC.
//!
//! It ends by exit code, not by a signal: the kernel keeps the first process of a PID namespace from killing itself, and
//! without a supervisor in its container the crasher is just that.
//!
//! It takes its orders from the environment, because some supervisors start a program without arguments of its own. With
//! arguments it is something else: `--floor PROGRAM` is the least that can restart anything, and `--begin PROGRAM...` notes
//! `begin <ns>` and becomes another program.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The file that all runs append to.
const STAMPS: &str = "RESTART_STAMPS";
/// How long a run lasts that ends, milliseconds.
const LIFE: &str = "RESTART_LIFE";
/// How many runs end. The one after them stays.
const CRASHES: &str = "RESTART_CRASHES";

/// Where a run says with an empty line that it is ready, if it is to: s6's way of saying it.
const READY: &str = "RESTART_READY";

/// Exit code of a run that ends: neither success nor one that any supervisor knows.
const CRASHED: i32 = 70;

/// Seconds and nanoseconds of CLOCK_MONOTONIC when this process began.
static FIRST: [AtomicI64; 2] = [const { AtomicI64::new(0) }; 2];

// Where the kernel, or the loader of a program that is not static, enters. Whatever register it has put something into is as it
// was when `_start` goes on. `clock_gettime` writes to `FIRST`, which is as long as a timespec.
#[cfg(target_arch = "x86_64")]
std::arch::global_asm!(
    ".globl first_instruction",
    "first_instruction:",
    "mov eax, {call}",
    "mov edi, {clock}",
    "lea rsi, [rip + {first}]",
    "syscall",
    "jmp _start",
    call = const libc::SYS_clock_gettime,
    clock = const libc::CLOCK_MONOTONIC,
    first = sym FIRST,
);
#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    ".globl first_instruction",
    "first_instruction:",
    "mov x19, x0",
    "mov x8, {call}",
    "mov x0, {clock}",
    "adrp x1, {first}",
    "add x1, x1, :lo12:{first}",
    "svc 0",
    "mov x0, x19",
    "b _start",
    call = const libc::SYS_clock_gettime,
    clock = const libc::CLOCK_MONOTONIC,
    first = sym FIRST,
);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    let ended = match first.as_ref().and_then(|word| word.to_str()) {
        Some("--floor") => floor(arguments),
        Some("--begin") => begin(arguments),
        _ => application(),
    };
    match ended {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("crasher: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What returns only where it fails.
enum Never {}

fn application() -> io::Result<Never> {
    let (path, mut stamps) = stamps()?;
    note(&mut stamps, "start", began())?;
    if let Some(ready) = std::env::var_os(READY) {
        OpenOptions::new().write(true).open(ready)?.write_all(b"\n")?;
    }
    let crashes = std::fs::read_to_string(path)?.lines().filter(|line| line.starts_with("crash ")).count() as u64;
    if crashes < number(CRASHES)? {
        std::thread::sleep(Duration::from_millis(number(LIFE)?));
        note(&mut stamps, "crash", now())?;
        // SAFETY: ends this process and touches no memory.
        unsafe { libc::_exit(CRASHED) }
    }
    loop {
        // SAFETY: takes no argument and touches no memory.
        unsafe { libc::pause() };
    }
}

/// Starts a program again whenever it ends, with nothing else to do.
fn floor(mut arguments: impl Iterator<Item = OsString>) -> io::Result<Never> {
    let program = arguments.next().ok_or_else(|| io::Error::other("which program?"))?;
    let program = CString::new(program.into_vec())?;
    let line = [program.as_ptr(), std::ptr::null()];
    loop {
        // SAFETY: this process has one thread, so no lock can be held by another at the fork; the child makes system calls only.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: `line` is a list of C strings that ends with a null, and its strings live.
                unsafe { libc::execv(program.as_ptr(), line.as_ptr()) };
                // SAFETY: ends this process and touches no memory. As a shell does where there is no such program.
                unsafe { libc::_exit(127) }
            }
            child => {
                // SAFETY: a child of this process that nobody else waits for; no status is asked for.
                if unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) } != child {
                    return Err(io::Error::last_os_error());
                }
            }
        }
    }
}

/// Becomes another program after noting when.
fn begin(mut arguments: impl Iterator<Item = OsString>) -> io::Result<Never> {
    let program = arguments.next().ok_or_else(|| io::Error::other("which program?"))?;
    note(&mut stamps()?.1, "begin", began())?;
    Err(Command::new(program).args(arguments).exec())
}

fn stamps() -> io::Result<(PathBuf, File)> {
    let path = PathBuf::from(std::env::var_os(STAMPS).ok_or_else(|| io::Error::other(format!("no {STAMPS}")))?);
    let file = OpenOptions::new().create(true).append(true).open(&path)?;
    Ok((path, file))
}

/// In one write: nobody sees half a line, and next to nothing lies between the reading of a clock and what comes after.
fn note(stamps: &mut File, word: &str, at: i64) -> io::Result<()> {
    stamps.write_all(format!("{word} {at}\n").as_bytes())
}

fn number(variable: &str) -> io::Result<u64> {
    let value = std::env::var(variable).map_err(|error| io::Error::other(format!("{variable}: {error}")))?;
    value.parse().map_err(|error| io::Error::other(format!("{variable}: {error}")))
}

/// When this process began, nanoseconds.
fn began() -> i64 {
    FIRST[0].load(Ordering::Relaxed) * 1_000_000_000 + FIRST[1].load(Ordering::Relaxed)
}

fn now() -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, and the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
