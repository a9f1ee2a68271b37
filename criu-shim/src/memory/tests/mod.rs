//! Tracking of real child processes.

mod attaching;
mod child;
mod comparing;
mod rounds;
mod same;

use super::{Comparer, Engine, Tracker};

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
