//! Tracking of real child processes.

mod attaching;
pub(crate) mod child;
mod comparing;
mod kinds;
mod rounds;
mod same;
mod sharing;

use super::{Comparer, Engine, Range, Tracker};
use child::PAGE;

const NONE: [u64; 0] = [];

/// What of `ranges` lies in `area`, as numbers of its pages.
fn pages(ranges: &[Range], area: Range) -> Vec<u64> {
    ranges
        .iter()
        .flat_map(|range| (range.start.max(area.start)..range.end.min(area.end)).step_by(PAGE as usize))
        .map(|address| (address - area.start) / PAGE)
        .collect()
}

/// The engines that promise the same.
#[derive(Clone, Copy, Debug)]
enum Kind {
    WriteProtect,
    ReadAndCompare,
}

const KINDS: [Kind; 2] = [Kind::WriteProtect, Kind::ReadAndCompare];

impl Kind {
    fn attach(self, pid: i32) -> Engine {
        match self {
            Self::WriteProtect => Engine::WriteProtect(Box::new(Tracker::attach(pid).unwrap())),
            Self::ReadAndCompare => Engine::ReadAndCompare(Comparer::attach(pid).unwrap()),
        }
    }
}
