//! The cpu limit of one container, v1 and v2: taking cpu time away, lifting a limit, and putting back what was found. And which
//! processors its tasks have while they are dumped.
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
mod processor;
#[cfg(test)]
mod tests;

pub use bandwidth::Bandwidth;
pub use error::ThrottleError;
pub use processor::{AffinityRecord, Busy};

use crate::causes::chain;
use crate::freezer::Freezer;
use group::Group;
use processor::OneProcessor;
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

/// One thing that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CpuRecord {
    /// A limit.
    Limit(LimitRecord),
    /// The processors of tasks.
    Affinity(AffinityRecord),
}

/// The cpu limits of one container, and its processors. Dropping them puts back what was found.
#[derive(Debug, Default)]
pub struct CpuLimits {
    /// The container's, then its pod's.
    limits: Vec<Limit>,
    /// What its tasks have one processor by.
    one_processor: Option<OneProcessor>,
    /// The CRIU that is to have the same, where that is planned.
    beside: Option<i32>,
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
        Ok(Self { limits, usage: found.usage, one_processor: None, beside: None })
    }

    /// Takes over what somebody before this has changed. Cgroups that are gone are left out.
    pub fn adopt(records: &[CpuRecord], node_root: &Path) -> Self {
        let mut adopted = Self::default();
        for record in records {
            match record {
                CpuRecord::Limit(LimitRecord { cgroup, found, set }) => {
                    let limit = |group| Limit { group, found: *found, set: set.clone(), planned: None };
                    adopted.limits.extend(Group::at(cgroup, node_root).map(limit));
                }
                CpuRecord::Affinity(record) => adopted.one_processor = OneProcessor::adopt(record, node_root),
            }
        }
        adopted
    }

    /// What was changed, or is about to be.
    pub fn records(&self) -> Vec<CpuRecord> {
        let changed = self.limits.iter().filter(|limit| !limit.set.is_empty());
        let limits = changed.map(|limit| {
            let cgroup = limit.group.path_in_node().to_owned();
            CpuRecord::Limit(LimitRecord { cgroup, found: limit.found, set: limit.set.clone() })
        });
        limits.chain(self.one_processor.iter().map(|processor| CpuRecord::Affinity(processor.record()))).collect()
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
        self.beside = None;
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

    /// Plans that the tasks of the container, which `freezer` is of, have one processor, together with `criu`, where there are so many
    /// processes that CRIU gets on faster so: to be carried out when they are frozen. It is the one that was least `busy`, of those
    /// that are not `taken` by other containers where there are such; the one that was chosen first stays, because it may be
    /// written down. Returns it, where that is planned. Blocking, for as long as it takes to look at every task.
    ///
    /// # Errors
    /// Where it can't be told what processors the tasks have. Nothing is planned then.
    pub fn plan_one_processor(
        &mut self,
        criu: i32,
        freezer: &Freezer,
        busy: &Busy,
        taken: &[usize],
    ) -> Result<Option<usize>, ThrottleError> {
        if self.one_processor.is_none() {
            self.one_processor = OneProcessor::plan(freezer, busy, taken)?;
        }
        self.beside = self.one_processor.is_some().then_some(criu);
        Ok(self.one_processor.as_ref().map(OneProcessor::one))
    }

    /// Does what was planned, except where somebody else has set another limit since.
    ///
    /// # Errors
    /// Where a limit can't be written, or processors can't be chosen. What was changed is known, and put back all the same.
    pub fn carry_out(&mut self) -> Result<(), ThrottleError> {
        self.limits.iter_mut().try_for_each(Limit::carry_out)?;
        match (&mut self.one_processor, self.beside.take()) {
            (Some(processor), Some(criu)) => processor.carry_out(criu),
            _ => Ok(()),
        }
    }

    /// Puts back what was found, except where somebody else has set another limit since. A cgroup that is gone is no error.
    ///
    /// # Errors
    /// Where a limit can't be read or written. The others are put back, and this one is tried again by another call.
    pub fn restore(&mut self) -> Result<(), ThrottleError> {
        let mut restored: Vec<_> = self.limits.iter_mut().map(Limit::restore).collect();
        restored.push(self.give_processors_back());
        restored.into_iter().collect()
    }

    /// Whether the container's tasks may have been left one processor.
    pub fn has_one_processor(&self) -> bool {
        self.one_processor.as_ref().is_some_and(OneProcessor::is_bound)
    }

    /// Gives the container's tasks the processors that they had. They should be frozen: what a task that runs makes meanwhile may be
    /// left out.
    ///
    /// # Errors
    /// Where that fails for one of them. It is tried again by another call.
    pub fn give_processors_back(&mut self) -> Result<(), ThrottleError> {
        self.beside = None;
        self.one_processor.as_ref().map_or(Ok(()), OneProcessor::restore)?;
        self.one_processor = None;
        Ok(())
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
