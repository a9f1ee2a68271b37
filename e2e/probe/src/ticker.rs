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
    /// Collector of the ticks.
    #[arg(long)]
    report: Option<SocketAddr>,
    /// Pages to write at each tick.
    #[arg(long, default_value_t = 0)]
    dirty_pages: usize,
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
    let mut memory = noise(args.mib * (1 << 20) / 8);
    let pages = memory.len() / WORDS_PER_PAGE;
    let mut log = match &args.log {
        Some(path) => Some(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
        None => None,
    };
    let start = now(libc::CLOCK_REALTIME);
    println!("start {start}");
    let (mut previous, mut longest, mut page) = (start, 0, 0);
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

/// Xorshift, so that no page is zero and none equals another.
fn noise(words: usize) -> Vec<u64> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..words)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        })
        .collect()
}

/// Nanoseconds of `clock`.
fn now(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call, and both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
