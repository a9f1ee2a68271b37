//! The same program under bare runc.

use anyhow::{Result, ensure};

use super::case::Probe;
use super::moved::settle;
use crate::scenario::bare_runc::BareRunc;
use crate::scenario::{Cluster, Collector};

/// The longest gaps in `runs` moves by `runc checkpoint` and `runc restore` on one node, milliseconds; each is given to
/// `seen`.
///
/// # Errors
/// When a step fails, or the program does not go on where it was.
pub fn moves(cluster: &Cluster, probe: &Probe, runs: usize, mut seen: impl FnMut(f64)) -> Result<Vec<f64>> {
    if runs == 0 {
        return Ok(Vec::new());
    }
    let collector = Collector::listen(cluster.host_address())?;
    let bare = BareRunc::start(cluster.node(&cluster.workers()[0])?, &probe.args(collector.address()))?;
    let mut gaps = Vec::new();
    for _ in 0..runs {
        settle(&collector)?;
        collector.take_gap();
        bare.checkpoint_and_restore()?;
        settle(&collector)?;
        let gap = collector.take_gap().length.as_secs_f64() * 1e3;
        seen(gap);
        gaps.push(gap);
    }
    went_on(&collector)?;
    Ok(gaps)
}

/// An error unless one program ticked all the time.
///
/// # Errors
/// With the account of its ticks.
pub fn went_on(collector: &Collector) -> Result<()> {
    let account = collector.account();
    ensure!(account.starts.len() == 1 && account.repeated == 0, "the program did not go on: {account:?}");
    Ok(())
}
