//! How many processors this process may use.

use std::num::NonZero;
use std::sync::LazyLock;
use std::thread::available_parallelism;

/// Asked once: the standard library reads the cgroup's quota from several files each time, which takes 0.3 ms, and some ask for it in
/// the freeze.
static PROCESSORS: LazyLock<usize> = LazyLock::new(|| available_parallelism().map_or(1, NonZero::get));

/// How many threads can run at once, by the affinity and the cgroup of this process when it was first asked; 1 where that can't be told.
pub fn processors() -> usize {
    *PROCESSORS
}
