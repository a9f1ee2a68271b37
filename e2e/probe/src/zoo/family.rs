//! Processes that share pages copy-on-write, and threads with stacks of their own.

use super::PASS;
use super::layout::map;
use super::region::Region;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many there are beside the first process.
const CHILDREN: usize = 2;
/// How many there are beside the first thread.
const THREADS: usize = 2;
/// Bytes that the children have of their parent.
const INHERITED: usize = 8 << 20;
/// Words on the stack of a thread, 256 KiB.
const STACK: usize = (256 << 10) / size_of::<u64>();

/// The children.
pub(super) struct Family {
    /// Passes of each, in memory that all share.
    passes: &'static [AtomicU64],
    pids: Vec<i32>,
}

/// Forks children that go on by themselves, each with its own version of the memory that they have from their parent.
pub(super) fn start(every: Duration) -> io::Result<Family> {
    let mut region = Region::new("inherited", 30, map(INHERITED, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)?);
    region.fill()?;
    let words = map(4096, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
    // SAFETY: aligned, as long, never unmapped, and used in no other way.
    let passes: &'static [AtomicU64] = unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), words.len()) };
    let mut pids = Vec::new();
    for (child, passes) in passes.iter().enumerate().take(CHILDREN) {
        // SAFETY: there is no other thread yet, so the child may do whatever this process may.
        match unsafe { libc::fork() } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {
                // SAFETY: a signal and nothing else: no child outlives the program.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                let Err(error) = go_on(region, every, passes);
                eprintln!("zoo: child {child}: {error}");
                std::process::exit(1);
            }
            pid => pids.push(pid),
        }
    }
    Ok(Family { passes, pids })
}

impl Family {
    /// How often the children have looked at all of their memory.
    ///
    /// # Errors
    /// Where one has ended, which it does if a page is not what it must be.
    pub(super) fn passes(&self) -> io::Result<u64> {
        for pid in &self.pids {
            let mut status = 0;
            // SAFETY: `status` may be written.
            if unsafe { libc::waitpid(*pid, &mut status, libc::WNOHANG) } != 0 {
                return Err(io::Error::other(format!("child {pid} has ended with status {status:#x}")));
            }
        }
        Ok(self.passes.iter().map(|passes| passes.load(Ordering::Relaxed)).sum())
    }
}

/// The threads.
pub(super) struct Threads {
    passes: Arc<AtomicU64>,
}

/// Starts threads that write to and look at memory on their own stacks. One that finds a wrong page ends the program.
pub(super) fn threads(every: Duration) -> Threads {
    let passes = Arc::new(AtomicU64::new(0));
    for thread in 0..THREADS as u64 {
        let passes = passes.clone();
        std::thread::spawn(move || {
            let mut stack = [0_u64; STACK];
            let looped = Region::borrowed("thread's stack", 50 + thread, &mut stack)
                .and_then(|mut region| region.fill().and_then(|()| go_on(region, every, &passes)));
            let Err(error) = looped;
            eprintln!("zoo: thread {thread}: {error}");
            std::process::exit(1);
        });
    }
    Threads { passes }
}

impl Threads {
    /// How often they have looked at all of their memory.
    pub(super) fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }
}

/// Writes and looks, until a page is not what it must be.
fn go_on(mut region: Region, every: Duration, passes: &AtomicU64) -> io::Result<std::convert::Infallible> {
    let mut step = 0;
    loop {
        std::thread::sleep(every);
        step += 1;
        region.write(step)?;
        if step % PASS == 0 {
            region.verify(step)?;
            passes.fetch_add(1, Ordering::Relaxed);
        }
    }
}
