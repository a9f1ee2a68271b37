//! Whether pages are worth compressing on their way. Pure.
//!
//! It is asked as if nothing went on at the same time: a byte is compressed, crosses, and is read, one after the other. In a
//! round these overlap, and compressing wins by more than is said here. In the freeze's last round they hardly do, and the
//! answer has to hold there too; and the more a processor has to do for a byte, the more of it is taken from the application.

use std::fmt;
use tideover_crds::Compression;

/// How many times faster it must be: what is measured in a moment is not that exact.
const GAIN: f64 = 1.1;

/// What was seen of one move, on the pages that it really sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// Bytes that the connection takes in a second, or may.
    pub link: f64,
    /// Bytes of pages that one processor compresses in a second.
    pub packs: f64,
    /// Bytes of pages that one processor makes of compressed ones in a second.
    pub unpacks: f64,
    /// Bytes of pages for each byte that they are compressed to.
    pub ratio: f64,
    /// Processors that have nothing to do on the source.
    pub idle: f64,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// How pages cross from now on.
    pub compression: Compression,
    /// Why.
    pub seen: Seen,
}

/// Whether pages are compressed.
pub fn decide(seen: Seen) -> Verdict {
    // The thread that compresses has at most one processor, and none that the application needs.
    let packs = seen.packs * seen.idle.clamp(0.0, 1.0);
    let plain = 1.0 / seen.link;
    let packed = 1.0 / packs + 1.0 / (seen.link * seen.ratio) + 1.0 / seen.unpacks;
    let wins = packed.is_finite() && packed * GAIN <= plain;
    let compression = if wins { Compression::Lz4 } else { Compression::None };
    Verdict { compression, seen }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen { link, packs, unpacks, ratio, idle } = self.seen;
        let mib = |rate: f64| rate / f64::from(1 << 20);
        formatter.write_str(match self.compression {
            Compression::None => "pages are not compressed: the target would have them later",
            Compression::Lz4 => "pages are compressed: the target has them earlier",
        })?;
        write!(
            formatter,
            "; the connection takes {:.0} MiB/s, LZ4 {:.0} MiB/s and back {:.0} MiB/s, to 1/{ratio:.1} of their size, with {idle:.1} processors free",
            mib(link),
            mib(packs),
            mib(unpacks),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(link: f64, packs: f64, ratio: f64, idle: f64) -> Seen {
        Seen { link: link * 1e6, packs: packs * 1e6, unpacks: 2e9, ratio, idle }
    }

    fn compresses(seen: Seen) -> bool {
        decide(seen).compression == Compression::Lz4
    }

    #[test]
    fn it_is_compressed_where_the_connection_is_what_takes_the_time() {
        use Compression::{Lz4, None};
        // Of the connection and of LZ4 in MB/s, the ratio, and processors that are free.
        let table = [
            // 1 Gbit/s, and pages as of a heap.
            (115.0, 800.0, 2.2, 2.0, Lz4),
            // The same on a node that has nothing free, and on one that has half a processor.
            (115.0, 800.0, 2.2, 0.0, None),
            (115.0, 800.0, 2.2, 0.5, Lz4),
            (115.0, 800.0, 2.2, 0.2, None),
            // The same with pages that can't be compressed.
            (115.0, 1_500.0, 1.0, 2.0, None),
            (115.0, 800.0, 1.2, 2.0, None),
            // 2.5, 10 and 25 Gbit/s.
            (290.0, 800.0, 2.2, 2.0, None),
            (290.0, 800.0, 4.0, 2.0, Lz4),
            (1_150.0, 800.0, 2.2, 8.0, None),
            (2_900.0, 1_500.0, 10.0, 8.0, None),
            // A limit of 64 MB/s.
            (64.0, 600.0, 1.5, 1.0, Lz4),
        ];
        for (link, packs, ratio, idle, expected) in table {
            let verdict = decide(seen(link, packs, ratio, idle));
            assert_eq!(verdict.compression, expected, "{link} {packs} {ratio} {idle}");
        }
    }

    #[test]
    fn what_was_not_measured_is_not_compressed() {
        for nothing in [0.0, f64::NAN, f64::INFINITY] {
            assert!(!compresses(seen(nothing, 800.0, 2.2, 2.0)), "a connection of {nothing}");
        }
        for nothing in [0.0, f64::NAN] {
            assert!(!compresses(seen(115.0, nothing, 2.2, 2.0)), "a compressor of {nothing}");
            assert!(!compresses(seen(115.0, 800.0, nothing, 2.0)), "a ratio of {nothing}");
        }
    }

    #[test]
    fn the_sentence_has_the_figures() {
        let sentence = decide(seen(115.0, 800.0, 2.2, 2.0)).to_string();
        assert_eq!(
            sentence,
            "pages are compressed: the target has them earlier; the connection takes 110 MiB/s, LZ4 763 MiB/s and back 1907 MiB/s, to 1/2.2 of their size, with 2.0 processors free"
        );
    }

    proptest! {
        /// What wins by a figure wins by a better one.
        #[test]
        fn a_slower_connection_or_a_better_compressor_never_speaks_against_it(
            link in 1.0..5_000.0_f64, packs in 1.0..5_000.0_f64, ratio in 0.5..50.0_f64, idle in 0.0..8.0_f64, better in 1.0..10.0_f64,
        ) {
            let compressed = compresses(seen(link, packs, ratio, idle));
            let others = [
                seen(link / better, packs, ratio, idle),
                seen(link, packs * better, ratio, idle),
                seen(link, packs, ratio * better, idle),
                seen(link, packs, ratio, idle * better),
            ];
            for other in others {
                prop_assert!(!compressed || compresses(other), "{other:?}");
            }
        }

        /// Whatever is seen, what is compressed is there earlier, also where nothing overlaps.
        #[test]
        fn it_is_compressed_only_where_it_wins(
            link in 1.0..5_000.0_f64, packs in 1.0..5_000.0_f64, ratio in 0.5..50.0_f64, idle in 0.0..8.0_f64,
        ) {
            let seen = seen(link, packs, ratio, idle);
            let packed = 1.0 / seen.packs + 1.0 / (seen.link * seen.ratio) + 1.0 / seen.unpacks;
            prop_assert!(!compresses(seen) || packed < 1.0 / seen.link);
        }
    }
}
