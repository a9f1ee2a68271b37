//! The limit on the rate of data. Pure: time is an argument.

use std::num::NonZeroU64;
use std::time::Duration;
use tokio::time::Instant;

/// How long a sender may have been idle and make up for it at once.
const BURST: Duration = Duration::from_millis(10);

/// A token bucket, kept as the time at which all that was taken is paid for. Source: the generic cell rate algorithm in its
/// form with a virtual schedule, ITU-T I.371, annex A.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Bytes per second.
    limit: NonZeroU64,
    paid: Instant,
}

impl Bucket {
    /// Lets `limit` bytes per second through from now on.
    pub fn new(limit: NonZeroU64, now: Instant) -> Self {
        Self { limit, paid: now }
    }

    /// From when on more may be sent.
    pub fn due(&self) -> Instant {
        self.paid
    }

    /// `bytes` bytes are sent now.
    pub fn take(&mut self, bytes: usize, now: Instant) {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.paid = self.paid.max(earliest) + Duration::from_secs_f64(bytes as f64 / self.limit.get() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_bytes_go_at_once_and_the_next_when_they_are_paid_for() {
        let now = Instant::now();
        let mut bucket = Bucket::new(NonZeroU64::new(1000).expect("a limit"), now);
        assert!(bucket.due() <= now);
        bucket.take(500, now);
        assert_eq!(bucket.due(), now + Duration::from_millis(500));
    }

    proptest! {
        /// Whenever a sender that waits until it may sends however much, the limit holds over the whole time.
        #[test]
        fn no_more_than_the_limit_is_sent(
            limit in 1_000..u64::from(u32::MAX),
            sendings in prop::collection::vec((1..300_000_usize, 0..50_u64), 1..50),
        ) {
            let begun = Instant::now();
            let mut bucket = Bucket::new(NonZeroU64::new(limit).expect("a limit"), begun);
            let (mut now, mut sent) = (begun, 0);
            for (bytes, idle) in sendings {
                now = bucket.due().max(now + Duration::from_millis(idle));
                let allowed = ((now - begun) + BURST).as_secs_f64() * limit as f64;
                prop_assert!(sent as f64 <= allowed * 1.000_001 + 1.0, "{sent} bytes were sent, {allowed} were allowed");
                bucket.take(bytes, now);
                sent += bytes;
            }
        }

        /// A sender that always has something to send gets what the limit allows.
        #[test]
        fn no_less_than_the_limit_can_be_sent(limit in 1_000..u64::from(u32::MAX), pieces in 1..200_usize) {
            let begun = Instant::now();
            let mut bucket = Bucket::new(NonZeroU64::new(limit).expect("a limit"), begun);
            for _ in 0..pieces {
                bucket.take(1_000, bucket.due());
            }
            let fair = pieces as f64 * 1_000.0 / limit as f64;
            prop_assert!((bucket.due() - begun).as_secs_f64() <= fair * 1.000_001 + 1e-6);
        }
    }
}
