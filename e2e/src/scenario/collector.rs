//! Receives the ticks of `probe tick` and keeps account of them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::LIMIT;
use super::wait::until;

/// What the ticks of one program say so far.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// Number of ticks received.
    pub ticks: u64,
    /// The newest sequence number.
    pub newest: u64,
    /// Ticks whose sequence had been seen before: each proves a second running copy.
    pub repeated: u64,
    /// Times at which a program started cold, realtime nanoseconds, in order of arrival.
    pub starts: Vec<i64>,
    /// Addresses that ticks came from, in order of first arrival.
    pub senders: Vec<IpAddr>,
    /// The longest gap that the program saw between two of its own ticks, nanoseconds.
    pub longest_gap: i64,
    /// The newest monotonic reading, nanoseconds, and the largest step backwards of it.
    pub monotonic: i64,
    /// Largest step backwards of the monotonic clock, nanoseconds; 0 where it never went back.
    pub monotonic_back: i64,
}

/// A gap in the ticks of a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gap {
    /// From the tick before it until the tick after it.
    pub length: Duration,
    /// When the tick after it was, realtime nanoseconds.
    pub end: i64,
}

/// The longest of `gaps`; one of no length where there is none.
pub fn longest<'a>(gaps: impl IntoIterator<Item = &'a Gap>) -> Gap {
    gaps.into_iter().copied().max_by_key(|gap| gap.length).unwrap_or_default()
}

/// What a program had done at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Realtime nanoseconds.
    pub at: i64,
    /// Operations.
    pub work: u64,
    /// The longest gap that was told since the sample before, nanoseconds.
    pub longest: i64,
}

/// Shorter ones are ticks like others.
const LEAST_GAP: Duration = Duration::from_millis(2);
/// The least time between two samples that are kept, nanoseconds.
const SAMPLE_EVERY: i64 = 10_000_000;

/// A listening collector; it ends when dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    account: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    account: Account,
    seen: HashMap<i64, Vec<u64>>,
    newest_at: i64,
    /// Those since [`Collector::take_gaps`] was called.
    gaps: Vec<Gap>,
    samples: Vec<Sample>,
    /// The longest gap that was told since the last of the samples.
    longest: i64,
}

impl Collector {
    /// Listens on a free port of `address`.
    ///
    /// # Errors
    /// When the address is not this host's.
    pub fn listen(address: IpAddr) -> Result<Self> {
        let socket = UdpSocket::bind((address, 0)).with_context(|| format!("listen for ticks on {address}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).context("set a time-out on the collector")?;
        let address = socket.local_addr().context("read the collector's address")?;
        let account = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (account, stop) = (Arc::clone(&account), Arc::clone(&stop));
            move || receive(&socket, &account, &stop)
        });
        Ok(Self { address, account, stop, thread: Some(thread) })
    }

    /// Where programs send their ticks.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The account at this moment.
    pub fn account(&self) -> Account {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).account.clone()
    }

    /// Waits for so many ticks more, all of them of the one program that was ever started, and none told twice.
    ///
    /// # Errors
    /// Where they do not come in time, or are of another.
    pub fn goes_on(&self, ticks: u64) -> Result<Account> {
        let before = self.account().newest;
        let account =
            until("ticks", LIMIT, || Ok(Some(self.account()).filter(|account| account.newest > before + ticks)))?;
        ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");
        Ok(account)
    }

    /// Times from one tick to the next, longer than two milliseconds, that arrived since this was called last; on the program's own
    /// realtime clock.
    pub fn take_gaps(&self) -> Vec<Gap> {
        std::mem::take(&mut self.account.lock().unwrap_or_else(PoisonError::into_inner).gaps)
    }

    /// The longest of [`Collector::take_gaps`].
    pub fn take_gap(&self) -> Gap {
        longest(&self.take_gaps())
    }

    /// What the program had done at moments since [`Collector::forget_samples`] was called, in order.
    pub fn samples(&self) -> Vec<Sample> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).samples.clone()
    }

    /// Begins anew to sample.
    pub fn forget_samples(&self) {
        self.account.lock().unwrap_or_else(PoisonError::into_inner).samples.clear();
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("the collector's thread panicked");
        }
    }
}

fn receive(socket: &UdpSocket, account: &Mutex<State>, stop: &AtomicBool) {
    let mut buffer = [0; 256];
    while !stop.load(Ordering::Relaxed) {
        // A time-out is the moment to look at `stop`.
        let Ok((length, sender)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(tick) = Tick::parse(&buffer[..length]) {
            account.lock().unwrap_or_else(PoisonError::into_inner).take(&tick, sender.ip());
        }
    }
}

struct Tick {
    sequence: u64,
    realtime: i64,
    monotonic: i64,
    longest_gap: i64,
    start: i64,
    work: u64,
}

impl Tick {
    fn parse(datagram: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(datagram).ok()?.strip_prefix("tick ")?.split(' ');
        let sequence = words.next()?.parse().ok()?;
        let realtime = words.next()?.parse().ok()?;
        let monotonic = words.next()?.parse().ok()?;
        let longest_gap = words.next()?.parse().ok()?;
        let start = words.next()?.parse().ok()?;
        Some(Self { sequence, realtime, monotonic, longest_gap, start, work: words.next()?.parse().ok()? })
    }
}

impl State {
    fn take(&mut self, tick: &Tick, sender: IpAddr) {
        let account = &mut self.account;
        if !account.starts.contains(&tick.start) {
            account.starts.push(tick.start);
            account.monotonic = tick.monotonic;
        }
        if !account.senders.contains(&sender) {
            account.senders.push(sender);
        }
        // A bit for each sequence number of each start: a number that comes twice was counted by two copies.
        let bits = self.seen.entry(tick.start).or_default();
        let (word, bit) = ((tick.sequence / 64) as usize, 1_u64 << (tick.sequence % 64));
        if bits.len() <= word {
            bits.resize(word + 1, 0);
        }
        account.repeated += u64::from(bits[word] & bit != 0);
        bits[word] |= bit;
        account.ticks += 1;
        // Where a tick in between was lost the gap is overstated, and never missed.
        let length = u64::try_from(tick.realtime - self.newest_at).map_or(Duration::ZERO, Duration::from_nanos);
        if tick.sequence > account.newest && self.newest_at > 0 && length > LEAST_GAP {
            self.gaps.push(Gap { length, end: tick.realtime });
        }
        self.longest = self.longest.max(tick.longest_gap);
        if self.samples.last().is_none_or(|last| tick.realtime >= last.at + SAMPLE_EVERY) {
            let longest = std::mem::take(&mut self.longest);
            self.samples.push(Sample { at: tick.realtime, work: tick.work, longest });
        }
        self.newest_at = tick.realtime;
        account.newest = account.newest.max(tick.sequence);
        account.longest_gap = account.longest_gap.max(tick.longest_gap);
        account.monotonic_back = account.monotonic_back.max(account.monotonic - tick.monotonic);
        account.monotonic = account.monotonic.max(tick.monotonic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tick(state: &mut State, sequence: u64, start: i64) {
        tick_at(state, sequence, start, 5);
    }

    fn tick_at(state: &mut State, sequence: u64, start: i64, realtime: i64) {
        let text = format!("tick {sequence} {realtime} {} 7 {start} {}", sequence * 1000, sequence * 10);
        let tick = Tick::parse(text.as_bytes()).expect("a tick");
        state.take(&tick, IpAddr::from([10, 0, 0, 1]));
    }

    #[test]
    fn a_number_that_comes_twice_is_a_second_copy() {
        let mut state = State::default();
        for sequence in [0, 1, 2, 3, 2, 64, 64] {
            tick(&mut state, sequence, 1);
        }
        assert_eq!(state.account.repeated, 2);
        assert_eq!(state.account.newest, 64);
    }

    #[test]
    fn a_cold_start_is_not_a_second_copy_but_is_counted() {
        let mut state = State::default();
        tick(&mut state, 0, 1);
        tick(&mut state, 0, 2);
        assert_eq!((state.account.repeated, state.account.starts.len()), (0, 2));
    }

    #[test]
    fn gaps_are_known_with_their_ends() {
        let mut state = State::default();
        for (sequence, realtime) in [(0, 1), (1, 3), (2, 53), (3, 54), (4, 60)] {
            tick_at(&mut state, sequence, 1, realtime * 1_000_000);
        }
        let gap = |millis: u64, end: i64| Gap { length: Duration::from_millis(millis), end: end * 1_000_000 };
        assert_eq!(state.gaps, [gap(50, 53), gap(6, 60)]);
        assert_eq!((longest(&state.gaps), longest(&[])), (gap(50, 53), Gap::default()));
    }

    #[test]
    fn a_gap_whose_last_tick_was_lost_is_not_missed() {
        let mut state = State::default();
        for (sequence, realtime) in [(7, 1), (8, 2), (10, 40)] {
            tick_at(&mut state, sequence, 1, realtime * 1_000_000);
        }
        assert_eq!(longest(&state.gaps).length, Duration::from_millis(38));
    }

    #[test]
    fn work_is_sampled_now_and_then() {
        let mut state = State::default();
        (0..25).for_each(|sequence| tick_at(&mut state, sequence, 1, sequence as i64 * 1_000_000));
        let samples: Vec<_> = state.samples.iter().map(|sample| (sample.at / 1_000_000, sample.work)).collect();
        assert_eq!(samples, [(0, 0), (10, 100), (20, 200)]);
    }

    #[test]
    fn a_sample_has_the_longest_gap_of_all_ticks_since_the_one_before() {
        let mut state = State::default();
        for (sequence, longest) in [(0, 3), (1, 9), (2, 4), (10, 5), (20, 1)] {
            let text = format!("tick {sequence} {} 0 {longest} 1 0", sequence * 1_000_000);
            state.take(&Tick::parse(text.as_bytes()).expect("a tick"), IpAddr::from([10, 0, 0, 1]));
        }
        let longest: Vec<_> = state.samples.iter().map(|sample| sample.longest).collect();
        assert_eq!(longest, [3, 9, 1]);
    }

    #[test]
    fn garbage_is_no_tick() {
        assert!(Tick::parse(b"tick x").is_none());
        assert!(Tick::parse(&[0xff]).is_none());
    }
}
