//! Requests to a store at a steady rate, and how long they take.
//!
//! Tells the collector of answers as a ticker tells of ticks (see [`crate::ticker`]), at most one a millisecond: the time
//! between two of them is the latency of a request, to about a millisecond, the longest gap is the latency of the slowest
//! request since the tick before, and the work is the number of answers.

use clap::Args as ClapArgs;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::pace::Pace;
use crate::resp::Connection;
use crate::store::filled;
use crate::ticker::{Tick, now};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Store, `host:port`.
    address: String,
    /// Number of keys that were filled.
    #[arg(long)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 0)]
    value_bytes: usize,
    /// Requests a second to try for. Every tenth writes.
    #[arg(long, default_value_t = 5_000)]
    rate: u64,
    /// Collector of the ticks.
    #[arg(long)]
    report: SocketAddr,
}

/// Pause before a request is tried again.
const AGAIN: Duration = Duration::from_millis(1);
const TICK: Duration = Duration::from_millis(1);

pub(crate) fn run(args: &Args) -> io::Result<()> {
    let mut store = None;
    let mut pace = Pace::new(args.rate);
    let (mut last, mut told) = (Instant::now(), Instant::now());
    let (mut requests, mut slowest) = (0, 0);
    let mut tick = Tick { sequence: 0, longest: 0, start: now(libc::CLOCK_REALTIME), work: 0 };
    loop {
        std::thread::sleep(TICK);
        let looked = Instant::now();
        for _ in 0..pace.due(looked - std::mem::replace(&mut last, looked)) {
            let asked = Instant::now();
            while let Err(error) = request(&mut store, args, requests) {
                println!("unanswered {requests}: {error}");
                store = None;
                std::thread::sleep(AGAIN);
            }
            requests += 1;
            slowest = slowest.max(i64::try_from(asked.elapsed().as_nanos()).unwrap_or(i64::MAX));
            if told.elapsed() >= TICK {
                told = Instant::now();
                tick = Tick { longest: std::mem::take(&mut slowest), work: requests, ..tick };
                tick.tell(args.report, now(libc::CLOCK_REALTIME));
                tick.sequence += 1;
            }
        }
    }
}

/// Writes what is there already, or reads and compares.
fn request(store: &mut Option<Connection>, args: &Args, number: u64) -> io::Result<()> {
    let connection = match store {
        Some(connection) => connection,
        None => store.insert(Connection::open(&args.address)?),
    };
    let (name, value) = filled(number.wrapping_mul(7919) % args.keys.max(1), args.value_bytes);
    let (command, expected) = if number.is_multiple_of(10) {
        (vec!["SET".to_owned(), name, value], "OK".to_owned())
    } else {
        (vec!["GET".to_owned(), name], value)
    };
    match connection.call(&[command])?.pop().flatten() {
        Some(answer) if answer == expected => Ok(()),
        other => Err(io::Error::other(format!("unexpected answer of {} bytes", other.map_or(0, |text| text.len())))),
    }
}
