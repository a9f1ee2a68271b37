//! A child process that does what it is told: runs one system call, or stores one byte, per command.
//!
//! It is forked from the test program, so all it may do is enter the kernel.

use super::super::Range;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Store a byte instead of running a system call.
const STORE: i64 = -1;

pub const PAGE: u64 = 4096;
pub const MIB: u64 = 1 << 20;

type Command = [i64; 7];

#[derive(Debug)]
pub struct Child {
    pub pid: i32,
    commands: File,
    answers: File,
}

impl Child {
    pub fn new() -> Self {
        let (theirs, commands) = pipe();
        let (answers, back) = pipe();
        // SAFETY: the child only enters the kernel and stores where the test says; it never returns.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            obey(&theirs, &back);
        }
        assert!(pid > 0);
        let mut child = Self { pid, commands, answers };
        // Until it has answered it may still hold descriptors of other tests.
        child.good(libc::SYS_getpid, &[]);
        child
    }

    /// One that has given back the test program's heap, which it never uses. How much of it is in memory depends on the tests before
    /// this one: a whole huge page, or nothing.
    pub fn without_heap() -> Self {
        let mut child = Self::new();
        let stack = (&raw const child).addr() as u64;
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.pid)).unwrap();
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (start, end) = words[0].split_once('-').unwrap();
            let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).unwrap());
            // What is small and has no name may be the main thread's own.
            let is_heap =
                words[1] == "rw-p" && (words.get(5) == Some(&"[heap]") || words.len() == 5 && end - start >= MIB / 4);
            if is_heap && !(start..end).contains(&stack) {
                child.good(libc::SYS_madvise, &[start, end - start, libc::MADV_DONTNEED as u64]);
            }
        }
        child
    }

    /// Gives a command without waiting for the answer.
    pub fn tell(&mut self, number: i64, arguments: &[u64]) {
        let mut command: Command = [0; 7];
        command[0] = number;
        for (slot, argument) in command[1..].iter_mut().zip(arguments) {
            *slot = argument.cast_signed();
        }
        let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.commands.write_all(&bytes).unwrap();
    }

    pub fn answer(&mut self) -> i64 {
        let mut bytes = [0; 8];
        self.answers.read_exact(&mut bytes).unwrap();
        i64::from_ne_bytes(bytes)
    }

    /// Result of a system call, negative for an error.
    pub fn call(&mut self, number: i64, arguments: &[u64]) -> i64 {
        self.tell(number, arguments);
        self.answer()
    }

    pub fn good(&mut self, number: i64, arguments: &[u64]) -> u64 {
        let result = self.call(number, arguments);
        assert!(result >= 0, "system call {number} {arguments:x?}: {result}");
        result.cast_unsigned()
    }

    /// Private anonymous memory at an address of the kernel's choice, or at `address`.
    pub fn map(&mut self, address: u64, length: u64) -> Range {
        let fixed = if address == 0 { 0 } else { libc::MAP_FIXED };
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed) as u64;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let start = self.good(libc::SYS_mmap, &[address, length, protection, flags, u64::MAX, 0]);
        Range { start, end: start + length }
    }

    /// Memory that no neighbour merges with: between two pages without access.
    pub fn island(&mut self, length: u64) -> Range {
        let all = self.map(0, length + 2 * PAGE);
        self.good(libc::SYS_mprotect, &[all.start, PAGE, 0]);
        self.good(libc::SYS_mprotect, &[all.end - PAGE, PAGE, 0]);
        Range { start: all.start + PAGE, end: all.end - PAGE }
    }

    pub fn store(&mut self, address: u64, byte: u8) {
        assert_eq!(self.call(STORE, &[address, u64::from(byte)]), 0);
    }

    /// Stores one byte in each page.
    pub fn fill(&mut self, range: Range, byte: u8) {
        for address in (range.start..range.end).step_by(PAGE as usize) {
            self.store(address, byte);
        }
    }

    /// Forks, and stops the new process, which would read the commands of this one: its id.
    pub fn fork(&mut self) -> i32 {
        // Both go on at the same place and answer.
        self.tell(libc::SYS_clone, &[libc::SIGCHLD as u64, 0, 0, 0, 0]);
        let answers = [self.answer(), self.answer()];
        let forked = answers.into_iter().max().unwrap() as i32;
        // SAFETY: the call takes numbers; the process has a parent that has not waited for it.
        assert_eq!(unsafe { libc::kill(forked, libc::SIGSTOP) }, 0);
        let stat = format!("/proc/{forked}/stat");
        wait_for(|| std::fs::read_to_string(&stat).unwrap().contains(") T "));
        forked
    }

    /// Ends a process that this one has forked.
    pub fn reap(&mut self, forked: i32) {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::kill(forked, libc::SIGKILL) }, 0);
        let stat = format!("/proc/{forked}/stat");
        wait_for(|| std::fs::read_to_string(&stat).unwrap().contains(") Z "));
        assert_eq!(self.good(libc::SYS_wait4, &[forked as u64, 0, 0, 0]), forked as u64);
    }

    /// Becomes a program that sleeps, and takes no more commands.
    pub fn execute_another(&mut self) {
        let program = c"/bin/sleep".as_ptr() as u64;
        let list = self.words(&[program, c"600".as_ptr() as u64, 0]);
        let exe = format!("/proc/{}/exe", self.pid);
        let name = std::fs::read_link(&exe).unwrap();
        self.tell(libc::SYS_execve, &[program, list, 0]);
        wait_for(|| std::fs::read_link(&exe).unwrap() != name);
        // Amid execve(2) the numbers that tell the programs apart are not there yet.
        self.wait_in(libc::SYS_clock_nanosleep);
    }

    /// Puts bytes into memory of their own; their address.
    pub fn bytes(&mut self, bytes: &[u8]) -> u64 {
        let place = self.island(MIB).start;
        for (address, byte) in (place..).zip(bytes) {
            self.store(address, *byte);
        }
        place
    }

    pub fn words(&mut self, words: &[u64]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.bytes(&bytes)
    }

    pub fn peek(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(format!("/proc/{}/mem", self.pid)).unwrap().read_exact_at(&mut bytes, address).unwrap();
        bytes
    }

    pub fn status(&self, key: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap().trim().to_owned()
    }

    /// Waits until the process waits in this system call.
    pub fn wait_in(&self, number: i64) {
        let path = format!("/proc/{}/syscall", self.pid);
        wait_for(|| std::fs::read_to_string(&path).unwrap().starts_with(&format!("{number} ")));
    }

    /// Waits until the process waits for the next command.
    pub fn wait_idle(&self) {
        self.wait_in(libc::SYS_read);
    }

    pub fn descriptors(&self) -> Vec<(String, String)> {
        let mut all: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", self.pid))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let target = std::fs::read_link(entry.path()).unwrap();
                (entry.file_name().to_string_lossy().into_owned(), target.to_string_lossy().into_owned())
            })
            .collect();
        all.sort();
        all
    }

    /// What the kernel shows of the registers while the process waits in a system call.
    pub fn syscall(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/syscall", self.pid)).unwrap()
    }

    pub fn signal(&self, signal: i32) {
        // SAFETY: the call takes numbers; the process is a child of ours that was not waited for.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }

    pub fn end(&mut self) -> i32 {
        let mut status = 0;
        // SAFETY: a child of ours that was not waited for yet; `status` lives through the call.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, &raw mut status, 0);
        }
        self.pid = 0;
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.pid > 0 {
            self.end();
        }
    }
}

pub fn wait_for(condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "it did not happen");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn pipe() -> (File, File) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

fn obey(commands: &File, answers: &File) -> ! {
    let (from, to) = (commands.as_raw_fd(), answers.as_raw_fd());
    // The test program's own descriptors would be the child's: other tests wait for their end.
    let (low, high) = (from.min(to) as u32, from.max(to) as u32);
    // SAFETY: entering the kernel with buffers on this stack, and what the test asked for.
    unsafe {
        libc::close_range(3, low - 1, 0);
        if high > low + 1 {
            libc::close_range(low + 1, high - 1, 0);
        }
        libc::close_range(high + 1, libc::c_uint::MAX, 0);
        loop {
            let mut command: Command = [0; 7];
            if libc::read(from, command.as_mut_ptr().cast(), size_of::<Command>()) != size_of::<Command>() as isize {
                libc::_exit(0);
            }
            let [number, a, b, c, d, e, f] = command;
            let mut result = 0i64;
            if number == STORE {
                std::ptr::write_volatile(a as *mut u8, b as u8);
            } else {
                result = libc::syscall(number, a, b, c, d, e, f);
                if result == -1 {
                    result = -i64::from(*libc::__errno_location());
                }
            }
            if libc::write(to, (&raw const result).cast(), 8) != 8 {
                libc::_exit(0);
            }
        }
    }
}
