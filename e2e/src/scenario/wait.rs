//! Waiting for a condition, never for a length of time.

use std::fmt::Display;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything in a scenario may take before it counts as stuck. A wait ends with its condition, so that only a failure takes
/// so long: it is many times what the slowest takes on two cores, and more than the product's own limits.
pub const LIMIT: Duration = Duration::from_secs(300);

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(100);

/// Asks `look` until it answers `Some`.
///
/// # Errors
/// When `limit` has passed, naming `what` was waited for, or when `look` fails.
pub fn until<T>(what: impl Display, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}

/// As [`until`], for a condition that is only true or false.
///
/// # Errors
/// As [`until`].
pub fn until_true(what: impl Display, limit: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, limit, || Ok(look()?.then_some(())))
}
