//! A pod that is frozen, or may be. There are two ways out of it, and each takes the proof that it is the right one.
//!
//! A freeze for a move may end in a commit, so its proofs come from the API server. A freeze for a cut or a checkpoint can't, and its
//! proof comes with it; see [`OnlyCut`] and [`OnlyStored`].

use crate::agent::owner::{Aborted, Committed};
use crate::agent::source::cut::OnlyCut;
use crate::agent::source::snapshot::OnlyStored;
use crate::causes::chain;
use crate::freezer::{Freezer, FreezerError};
use crate::throttle::CpuLimits;
use std::time::Duration;
use tracing::{error, warn};

/// How long one try to freeze may take. The usual freeze takes a fraction of a millisecond.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);
/// How long one try to thaw or to kill may take before it is tried again.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Why a frozen pod may run again.
#[derive(Debug)]
pub enum MayRun {
    /// The attempt that it was frozen for was aborted.
    Aborted(Aborted),
    /// It was frozen for a cut.
    OnlyCut(OnlyCut),
    /// It was frozen for a checkpoint.
    OnlyStored(OnlyStored),
}

impl From<Aborted> for MayRun {
    fn from(proof: Aborted) -> Self {
        Self::Aborted(proof)
    }
}

impl From<OnlyCut> for MayRun {
    fn from(proof: OnlyCut) -> Self {
        Self::OnlyCut(proof)
    }
}

impl From<OnlyStored> for MayRun {
    fn from(proof: OnlyStored) -> Self {
        Self::OnlyStored(proof)
    }
}

/// A pod that may be frozen. Dropping it changes nothing on the node: a pod whose attempt is undecided stays frozen,
/// and the journal knows of it.
#[derive(Debug)]
#[must_use]
pub struct FrozenPod {
    freezer: Freezer,
    /// Lifted while it is frozen, put back before it runs.
    limits: CpuLimits,
    ended: bool,
}

impl FrozenPod {
    /// Freezes, and then does what was planned with the container's cpu limits: whoever was slowed down gets nothing to run
    /// with before. On return the pod may be frozen whatever the result says, which is why there is a guard in any case.
    /// Blocking, at most two seconds.
    pub fn freeze(freezer: Freezer, mut limits: CpuLimits) -> (Self, Result<Duration, FreezerError>) {
        let frozen = freezer.freeze(FREEZE_LIMIT);
        if frozen.is_ok()
            && let Err(error) = limits.carry_out()
        {
            warn!(error = %chain(&error), "the container is dumped under the cpu limits that it has");
        }
        (Self { freezer, limits, ended: false }, frozen)
    }

    /// Takes over what an agent before this one froze, with the limits that it has changed.
    pub fn adopt(freezer: Freezer, limits: CpuLimits) -> Self {
        Self { freezer, limits, ended: false }
    }

    /// The container's freezer.
    pub fn freezer(&self) -> &Freezer {
        &self.freezer
    }

    /// Lets the application run again. Returns its cpu limits: one that could not be put back does not keep it frozen. Blocking.
    ///
    /// # Errors
    /// With the guard, so that it can be tried again. A container that has ended is no error.
    pub fn thaw(mut self, _proof: &MayRun) -> Result<CpuLimits, Box<(Self, FreezerError)>> {
        if let Err(error) = self.limits.restore() {
            warn!(error = %chain(&error), "the container runs with a cpu limit that is not as it was found");
        }
        match self.freezer.thaw(END_LIMIT) {
            Ok(()) | Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }) => {
                self.ended = true;
                Ok(std::mem::take(&mut self.limits))
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// Thaws for a moment, because the pod may run, a CRIU that hangs can only end in a pod that runs, and the guard is
    /// needed until it has ended. Blocking.
    ///
    /// # Errors
    /// As [`FrozenPod::thaw`].
    pub fn thaw_under_criu(&self, _proof: &MayRun) -> Result<(), FreezerError> {
        self.freezer.thaw(END_LIMIT)
    }

    /// Ends every process, because the attempt was committed elsewhere. None of them runs another instruction of its own:
    /// the kill is pending before the thaw. Blocking.
    ///
    /// # Errors
    /// With the guard, so that it can be tried again. A container that has ended is no error.
    pub fn retire(mut self, _proof: &Committed) -> Result<(), Box<(Self, FreezerError)>> {
        match self.freezer.kill_all(END_LIMIT) {
            Ok(()) | Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }) => {
                self.ended = true;
                Ok(())
            }
            Err(error) => Err(Box::new((self, error))),
        }
    }
}

impl Drop for FrozenPod {
    fn drop(&mut self) {
        if !self.ended {
            error!(cgroup = ?self.freezer.path_in_node(), "left frozen: the attempt is undecided, the journal has it");
        }
    }
}
