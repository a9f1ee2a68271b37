//! The cpu limits of the container that is restored. runc puts CRIU under them, so a small quota would make the restore slow;
//! nothing of the application runs in it until the restore has ended.

use super::TargetDriver;
use crate::agent::journal::TargetEntry;
use crate::agent::source::cpu::restored;
use crate::causes::chain;
use crate::throttle::{CpuLimits, ThrottleError};
use tracing::warn;

impl TargetDriver {
    /// Lifts the limits of the cgroups that process `criu` is in: runc has put it into the container's, limits and all, before
    /// it sends the request that the relay has. What was found is in the journal before anything is changed.
    pub(super) async fn lift_limits(&mut self, criu: Option<i32>) {
        let Some(criu) = criu else { return };
        self.restore_limits();
        if !self.limits.records().is_empty() {
            return self.not_lifted("those of a restore before this one are not as they were found");
        }
        let root = self.context.node.root().to_owned();
        let planning = tokio::task::spawn_blocking(move || {
            let mut limits = CpuLimits::of_process(criu, &root)?;
            let planned = limits.plan_lift()?;
            Ok::<_, ThrottleError>((limits, planned))
        });
        let (mut limits, planned) = match planning.await {
            Ok(Ok(planned)) => planned,
            Ok(Err(error)) => return self.not_lifted(&chain(&error)),
            Err(error) => return self.not_lifted(&chain(&error)),
        };
        if !planned {
            return;
        }
        let entry = TargetEntry { restore: self.restore.clone(), resumed: false, cpu: limits.records() };
        if let Err(failure) = self.write_journal(entry).await {
            return self.not_lifted(&failure.message);
        }
        match tokio::task::spawn_blocking(move || (limits.carry_out(), limits)).await {
            Ok((carried_out, limits)) => {
                self.limits = limits;
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

    /// Puts back what was found: the restore has ended. A few writes to files of the kernel. What can't be put back is kept, and
    /// tried again where the attempt comes to its end.
    pub(super) fn restore_limits(&mut self) {
        if let Err(error) = self.limits.restore() {
            warn!(migration = self.key.name, error = %chain(&error), "a cpu limit is not as it was found");
        }
    }

    /// Waits until they are as they were found, or their container is gone. The journal has them until then.
    pub(super) async fn limits_restored(&mut self) {
        restored(std::mem::take(&mut self.limits)).await;
    }
}
