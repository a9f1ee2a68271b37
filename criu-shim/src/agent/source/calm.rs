//! A moment at which the node's processors are free, waited for before the freeze.
//!
//! Around the go much happens at once: the API server tells everybody, and kubelet brings up the replacement. Whatever of it runs
//! into the freeze makes the freeze longer, while the application loses nothing by running a moment longer. Only other work is seen:
//! a program that has the processors which it uses for itself makes nobody wait.

use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Where the kernel adds up how long processes have waited for a processor. Source: Documentation/accounting/psi.rst.
const PRESSURE: &str = "/proc/pressure/cpu";
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(4);
/// How long nobody must have waited. About what a dump or a restore takes.
const CALM: Duration = Duration::from_millis(24);
/// What part of the time somebody may wait for a processor, in a calm.
const SHARE: u32 = 8;
/// How long a calm is waited for. A node that has none for so long will not have one soon.
const LIMIT: Duration = Duration::from_millis(400);

/// Waits for a calm on this node, and no longer than [`LIMIT`]. Where the kernel does not count such waits, it does not wait.
pub(super) async fn calm() {
    wait(|| waited(Path::new(PRESSURE)), sleep).await;
}

async fn wait<S: Future<Output = ()>>(mut waited: impl FnMut() -> Option<Duration>, pause: impl Fn(Duration) -> S) {
    let begun = Instant::now();
    let (mut at, Some(mut before)) = (begun, waited()) else { return };
    let mut calm = Duration::ZERO;
    while calm < CALM && begun.elapsed() < LIMIT {
        pause(LOOK).await;
        let (now, Some(after)) = (Instant::now(), waited()) else { return };
        calm = lasts(calm, now - at, after.saturating_sub(before));
        (at, before) = (now, after);
    }
}

/// How long a calm has lasted that had lasted for `calm` before the last `elapsed`, in which somebody had to wait for `waited`.
fn lasts(calm: Duration, elapsed: Duration, waited: Duration) -> Duration {
    if waited * SHARE <= elapsed { calm + elapsed } else { Duration::ZERO }
}

/// How long at least one process has waited for a processor, since the node was started.
fn waited(pressure: &Path) -> Option<Duration> {
    let text = std::fs::read_to_string(pressure).ok()?;
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split_whitespace().find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_calm_lasts_until_somebody_waits_for_a_good_part_of_the_time() {
        let calm = lasts(Duration::ZERO, 8 * MILLISECOND, MILLISECOND);
        assert_eq!(calm, 8 * MILLISECOND);
        assert_eq!(lasts(calm, 4 * MILLISECOND, Duration::ZERO), 12 * MILLISECOND);
        assert_eq!(lasts(calm, 8 * MILLISECOND, 2 * MILLISECOND), Duration::ZERO);
    }

    /// How long is waited where one more millisecond was waited for a processor in each of the first `noisy` looks.
    async fn waited_with(noisy: u32) -> Duration {
        let (begun, mut looks) = (Instant::now(), 0);
        let total = || {
            looks += 1;
            Some(MILLISECOND * looks.min(noisy))
        };
        wait(total, sleep).await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_calm_is_enough_and_one_that_does_not_come_is_not_waited_for() {
        assert_eq!(waited_with(0).await, CALM);
        assert_eq!(waited_with(11).await, 10 * LOOK + CALM);
        assert_eq!(waited_with(u32::MAX).await, LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kernel_that_does_not_count_is_not_waited_for() {
        let begun = Instant::now();
        wait(|| None, sleep).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(waited(Path::new("/nonexistent")), None);
    }

    #[test]
    fn the_time_that_some_have_waited_is_read_in_microseconds() {
        let file = std::env::temp_dir().join(format!("tideover-pressure-{}", std::process::id()));
        let text =
            "some avg10=1.00 avg60=2.00 avg300=3.00 total=1500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n";
        std::fs::write(&file, text).expect("write");
        let read = waited(&file);
        std::fs::remove_file(&file).expect("remove");
        assert_eq!(read, Some(Duration::from_micros(1500)));
    }
}
