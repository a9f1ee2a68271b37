//! What the figures must reach.

use crate::scenario::figures::Figure;

/// A bound of one figure's median, or of its most.
#[derive(Debug, Clone, Copy)]
pub struct Goal {
    /// In words.
    pub text: &'static str,
    /// The figure's case.
    pub case: &'static str,
    /// The figure's metric.
    pub metric: &'static str,
    /// Which of its numbers.
    pub of: Of,
    /// The bound.
    pub bound: Bound,
}

/// Which number of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Of {
    /// The middle one.
    Median,
    /// The most.
    Max,
}

/// A bound.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Bound {
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

impl Of {
    /// The number.
    pub fn figure(self, figure: &Figure) -> f64 {
        match self {
            Self::Median => figure.median,
            Self::Max => figure.max,
        }
    }
}

impl Bound {
    /// Whether `number` keeps to it.
    pub fn holds(self, number: f64) -> bool {
        match self {
            Self::AtMost(bound) => number <= bound,
            Self::AtLeast(bound) => number >= bound,
        }
    }

    /// As a sign and a number.
    pub fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("<= {bound}"),
            Self::AtLeast(bound) => format!(">= {bound}"),
        }
    }
}

/// The case of what is measured beside the moves, between two nodes.
pub const TRANSFER: &str = "transfer";

const SMALL: &str = "64 MiB, 1 %/s";
const GIB: &str = "1024 MiB, 1 %/s";
const LARGE: &str = "4096 MiB, 1 %/s";
const DATABASE: &str = "postgres, 50 idle backends";
const CHANGED: &str = "layer of 2048 MiB, 1000 files changed";
const PACED: &str = "1024 MiB, 1 % hot, 100000 operations/s";

/// All of them.
pub const GOALS: [Goal; 14] = [
    at_most("freeze, 64 MiB, 1 %/s: median, ms", SMALL, "freeze", Of::Median, 30.0),
    at_most("the same over bare runc", SMALL, "freeze_ratio", Of::Median, 0.1),
    at_most("freeze, 1 GiB, 1 %/s: median, ms", GIB, "freeze", Of::Median, 60.0),
    at_most("the same over bare runc", GIB, "freeze_ratio", Of::Median, 0.025),
    at_most("freeze, 4 GiB, 1 %/s, over the median of 1 GiB", LARGE, "freeze_growth", Of::Median, 2.5),
    at_most("freeze, postgres with 50 idle backends: median, ms", DATABASE, "freeze", Of::Median, 150.0),
    at_most("added by 1,000 changed files of a layer of 2 GiB: median, ms", CHANGED, "freeze_added", Of::Median, 15.0),
    at_most("bytes moved / unique resident bytes, 64 MiB, 1 %/s", SMALL, "bytes_ratio", Of::Median, 1.15),
    at_most("bytes moved / unique resident bytes, 1 GiB, 1 %/s", GIB, "bytes_ratio", Of::Median, 1.15),
    at_most("bytes moved / unique resident bytes, 4 GiB, 1 %/s", LARGE, "bytes_ratio", Of::Median, 1.15),
    Goal {
        text: "application throughput during pre-copy / before",
        case: PACED,
        metric: "throughput_ratio",
        of: Of::Median,
        bound: Bound::AtLeast(0.95),
    },
    Goal {
        text: "transfer rate / plain TLS on the same path, landing too",
        case: TRANSFER,
        metric: "transfer_ratio",
        of: Of::Median,
        bound: Bound::AtLeast(0.8),
    },
    at_most("source agent's own memory, 1 GiB: most, MiB", GIB, "source_agent_memory", Of::Max, 64.0),
    at_most("target agent's own memory, 1 GiB: most, MiB", GIB, "target_agent_memory", Of::Max, 64.0),
];

const fn at_most(text: &'static str, case: &'static str, metric: &'static str, of: Of, bound: f64) -> Goal {
    Goal { text, case, metric, of, bound: Bound::AtMost(bound) }
}
