//! The cpu limits of the container that is restored. runc puts CRIU under them, so a small quota would make the restore slow;
//! nothing of the application runs in it until the restore has ended.

use super::TargetDriver;
use crate::causes::chain;
use crate::throttle::{CpuLimits, ThrottleError};
use tracing::warn;

impl TargetDriver {
    /// Lifts the limits of the cgroups that process `criu` is in: runc has put it into the container's, limits and all, before
    /// it sends the request that the relay has. What was found is in the journal before anything is changed.
    pub(super) async fn lift_limits(&mut self, lane: usize, criu: Option<i32>) {
        let Some(criu) = criu else { return };
        self.lanes[lane].restore_limits();
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
        match tokio::task::spawn_blocking(move || limits.carry_out().map(|()| limits)).await {
            Ok(Ok(limits)) => self.lanes[lane].limits = limits,
            Ok(Err(error)) => self.not_lifted(&chain(&error)),
            Err(error) => self.not_lifted(&chain(&error)),
        }
    }

    fn not_lifted(&self, why: &str) {
        warn!(migration = self.key.name, why, "the restore runs under the container's cpu limits");
    }
}
