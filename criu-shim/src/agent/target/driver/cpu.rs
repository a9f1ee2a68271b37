//! The cpu limits of containers that are restored. runc puts CRIU under them, so a small quota would make the restore slow;
//! nothing of the application runs in it until the restore has ended.

use super::TargetDriver;
use crate::agent::source::cpu::restored;
use crate::causes::chain;
use crate::throttle::{CpuLimits, ThrottleError};
use futures::future::join_all;
use tracing::warn;

impl TargetDriver {
    /// Lifts the limits of the cgroups that process `criu` is in: runc has put it into the container's, limits and all, before
    /// it sends the request that the relay has. What was found is in the journal before anything is changed.
    pub(super) async fn lift_limits(&mut self, lane: usize, criu: Option<i32>) {
        let Some(criu) = criu else { return };
        self.lanes[lane].restore_limits();
        if !self.lanes[lane].limits.records().is_empty() {
            return self.not_lifted("those of a restore before this one are not as they were found");
        }
        let root = self.context.node.root().to_owned();
        let planning = tokio::task::spawn_blocking(move || {
            let mut limits = CpuLimits::of_process(criu, &root)?;
            let planned = limits.plan_lift()?;
            Ok::<_, ThrottleError>((limits, planned))
        });
        let (limits, planned) = match planning.await {
            Ok(Ok(planned)) => planned,
            Ok(Err(error)) => return self.not_lifted(&chain(&error)),
            Err(error) => return self.not_lifted(&chain(&error)),
        };
        if !planned {
            return;
        }
        self.lanes[lane].limits = limits;
        if let Err(failure) = self.write_journal().await {
            self.lanes[lane].restore_limits();
            return self.not_lifted(&failure.message);
        }
        let mut limits = std::mem::take(&mut self.lanes[lane].limits);
        match tokio::task::spawn_blocking(move || (limits.carry_out(), limits)).await {
            Ok((carried_out, limits)) => {
                self.lanes[lane].limits = limits;
                if let Err(error) = carried_out {
                    self.not_lifted(&chain(&error));
                }
            }
            Err(error) => self.not_lifted(&chain(&error)),
        }
    }

    fn not_lifted(&self, why: &str) {
        warn!(migration = self.key.name, why, "the restore runs under the container's cpu limits");
    }

    /// Waits until they are as they were found, or their container is gone. The journal has them until then.
    pub(super) async fn limits_restored(&mut self) {
        let limits = self.lanes.iter_mut().map(|lane| std::mem::take(&mut lane.limits));
        join_all(limits.map(restored)).await;
    }
}
