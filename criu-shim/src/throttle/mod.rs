//! The cpu limit of one container, v1 and v2: taking cpu time away, lifting a limit, and putting back what was found.
//!
//! Owns finding the cgroups that limit a container (its own, and its pod's: a kubelet gives both a quota), and remembers what
//! was found in them. It never decides when, and never overwrites what somebody else has set: a limit that is neither what was
//! found nor what was written here is left as it is.
//!
//! A change is made in two steps, so that it can be written down in between: [`CpuLimits::plan_lift`] or
//! [`CpuLimits::plan_share`], then [`CpuLimits::carry_out`]. What [`CpuLimits::records`] returned before the second is enough for
//! [`CpuLimits::adopt`] to put everything back after a kill.

mod bandwidth;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod group;
#[cfg(test)]
mod tests;

pub use bandwidth::Bandwidth;
pub use error::ThrottleError;

use crate::causes::chain;
use group::Group;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::warn;

/// What is known of the limit of one cgroup: enough to put it back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitRecord {
    /// Directory of the cgroup, as a path on the node.
    pub cgroup: PathBuf,
    /// What was found there.
    pub found: Bandwidth,
    /// What was, or is about to be, put in its place.
    pub set: Vec<Bandwidth>,
}

/// The cpu limits of one container. Dropping them puts back what was found.
#[derive(Debug, Default)]
pub struct CpuLimits {
    /// The container's, then its pod's.
    limits: Vec<Limit>,
    /// Where the kernel counts the container's cpu time.
    usage: Option<group::Usage>,
}

#[derive(Debug)]
struct Limit {
    group: Group,
    found: Bandwidth,
    set: Vec<Bandwidth>,
    planned: Option<Bandwidth>,
}

impl CpuLimits {
    /// The limits of the container that process `pid` is in. `pid` and `node_root` as for
    /// [`Freezer::of_process`](crate::freezer::Freezer::of_process).
    ///
    /// # Errors
    /// Where its cgroup can't be found or read.
    pub fn of_process(pid: i32, node_root: &Path) -> Result<Self, ThrottleError> {
        let found = group::of_process(pid, node_root)?;
        let limits = found.groups.into_iter().map(Limit::read).collect::<Result<_, _>>()?;
        Ok(Self { limits, usage: found.usage })
    }

    /// Takes over what somebody before this has changed. Cgroups that are gone are left out.
    pub fn adopt(records: &[LimitRecord], node_root: &Path) -> Self {
        let limits = records.iter().filter_map(|record| {
            let group = Group::at(&record.cgroup, node_root)?;
            Some(Limit { group, found: record.found, set: record.set.clone(), planned: None })
        });
        Self { limits: limits.collect(), usage: None }
    }

    /// What was changed, or is about to be.
    pub fn records(&self) -> Vec<LimitRecord> {
        let changed = self.limits.iter().filter(|limit| !limit.set.is_empty());
        changed
            .map(|limit| LimitRecord {
                cgroup: limit.group.path_in_node().to_owned(),
                found: limit.found,
                set: limit.set.clone(),
            })
            .collect()
    }

    /// The cpu time that the container has had since it was made, for [`CpuLimits::plan_share`] to measure by.
    ///
    /// # Errors
    /// Where the kernel does not say.
    pub fn usage(&self) -> Result<Duration, ThrottleError> {
        self.usage.as_ref().ok_or(ThrottleError::NoAccount)?.read()
    }

    /// Plans to leave the container `percent` of `used`, the cpus that it kept busy before, in place of what was planned before.
    /// Returns the limit to be.
    ///
    /// # Errors
    /// Where its limit can't be read.
    pub fn plan_share(&mut self, used: f64, percent: u32) -> Result<Bandwidth, ThrottleError> {
        self.limits.iter_mut().for_each(|limit| limit.planned = None);
        let own = self.limits.first_mut().ok_or(ThrottleError::NoController)?;
        own.look()?;
        let share = own.found.share(used, percent);
        own.plan(share);
        Ok(share)
    }

    /// Plans to take every limit away, in place of what was planned before. Returns whether there is one.
    ///
    /// # Errors
    /// Where a limit can't be read.
    pub fn plan_lift(&mut self) -> Result<bool, ThrottleError> {
        self.limits.iter_mut().for_each(|limit| limit.planned = None);
        for limit in &mut self.limits {
            limit.look()?;
            if limit.group.read()?.quota.is_some() {
                limit.plan(limit.found.lifted());
            }
        }
        Ok(self.limits.iter().any(|limit| limit.planned.is_some()))
    }

    /// Does what was planned, except where somebody else has set another limit since.
    ///
    /// # Errors
    /// Where a limit can't be written. What was changed is known, and put back all the same.
    pub fn carry_out(&mut self) -> Result<(), ThrottleError> {
        self.limits.iter_mut().try_for_each(Limit::carry_out)
    }

    /// Puts back what was found, except where somebody else has set another limit since. A cgroup that is gone is no error.
    ///
    /// # Errors
    /// Where a limit can't be read or written. The others are put back, and this one is tried again by another call.
    pub fn restore(&mut self) -> Result<(), ThrottleError> {
        let restored: Vec<_> = self.limits.iter_mut().map(Limit::restore).collect();
        restored.into_iter().collect()
    }
}

impl Drop for CpuLimits {
    fn drop(&mut self) {
        if let Err(error) = self.restore() {
            warn!(error = %chain(&error), "a cpu limit is not as it was found");
        }
    }
}

impl Limit {
    fn read(group: Group) -> Result<Self, ThrottleError> {
        let found = group.read()?;
        Ok(Self { group, found, set: Vec::new(), planned: None })
    }

    fn is_ours(&self, bandwidth: Bandwidth) -> bool {
        self.set.contains(&bandwidth)
    }

    /// Takes what somebody else has set since as what was found.
    fn look(&mut self) -> Result<(), ThrottleError> {
        let now = self.group.read()?;
        if now != self.found && !self.is_ours(now) {
            self.found = now;
            self.set.clear();
        }
        Ok(())
    }

    fn plan(&mut self, bandwidth: Bandwidth) {
        self.planned = Some(bandwidth);
        if !self.is_ours(bandwidth) {
            self.set.push(bandwidth);
        }
    }

    fn carry_out(&mut self) -> Result<(), ThrottleError> {
        let Some(planned) = self.planned.take() else { return Ok(()) };
        let now = self.group.read()?;
        if now == self.found || self.is_ours(now) { self.group.write(planned) } else { Ok(()) }
    }

    fn restore(&mut self) -> Result<(), ThrottleError> {
        self.planned = None;
        let restored = match self.group.read() {
            Ok(now) if now != self.found && self.is_ours(now) => self.group.write(self.found),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        match restored {
            Ok(()) | Err(ThrottleError::Gone { .. }) => {
                self.set.clear();
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
