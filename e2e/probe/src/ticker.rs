//! A process that makes gaps and second copies visible.
//!
//! Each tick is one datagram `tick <sequence> <realtime ns> <monotonic ns> <longest gap ns> <start ns> <work>` from a
//! socket of its own. Two copies of one process go on with the same sequence, so a number that arrives twice proves a second
//! copy. A cold start is told by another `<start ns>`. `<work>` is the number of operations that are done beside ticking.

use clap::Args as ClapArgs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::beside::Beside;
use crate::pace::Pace;
use crate::{layer, mapping, noise, notify, work};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Resident memory to hold, MiB, filled with bytes that do not compress.
    #[arg(long, default_value_t = 1)]
    mib: usize,
    /// Hold it in shared memory.
    #[arg(long)]
    shared: bool,
    /// Hold it in mappings so short that they are not followed: all of it is copied in the freeze.
    #[arg(long)]
    scattered: bool,
    /// Collector of the ticks.
    #[arg(long)]
    report: Option<SocketAddr>,
    /// Pages to write at each tick.
    #[arg(long, default_value_t = 0)]
    dirty_pages: usize,
    /// Pages to write a second, beside those.
    #[arg(long, default_value_t = 0)]
    dirty_rate: u64,
    /// Operations a second that a thread beside the ticker tries for; 0 means as many as it can. See [`crate::work`].
    #[arg(long)]
    work: Option<u64>,
    /// Pages to look at at each tick: one that does not hold what was put there ends the program.
    #[arg(long, default_value_t = 0)]
    check_pages: usize,
    /// Milliseconds between ticks.
    #[arg(long, default_value_t = 1)]
    every: u64,
    /// File that is opened once and appended to once a second, to show that open files move.
    #[arg(long)]
    log: Option<std::path::PathBuf>,
    /// Say READY=1 to a supervisor, and WATCHDOG=1 once a second, in which the ticker is seen to go on.
    #[arg(long)]
    notify: bool,
    /// File in which it counts its ticks, beside a program that counts in `--theirs`.
    #[arg(long, requires = "theirs")]
    ours: Option<std::path::PathBuf>,
    /// File in which that one counts. A count that goes back ends the program.
    #[arg(long, requires = "ours")]
    theirs: Option<std::path::PathBuf>,
    /// File that makes the program hang, ticks and all, as soon as it is there. It is removed first: the next run does not.
    #[arg(long)]
    hang: Option<std::path::PathBuf>,
    /// File that ends the program, with success, as soon as it is there.
    #[arg(long)]
    end: Option<std::path::PathBuf>,
    #[command(flatten)]
    files: layer::Args,
}

const PAGE: usize = 4096;
/// How often a supervisor is told that the ticker goes on.
const ANSWER_EVERY: Duration = Duration::from_secs(1);
/// Words of a page.
pub(crate) const WORDS_PER_PAGE: usize = PAGE / 8;

/// What a tick says, besides the time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tick {
    /// Its number.
    pub(crate) sequence: u64,
    /// The longest gap so far, nanoseconds; the loads' ticks tell of the time since the tick before.
    pub(crate) longest: i64,
    /// When the program started, realtime nanoseconds.
    pub(crate) start: i64,
    /// Operations that are done.
    pub(crate) work: u64,
}

pub(crate) fn run(args: &Args) -> io::Result<()> {
    run_after(args, || Ok(()))
}

/// Calls `filled` once the memory is there, then ticks.
pub(crate) fn run_after(args: &Args, filled: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let words = args.mib * (1 << 20) / 8;
    let memory = if args.shared { shared(words)? } else { private(words) };
    if args.scattered {
        mapping::scatter(memory)?;
    }
    filled()?;
    layer::start(&args.files)?;
    let work = args.work.map(|per_second| work::start(memory, per_second)).transpose()?;
    let pages = memory.len() / WORDS_PER_PAGE;
    let mut log = match &args.log {
        Some(path) => Some(std::fs::OpenOptions::new().create(true).append(true).open(path)?),
        None => None,
    };
    let mut beside = args
        .ours
        .as_deref()
        .zip(args.theirs.as_deref())
        .map(|(ours, theirs)| Beside::open(ours, theirs))
        .transpose()?;
    let start = now(libc::CLOCK_REALTIME);
    println!("start {start}");
    if args.notify {
        notify::say("READY=1")?;
    }
    let (mut pace, mut last) = (Pace::new(args.dirty_rate), Instant::now());
    let mut answered = Instant::now();
    let (mut previous, mut longest, mut page, mut checked) = (start, 0, 0, 0);
    for sequence in 0_u64.. {
        std::thread::sleep(Duration::from_millis(args.every));
        if args.hang.as_ref().is_some_and(|file| std::fs::remove_file(file).is_ok()) {
            hang();
        }
        if args.end.as_ref().is_some_and(|file| file.exists()) {
            return Ok(());
        }
        let realtime = now(libc::CLOCK_REALTIME);
        longest = longest.max(realtime - previous);
        previous = realtime;
        let due = if pages == 0 { 0 } else { pace.due(last.elapsed()) };
        last = Instant::now();
        for _ in 0..args.dirty_pages.min(pages) as u64 + due {
            memory[page * WORDS_PER_PAGE].store(sequence, Ordering::Relaxed);
            // A stride that is prime to most sizes visits every page before it comes back.
            page = (page + 7919) % pages;
        }
        for _ in 0..args.check_pages.min(pages) {
            check(memory, checked)?;
            checked = (checked + 1) % pages;
        }
        if let Some(beside) = &mut beside {
            beside.count(sequence)?;
        }
        // Not by the number of ticks: they take longer where the machine is busy.
        if args.notify && answered.elapsed() >= ANSWER_EVERY {
            notify::say("WATCHDOG=1")?;
            answered = Instant::now();
        }
        if let Some(collector) = args.report {
            let work = work.as_ref().map_or(0, |done| done.load(Ordering::Relaxed));
            Tick { sequence, longest, start, work }.tell(collector, realtime);
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

/// Does nothing any more, until a signal ends the program.
fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// Private memory of `words` words of noise, never freed.
fn private(words: usize) -> &'static [AtomicU64] {
    (0..words as u64).map(|index| AtomicU64::new(noise::word(index))).collect::<Vec<_>>().leak()
}

/// The same in shared memory.
fn shared(words: usize) -> io::Result<&'static [AtomicU64]> {
    let memory = mapping::shared(words)?;
    memory.iter().zip(0..).for_each(|(word, index)| word.store(noise::word(index), Ordering::Relaxed));
    Ok(memory)
}

impl Tick {
    /// Tells `collector` of the tick at `realtime`, nanoseconds.
    pub(crate) fn tell(self, collector: SocketAddr, realtime: i64) {
        let Self { sequence, longest, start, work } = self;
        let monotonic = now(libc::CLOCK_MONOTONIC);
        tell(collector, &format!("tick {sequence} {realtime} {monotonic} {longest} {start} {work}"));
    }
}

/// Sends one datagram from a fresh socket: nothing to restore, and the sender's address is the pod's of this moment. A
/// datagram that can't be sent is a tick the collector does not see, which is what it is there to notice.
fn tell(collector: SocketAddr, text: &str) {
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(text.as_bytes(), collector));
    if let Err(error) = sent {
        eprintln!("tick not told: {error}");
    }
}

/// An error unless the page holds what was put there. Its first word is what the program writes as it runs.
fn check(memory: &[AtomicU64], page: usize) -> io::Result<()> {
    let words = page * WORDS_PER_PAGE + 1..(page + 1) * WORDS_PER_PAGE;
    let found = |index: usize| memory[index].load(Ordering::Relaxed);
    match words.clone().find(|index| found(*index) != noise::word(*index as u64)) {
        None => Ok(()),
        Some(index) => Err(io::Error::other(format!("word {index} of the memory is {:#x}", found(index)))),
    }
}

/// Nanoseconds of `clock`.
pub(crate) fn now(clock: libc::clockid_t) -> i64 {
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
        let memory: Vec<_> = (0..2 * WORDS_PER_PAGE as u64).map(|index| AtomicU64::new(noise::word(index))).collect();
        memory[0].store(7, Ordering::Relaxed);
        assert!(check(&memory, 0).is_ok(), "the first word is the program's own");
        memory[WORDS_PER_PAGE + 9].fetch_xor(1, Ordering::Relaxed);
        assert!(check(&memory, 0).is_ok() && check(&memory, 1).is_err());
    }
}
