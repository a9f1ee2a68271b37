//! A client of a PostgreSQL in the same container, with many sessions.
//!
//! One session is asked all the time, and each answer is told to the collector as a ticker tells of ticks (see [`crate::ticker`]), at
//! most one a millisecond. The others keep what only a session has: a temporary table, an advisory lock, an open transaction. With
//! `--write` a row is written each time, and sessions and rows are looked at again and again: what is not as it was ends the program.

use crate::postgres::Session;
use crate::ticker::{Tick, now};
use clap::Args as ClapArgs;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The server's socket.
    #[arg(long)]
    socket: PathBuf,
    /// Sessions beside the one that is asked.
    #[arg(long, default_value_t = 1)]
    sessions: u64,
    /// Write, and look at everything.
    #[arg(long)]
    write: bool,
    /// Collector of the ticks.
    #[arg(long)]
    report: Option<SocketAddr>,
}

/// How long the server may take to come up.
const START_LIMIT: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);
/// Ticks from one look at a session to the next.
const LOOK_EVERY: u64 = 20;

/// A session that holds something.
struct Held {
    session: Session,
    number: u64,
    backend: String,
}

pub(crate) fn run(args: &Args) -> io::Result<()> {
    let mut asked = Session::open_within(&args.socket, START_LIMIT)?;
    asked
        .query("CREATE TABLE IF NOT EXISTS written (number bigint); CREATE TABLE IF NOT EXISTS held (number bigint)")?;
    let first: u64 = parsed(&asked.value("SELECT count(*) FROM written")?)?;
    let mut held = (0..args.sessions).map(|number| Held::open(args, number)).collect::<io::Result<Vec<_>>>()?;
    let start = asked.value("SELECT pg_postmaster_start_time()")?;
    println!("holding {} sessions of the server of {start}", held.len());
    let mut tick = Tick { sequence: 0, longest: 0, start: now(libc::CLOCK_REALTIME), work: 0 };
    loop {
        std::thread::sleep(TICK);
        let begun = Instant::now();
        if args.write {
            asked.query(&format!("INSERT INTO written VALUES ({})", first + tick.work))?;
        } else {
            asked.query("SELECT 1")?;
        }
        tick.work += 1;
        tick.longest = tick.longest.max(i64::try_from(begun.elapsed().as_nanos()).unwrap_or(i64::MAX));
        if let Some(collector) = args.report {
            tick.tell(collector, now(libc::CLOCK_REALTIME));
        }
        tick.sequence += 1;
        if args.write && tick.sequence.is_multiple_of(LOOK_EVERY) {
            let round = tick.sequence / LOOK_EVERY % (args.sessions + 1);
            match held.get_mut(usize::try_from(round).unwrap_or(usize::MAX)) {
                Some(held) => held.look()?,
                None => rows(&mut asked, first + tick.work, &start)?,
            }
        }
    }
}

/// Looks at the rows, of which there must be `written`, and at the server's age.
fn rows(asked: &mut Session, written: u64, start: &str) -> io::Result<()> {
    let found = asked.query("SELECT count(*), count(DISTINCT number), pg_postmaster_start_time() FROM written")?;
    expect("the rows that were acknowledged", &found, &[written.to_string(), written.to_string(), start.to_owned()])?;
    println!("acknowledged {written}, all there, server of {start}");
    Ok(())
}

impl Held {
    fn open(args: &Args, number: u64) -> io::Result<Self> {
        let mut session = Session::open(&args.socket)?;
        session.query(&format!(
            "CREATE TEMP TABLE own (number bigint); INSERT INTO own VALUES ({number}); SELECT pg_advisory_lock({number})"
        ))?;
        session.query(&format!("BEGIN; INSERT INTO held VALUES ({number})"))?;
        let backend = session.value("SELECT pg_backend_pid()")?;
        Ok(Self { session, number, backend })
    }

    /// Looks whether it is the same backend, with its table, its lock, and what it wrote and did not commit.
    fn look(&mut self) -> io::Result<()> {
        let found = self.session.query(
            "SELECT pg_backend_pid(), (SELECT number FROM own), (SELECT number FROM held), \
             (SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
        )?;
        let number = self.number.to_string();
        expect("a session", &found, &[self.backend.clone(), number.clone(), number.clone(), number])
    }
}

fn expect(what: &str, found: &[Vec<String>], expected: &[String]) -> io::Result<()> {
    if found == [expected] { Ok(()) } else { Err(io::Error::other(format!("{what}: {found:?}, not {expected:?}"))) }
}

fn parsed(text: &str) -> io::Result<u64> {
    text.parse().map_err(io::Error::other)
}
