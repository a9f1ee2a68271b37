//! Tracking of real child processes.

mod attaching;
pub(crate) mod child;
mod comparing;
mod kinds;
mod rounds;
mod same;
mod sharing;
mod soft_dirty;

use super::{AttachError, Comparer, Engine, Injector, Range, SoftDirty, Tracker};
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
    SoftDirty,
    ReadAndCompare,
}

/// Those that this kernel has.
fn kinds() -> Vec<Kind> {
    let marks = soft_dirty(&child::Child::new()).map(|_| Kind::SoftDirty);
    [Kind::WriteProtect, Kind::ReadAndCompare].into_iter().chain(marks).collect()
}

/// None where the kernel keeps no marks: there is nothing to try then.
fn soft_dirty(child: &child::Child) -> Option<SoftDirty> {
    match SoftDirty::attach(child.pid) {
        Err(AttachError::NoMarks) => None,
        attached => Some(attached.unwrap()),
    }
}

impl Kind {
    fn attach(self, pid: i32) -> Engine {
        match self {
            Self::WriteProtect => Engine::WriteProtect(Box::new(Tracker::attach(pid, &Injector::Here).unwrap())),
            Self::SoftDirty => Engine::SoftDirty(Box::new(SoftDirty::attach(pid).unwrap())),
            Self::ReadAndCompare => Engine::ReadAndCompare(Comparer::attach(pid).unwrap()),
        }
    }
}
