//! A process that makes gaps and second copies visible.
//!
//! Each tick is one datagram `tick <sequence> <realtime ns> <monotonic ns> <longest gap ns> <start ns>` from a socket
//! of its own. Two copies of one process go on with the same sequence, so a number that arrives twice proves a second
//! copy. A cold start is told by another `<start ns>`.

use clap::Args as ClapArgs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Resident memory to hold, MiB, filled with bytes that do not compress.
    #[arg(long, default_value_t = 1)]
    mib: usize,
    /// Hold it in shared memory, whose pages no engine copies before the freeze.
    #[arg(long)]
    shared: bool,
    /// Collector of the ticks.
    #[arg(long)]
    report: Option<SocketAddr>,
    /// Pages to write at each tick.
    #[arg(long, default_value_t = 0)]
    dirty_pages: usize,
    /// Pages to look at at each tick: one that does not hold what was put there ends the program.
    #[arg(long, default_value_t = 0)]
    check_pages: usize,
    /// Milliseconds between ticks.
    #[arg(long, default_value_t = 1)]
    every: u64,
    /// File that is opened once and appended to once a second, to show that open files move.
    #[arg(long)]
    log: Option<std::path::PathBuf>,
}

const PAGE: usize = 4096;
const WORDS_PER_PAGE: usize = PAGE / 8;

pub(crate) fn run(args: &Args) -> io::Result<()> {
    let words = args.mib * (1 << 20) / 8;
    let memory = if args.shared { shared(words)? } else { vec![0; words].leak() };
    memory.iter_mut().enumerate().for_each(|(index, word)| *word = noise(index));
    let pages = memory.len() / WORDS_PER_PAGE;
    let mut log = match &args.log {
        Some(path) => Some(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
        None => None,
    };
    let start = now(libc::CLOCK_REALTIME);
    println!("start {start}");
    let (mut previous, mut longest, mut page, mut checked) = (start, 0, 0, 0);
    for sequence in 0_u64.. {
        std::thread::sleep(Duration::from_millis(args.every));
        let realtime = now(libc::CLOCK_REALTIME);
        longest = longest.max(realtime - previous);
        previous = realtime;
        for _ in 0..args.dirty_pages.min(pages) {
            memory[page * WORDS_PER_PAGE] = sequence;
            // A stride that is prime to most sizes visits every page before it comes back.
            page = (page + 7919) % pages;
        }
        for _ in 0..args.check_pages.min(pages) {
            check(memory, checked)?;
            checked = (checked + 1) % pages;
        }
        if let Some(collector) = args.report {
            let text = format!("tick {sequence} {realtime} {} {longest} {start}", now(libc::CLOCK_MONOTONIC));
            tell(collector, &text);
        }
        if sequence % (1000 / args.every.max(1)).max(1) == 0 {
            println!("tick {sequence} longest {longest}");
            if let Some(log) = &mut log {
                use std::io::Write;
                writeln!(log, "tick {sequence}")?;
            }
        }
    }
    Ok(())
}

/// Sends one datagram from a fresh socket: nothing to restore, and the sender's address is the pod's of this moment. A
/// datagram that can't be sent is a tick the collector does not see, which is what it is there to notice.
fn tell(collector: SocketAddr, text: &str) {
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(text.as_bytes(), collector));
    if let Err(error) = sent {
        eprintln!("tick not told: {error}");
    }
}

/// Shared anonymous memory of `words` words, never unmapped.
fn shared(words: usize) -> io::Result<&'static mut [u64]> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping of this length at an address that the kernel chooses. Nobody else has it, it is aligned to a
    // page, zero means zero in every word, and it stays for as long as the process lives.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), words * size_of::<u64>(), protection, flags, -1, 0);
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(std::slice::from_raw_parts_mut(memory.cast(), words))
    }
}

/// An error unless the page holds what was put there. Its first word is what the program writes as it runs.
fn check(memory: &[u64], page: usize) -> io::Result<()> {
    let words = page * WORDS_PER_PAGE + 1..(page + 1) * WORDS_PER_PAGE;
    match words.clone().find(|index| memory[*index] != noise(*index)) {
        None => Ok(()),
        Some(index) => Err(io::Error::other(format!("word {index} of the memory is {:#x}", memory[index]))),
    }
}

/// What word `index` holds: no page is zero and none equals another. Source: the finalizer of splitmix64.
fn noise(index: usize) -> u64 {
    let mut word = (index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Nanoseconds of `clock`.
fn now(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, and both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_what_was_put_there_is_noticed() {
        let mut memory: Vec<u64> = (0..2 * WORDS_PER_PAGE).map(noise).collect();
        memory[0] = 7;
        assert!(check(&memory, 0).is_ok(), "the first word is the program's own");
        memory[WORDS_PER_PAGE + 9] ^= 1;
        assert!(check(&memory, 0).is_ok() && check(&memory, 1).is_err());
    }
}
