//! The same program under bare runc.

use anyhow::{Result, ensure};

use super::case::Probe;
use super::moved::settle;
use crate::scenario::bare_runc::BareRunc;
use crate::scenario::{Cluster, Collector};

/// A program under bare runc that is moved again and again, and stands still in between. It ends when dropped.
#[derive(Debug)]
pub struct Bare {
    // Before the collector: what still ticks is told to somebody.
    container: BareRunc,
    collector: Collector,
}

impl Bare {
    /// Starts it, and waits until it has its memory and ticks.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(cluster: &Cluster, probe: &Probe) -> Result<Self> {
        let collector = Collector::listen(cluster.host_address())?;
        let container = BareRunc::start(cluster.node(&cluster.workers()[0])?, &probe.args(collector.address()))?;
        settle(&collector)?;
        container.pause()?;
        Ok(Self { container, collector })
    }

    /// Moves it by `runc checkpoint` and `runc restore` on one node; the longest gap, milliseconds.
    ///
    /// # Errors
    /// When a step fails, or the program does not go on where it was.
    pub fn moved(&self) -> Result<f64> {
        self.container.resume()?;
        settle(&self.collector)?;
        self.collector.take_gap();
        self.container.checkpoint_and_restore()?;
        settle(&self.collector)?;
        let gap = self.collector.take_gap().length.as_secs_f64() * 1e3;
        went_on(&self.collector)?;
        self.container.pause()?;
        Ok(gap)
    }
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
