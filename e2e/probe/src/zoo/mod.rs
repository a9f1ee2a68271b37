//! A process with memory of every kind, all of which it knows at any time.
//!
//! What a page holds follows from its region, its number and the step at which it was written last, and that from the step
//! that the process is at. So no second record is needed that could be as wrong as the memory itself, and one that goes
//! back repeats a number that the collector has seen. Every [`PASS`] steps every page is looked at; one that is not what it must be
//! ends the program. A process' log of `verified` lines is the proof.

mod content;
mod family;
mod layout;
mod region;

use crate::ticker::{self, Tick};
use clap::Args as ClapArgs;
use region::Region;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Collector of the steps, as of ticks.
    #[arg(long)]
    report: Option<SocketAddr>,
    /// Milliseconds between steps.
    #[arg(long, default_value_t = 5)]
    every: u64,
}

/// Steps from one look at everything to the next.
const PASS: u64 = 100;
/// Words on the stack of the first thread, 1 MiB: more than it has without having grown.
const STACK: usize = (1 << 20) / size_of::<u64>();

pub(crate) fn run(args: &Args) -> io::Result<()> {
    // Before there are threads: a fork has only the one that called it.
    let family = family::start(Duration::from_millis(args.every))?;
    let threads = family::threads(Duration::from_millis(args.every));
    let mut regions = layout::regions()?;
    let mut stack = [0_u64; STACK];
    // The loop ends only with the program, so the frame outlives the region.
    regions.push(Region::borrowed("stack", 40, &mut stack)?);
    for region in &mut regions {
        region.fill()?;
    }
    layout::protect(&mut regions)?;
    let start = ticker::now(libc::CLOCK_REALTIME);
    println!("start {start}");
    let (mut previous, mut longest) = (start, 0);
    for step in 1_u64.. {
        std::thread::sleep(Duration::from_millis(args.every));
        for region in &mut regions {
            region.write(step)?;
        }
        let realtime = ticker::now(libc::CLOCK_REALTIME);
        longest = longest.max(realtime - previous);
        previous = realtime;
        if let Some(collector) = args.report {
            Tick { sequence: step, longest, start, work: 0 }.tell(collector, realtime);
        }
        if step % PASS == 0 {
            let mut pages = 0;
            for region in &regions {
                pages += region.verify(step)?;
            }
            let others = family.passes()? + threads.passes();
            println!(
                "verified {} at step {step}: {pages} pages in {} regions, {others} passes of others",
                step / PASS,
                regions.len()
            );
        }
    }
    Ok(())
}
