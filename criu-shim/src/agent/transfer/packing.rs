//! Compression of one move: looks at the first pages that are sent, has it decided ([`worth`](super::worth)), and keeps to it.
//!
//! It is decided once. While frames are compressed a connection is not full, and shows no more what it takes.

use crate::agent::transfer::flow::Flow;
use crate::agent::transfer::frame::Packed;
use crate::agent::transfer::message::Codec;
use crate::agent::transfer::packed::{Packer, Unpacking};
use crate::agent::transfer::tally::Tally;
use crate::agent::transfer::worth::{Seen, Verdict, decide};
use bytes::Bytes;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tideover_crds::Compression;

/// Bytes that go before it is looked at what the connection takes: as many go to fill what lies on its way.
const LEAD_IN: u64 = super::outgoing::WINDOW as u64;
/// Bytes that go while it is looked. A connection of 10 Gbit/s takes 13 ms for them, one that could do with compression 150.
const ENOUGH: u64 = 16 << 20;
/// Of how many frames one is compressed, to see what becomes of it.
const ONE_IN: u32 = 8;
/// Ticks of a processor in a second, as the kernel tells them. Source: `USER_HZ` of its asm-generic/param.h.
const USER_HZ: f64 = 100.0;

/// The compression of one move. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Packing {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
enum State {
    /// The target has not said that it may be.
    #[default]
    Off,
    /// It may be. What lies on the way is being filled.
    Agreed(Tally),
    /// It is being looked what it would bring.
    Looking { tally: Tally, since: Mark, frames: u32, samples: Samples },
    /// It is known.
    Decided {
        tally: Tally,
        /// Under the limit that there was.
        verdict: Verdict,
        /// What it had been without one: from the go on there is none.
        unlimited: Compression,
    },
}

/// What was counted at one moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    sent: u64,
    writing: Duration,
    /// Seconds for which processors had nothing to do, if that can be told.
    idle: Option<f64>,
}

impl Mark {
    fn now(flow: &Flow) -> Self {
        Self { at: Instant::now(), sent: flow.sent(), writing: flow.writing(), idle: idle() }
    }
}

/// Frames that were compressed and read again.
#[derive(Clone, Copy, Debug, Default)]
struct Samples {
    bytes: u64,
    packed: u64,
    packing: Duration,
    unpacking: Duration,
}

impl Samples {
    fn add(&mut self, bytes: &[u8], packer: &mut Packer) {
        let begun = Instant::now();
        let block = Bytes::copy_from_slice(packer.block(bytes));
        let packed = Instant::now();
        let mut unpacking = Unpacking::default();
        let length = bytes.len();
        if unpacking.unpack(&Packed { length, block: block.clone() }).is_ok() {
            self.bytes += length as u64;
            self.packed += block.len() as u64;
            self.packing += packed - begun;
            self.unpacking += packed.elapsed();
        }
    }
}

impl Packing {
    /// The target has said how pages may be compressed, if they may. What becomes of it is counted in `tally`.
    pub(super) fn agree(&self, codec: Option<Codec>, tally: Tally) {
        if codec == Some(Codec::Lz4) {
            *self.state() = State::Agreed(tally);
        }
    }

    /// What was decided, once it is.
    pub(super) fn verdict(&self) -> Option<Verdict> {
        match &*self.state() {
            State::Decided { verdict, .. } => Some(*verdict),
            _ => None,
        }
    }

    /// A frame of pages is about to go, over what `flow` is of, which is to take no more than `limit` bytes a second. Returns
    /// where to count it if it is to be compressed.
    pub(super) fn look(
        &self,
        frame: &[u8],
        packer: &mut Packer,
        flow: &Flow,
        limit: Option<NonZeroU64>,
    ) -> Option<Tally> {
        let mut state = self.state();
        match &mut *state {
            State::Off => None,
            State::Decided { tally, verdict, unlimited } => {
                let compression = if limit.is_some() { verdict.compression } else { *unlimited };
                (compression == Compression::Lz4).then(|| tally.clone())
            }
            State::Agreed(tally) => {
                if flow.sent() >= LEAD_IN {
                    let (tally, since) = (tally.clone(), Mark::now(flow));
                    *state = State::Looking { tally, since, frames: 0, samples: Samples::default() };
                }
                None
            }
            State::Looking { tally, since, frames, samples } => {
                if frames.is_multiple_of(ONE_IN) {
                    samples.add(frame, packer);
                }
                *frames += 1;
                if flow.sent() - since.sent >= ENOUGH {
                    let now = Mark::now(flow);
                    let verdict = decide(seen(*since, now, *samples, limit));
                    let unlimited = decide(seen(*since, now, *samples, None)).compression;
                    tally.decided(verdict.compression);
                    *state = State::Decided { tally: tally.clone(), verdict, unlimited };
                }
                None
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seen(since: Mark, now: Mark, samples: Samples, limit: Option<NonZeroU64>) -> Seen {
    let Samples { bytes, packed, packing, unpacking } = samples;
    let link = (now.sent - since.sent) as f64 / (now.writing - since.writing).as_secs_f64();
    let idle = now.idle.zip(since.idle).map(|(now, before)| now - before);
    Seen {
        link: limit.map_or(link, |limit| link.min(limit.get() as f64)),
        packs: bytes as f64 / packing.as_secs_f64(),
        unpacks: bytes as f64 / unpacking.as_secs_f64(),
        ratio: bytes as f64 / packed as f64,
        // Where it can't be told, none is free.
        idle: idle.unwrap_or_default() / (now.at - since.at).as_secs_f64(),
    }
}

/// Seconds for which the processors of this machine have had nothing to do, all together.
fn idle() -> Option<f64> {
    idle_of(&std::fs::read_to_string("/proc/stat").ok()?)
}

/// The same of a text. Source: proc_stat(5); the fourth and fifth number of the first line are idle and waiting for disks.
fn idle_of(stat: &str) -> Option<f64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().skip(3);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Lets `frames` frames of 256 KiB go by, over a connection that takes so many MiB a second.
    fn send(packing: &Packing, flow: &Flow, frames: u64, rate: u64, frame: &[u8]) -> u64 {
        let mut packer = Packer::new();
        let mut packed = 0;
        for _ in 0..frames {
            packed += u64::from(packing.look(frame, &mut packer, flow, None).is_some());
            flow.wrote(256 << 10, Duration::from_secs(1) / u32::try_from(rate * 4).expect("a rate"));
        }
        packed
    }

    #[test]
    fn it_is_decided_once_by_the_first_pages_that_are_sent() {
        let (packing, flow) = (Packing::default(), Flow::default());
        packing.agree(Some(Codec::Lz4), Tally::default());
        let frame = [7; 200_000];
        assert_eq!(send(&packing, &flow, 4 * (LEAD_IN + ENOUGH) / MIB, 100, &frame), 0);
        assert_eq!(packing.verdict(), None);
        send(&packing, &flow, 2, 100, &frame);
        let verdict = packing.verdict().expect("decided");
        let rate = verdict.seen.link / MIB as f64;
        assert!((99.0..101.0).contains(&rate), "{rate} MiB/s");
        assert!(verdict.seen.ratio > 50.0 && verdict.seen.packs > 0.0 && verdict.seen.unpacks > 0.0);
        let compresses = u64::from(verdict.compression == Compression::Lz4);
        assert_eq!(send(&packing, &flow, 10, 1_000_000, &frame), 10 * compresses);
        assert_eq!(packing.verdict(), Some(verdict));
    }

    #[test]
    fn what_a_limit_makes_worth_its_while_is_not_done_without_the_limit() {
        let packing = Packing::default();
        let free = Seen { link: 1e12, packs: 1e9, unpacks: 1e9, ratio: 2.0, idle: 2.0 };
        let verdict = decide(Seen { link: 1e6, ..free });
        assert_eq!((verdict.compression, decide(free).compression), (Compression::Lz4, Compression::None));
        *packing.state() = State::Decided { tally: Tally::default(), verdict, unlimited: decide(free).compression };
        let (mut packer, flow) = (Packer::new(), Flow::default());
        assert!(packing.look(&[7; 4096], &mut packer, &flow, NonZeroU64::new(1_000_000)).is_some());
        assert!(packing.look(&[7; 4096], &mut packer, &flow, None).is_none());
    }

    #[test]
    fn without_the_word_of_the_target_nothing_is_compressed() {
        for codec in [None, Some(Codec::Unknown)] {
            let (packing, flow) = (Packing::default(), Flow::default());
            packing.agree(codec, Tally::default());
            assert_eq!(send(&packing, &flow, 4 * (LEAD_IN + 2 * ENOUGH) / MIB, 1, &[7; 200_000]), 0);
            assert_eq!(packing.verdict(), None);
        }
    }

    #[test]
    fn what_a_limit_lets_through_is_what_the_connection_takes() {
        let mark = |sent, millis, idle| Mark {
            at: Instant::now(),
            sent,
            writing: Duration::from_millis(millis),
            idle: Some(idle),
        };
        let (since, later) = (mark(0, 0, 5.0), mark(100 * MIB, 100, 6.0));
        let later = Mark { at: since.at + Duration::from_millis(500), ..later };
        let samples = Samples {
            bytes: 4 * MIB,
            packed: MIB,
            packing: Duration::from_millis(8),
            unpacking: Duration::from_millis(2),
        };
        let free = seen(since, later, samples, None);
        let expected = Seen {
            link: 1000.0 * MIB as f64,
            packs: 500.0 * MIB as f64,
            unpacks: 2000.0 * MIB as f64,
            ratio: 4.0,
            idle: 2.0,
        };
        assert_eq!(free, expected);
        let limited = seen(since, later, samples, NonZeroU64::new(64 * MIB));
        assert_eq!(limited, Seen { link: 64.0 * MIB as f64, ..expected });
    }

    #[test]
    fn the_time_without_work_is_read_from_the_first_line() {
        assert_eq!(idle_of("cpu  10 20 30 400 50 6 7 8 9 10\ncpu0 1 2 3 4 5\n"), Some(4.5));
        assert_eq!(idle_of("cpu  10 20 30"), None);
        assert_eq!(idle_of(""), None);
        assert!(idle().is_some_and(|idle| idle > 0.0));
    }
}
