//! A client of a RESP store that knows exactly what was acknowledged.

use crate::noise;
use crate::resp::Connection;
use clap::Args;
use std::io;
use std::time::{Duration, Instant};

#[derive(Args)]
pub(crate) struct FillArgs {
    /// Store, `host:port`.
    address: String,
    /// Number of keys.
    #[arg(long, default_value_t = 200_000)]
    keys: u64,
    /// Bytes of a value; a short one is made where this is 0.
    #[arg(long, default_value_t = 0)]
    value_bytes: usize,
}

#[derive(Args)]
pub(crate) struct WriteArgs {
    /// Store, `host:port`.
    address: String,
    /// Milliseconds between writes.
    #[arg(long, default_value_t = 1)]
    every: u64,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Store, `host:port`.
    address: String,
    /// Number of keys that were filled.
    #[arg(long, default_value_t = 200_000)]
    keys: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 0)]
    value_bytes: usize,
    /// Number of the newest acknowledged write.
    #[arg(long, default_value_t = 0)]
    acknowledged: u64,
}

const BATCH: u64 = 1_000;
/// How long a store may take to be reachable.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Name and value of a filled key; the value of `bytes` bytes, or a short one where that is 0.
pub(crate) fn filled(key: u64, bytes: usize) -> (String, String) {
    let value = match bytes {
        0 => format!("value-{key}-{}", key.wrapping_mul(2_654_435_761)),
        _ => noise::text(key, bytes),
    };
    (format!("fill:{key}"), value)
}

fn written(number: u64) -> (String, String) {
    (format!("write:{number}"), number.to_string())
}

/// Sets `keys` keys and checks that the store holds them.
pub(crate) fn fill(args: &FillArgs) -> io::Result<()> {
    let mut store = Connection::open_within(&args.address, CONNECT_LIMIT)?;
    for start in (0..args.keys).step_by(BATCH as usize) {
        let commands: Vec<_> = (start..(start + BATCH).min(args.keys))
            .map(|key| {
                let (name, value) = filled(key, args.value_bytes);
                vec!["SET".to_owned(), name, value]
            })
            .collect();
        store.call(&commands)?;
    }
    println!("filled {}", args.keys);
    Ok(())
}

/// Writes numbered keys one at a time, for ever. A write counts only when the store has acknowledged it; one that was
/// not is sent again, after a new connection if need be. Every outage over 20 ms is printed.
pub(crate) fn write(args: &WriteArgs) -> io::Result<()> {
    let mut store = None;
    let mut last_success = Instant::now();
    let mut printed = Instant::now();
    let mut number = 1;
    loop {
        match attempt(&mut store, &args.address, number) {
            Ok(()) => {
                let outage = last_success.elapsed();
                last_success = Instant::now();
                if outage > Duration::from_millis(20 + args.every) {
                    println!("outage {} before {number}", outage.as_millis());
                }
                if printed.elapsed() >= Duration::from_millis(100) {
                    println!("acknowledged {number}");
                    printed = Instant::now();
                }
                number += 1;
            }
            Err(error) => {
                println!("unacknowledged {number}: {error}");
                store = None;
            }
        }
        std::thread::sleep(Duration::from_millis(args.every));
    }
}

fn attempt(store: &mut Option<Connection>, address: &str, number: u64) -> io::Result<()> {
    let connection = match store {
        Some(connection) => connection,
        None => store.insert(Connection::open(address)?),
    };
    let (name, value) = written(number);
    match connection.call(&[vec!["SET".to_owned(), name, value]])?.pop().flatten().as_deref() {
        Some("OK") => Ok(()),
        other => Err(io::Error::other(format!("unexpected answer {other:?}"))),
    }
}

/// Reads every filled key and every acknowledged write back; prints the number that is missing or wrong.
pub(crate) fn verify(args: &VerifyArgs) -> io::Result<()> {
    let mut store = Connection::open_within(&args.address, CONNECT_LIMIT)?;
    let wrong = wrong(&mut store, 0, args.keys, |key| filled(key, args.value_bytes))?;
    let lost = self::wrong(&mut store, 1, args.acknowledged + 1, written)?;
    println!("wrong keys {wrong}, lost acknowledged writes {lost}");
    if wrong + lost == 0 { Ok(()) } else { Err(io::Error::other("the store lost state")) }
}

fn wrong(store: &mut Connection, from: u64, to: u64, expected: impl Fn(u64) -> (String, String)) -> io::Result<u64> {
    let mut wrong = 0;
    for start in (from..to).step_by(BATCH as usize) {
        let pairs: Vec<_> = (start..(start + BATCH).min(to)).map(&expected).collect();
        let commands: Vec<_> = pairs.iter().map(|(name, _)| vec!["GET".to_owned(), name.clone()]).collect();
        let replies = store.call(&commands)?;
        wrong += pairs.iter().zip(replies).filter(|((_, value), reply)| reply.as_ref() != Some(value)).count() as u64;
    }
    Ok(wrong)
}
