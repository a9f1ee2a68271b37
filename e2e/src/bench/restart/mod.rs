//! The benchmark of restarts in place: how soon after a crash the next process begins, and what being supervised costs at the
//! start of a container.
//!
//! Reading order: [`stamps`] is what the crasher (`e2e/probe/src/crasher.rs`) notes, [`local`] restarts it by supervisors on this
//! machine, with those that [`packages`] brings from Debian, [`pods`] by kubelet and by Tideover in pods, [`start_up`] starts
//! containers with and without init, [`results`] makes figures of all that.
//!
//! Each time is from one clock, read by the crasher itself, right before its end and in its first instructions. Every case
//! runs the same program, and in every case a run lasts as long: [`LIFE`].

pub mod local;
pub mod packages;
pub mod pods;
pub mod results;
pub mod stamps;
pub mod start_up;

use std::path::Path;
use std::time::Duration;

/// How long a run lasts before it crashes. s6-supervise and runsv start nothing twice within a second, which can't be set to less: a
/// run that has lasted longer is followed by the next one at once, under s6 only if it has said that it is ready.
pub const LIFE: Duration = Duration::from_millis(1200);

/// The crasher's environment, where its runs note in `stamps` and `crashes` of them end.
pub fn environment(stamps: &Path, crashes: usize) -> [(&'static str, String); 3] {
    [
        ("RESTART_STAMPS", stamps.display().to_string()),
        ("RESTART_LIFE", LIFE.as_millis().to_string()),
        ("RESTART_CRASHES", crashes.to_string()),
    ]
}
