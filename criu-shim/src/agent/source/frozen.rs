//! A pod that is frozen, or may be. There are two ways out of it, and each takes the proof that it is the right one.
//!
//! A freeze for a move may end in a commit, so its proofs come from the API server. A freeze for a cut or a checkpoint can't, and its
//! proof comes with it; see [`OnlyCut`] and [`OnlyStored`].

use crate::agent::owner::{Aborted, Committed};
use crate::agent::source::cut::OnlyCut;
use crate::agent::source::snapshot::OnlyStored;
use crate::causes::chain;
use crate::freezer::{Freezer, FreezerError, FreezerState};
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
    containers: Vec<FrozenContainer>,
    /// Cpu limits of those that were thawed, or have ended.
    settled: Vec<CpuLimits>,
}

/// One of its containers that may be frozen.
#[derive(Debug)]
pub struct FrozenContainer {
    /// Its freezer.
    pub freezer: Freezer,
    /// Its cpu limits: lifted while it is frozen, put back before it runs.
    pub limits: CpuLimits,
}

impl FrozenPod {
    /// Freezes all containers, and then does what was planned with their cpu limits: whoever was slowed down gets nothing to run
    /// with before. A container that is frozen somewhat later than another is at the same cut: it is as if the other had been
    /// slow, and what it wrote to it meanwhile is where that will find it. On return the pod may be frozen whatever the result
    /// says, which is why there is a guard in any case. Returns how long it took. Blocking, at most two seconds a container.
    pub fn freeze(mut containers: Vec<FrozenContainer>) -> (Self, Result<Duration, FreezerError>) {
        let frozen = containers.iter().try_fold(Duration::ZERO, |before, container| {
            container.freezer.freeze(FREEZE_LIMIT).map(|took| before + took)
        });
        if frozen.is_ok() {
            for container in &mut containers {
                if let Err(error) = container.limits.carry_out() {
                    warn!(error = %chain(&error), "the container is dumped with less cpu time than it could have");
                }
            }
        }
        (Self::adopt(containers), frozen)
    }

    /// Takes over what an agent before this one froze, with the limits that it has changed.
    pub fn adopt(containers: Vec<FrozenContainer>) -> Self {
        Self { containers, settled: Vec::new() }
    }

    /// Where its containers are frozen.
    pub fn freezers(&self) -> Vec<Freezer> {
        self.containers.iter().map(|container| container.freezer.clone()).collect()
    }

    /// The same containers, for whoever loses this guard. Their limits are put back by being dropped.
    pub fn spare(&self) -> Vec<FrozenContainer> {
        let spare = |container: &FrozenContainer| FrozenContainer {
            freezer: container.freezer.clone(),
            limits: CpuLimits::default(),
        };
        self.containers.iter().map(spare).collect()
    }

    /// Lets the application run again. Returns the cpu limits of all containers: one that could not be put back does not keep the
    /// application frozen. Blocking.
    ///
    /// # Errors
    /// With the guard, so that it can be tried again. A container that has ended is no error.
    pub fn thaw(mut self, _proof: &MayRun) -> Result<Vec<CpuLimits>, Box<(Self, FreezerError)>> {
        let settled = self.settle(|container| {
            container.give_processors_back();
            if let Err(error) = container.limits.restore() {
                warn!(error = %chain(&error), "the container runs with cpu limits or processors that are not as they were found");
            }
            container.freezer.thaw(END_LIMIT)
        });
        match settled {
            Ok(()) => Ok(std::mem::take(&mut self.settled)),
            Err(error) => Err(Box::new((self, error))),
        }
    }

    /// Gives all containers the processors that they had: nothing more is dumped, and what a CRIU that was killed has thawed may run
    /// already. That is no way out and takes no proof: each is frozen or not as it was before. What can't be given back is tried
    /// again by whoever thaws. Blocking, at most some seconds a container.
    pub fn give_processors_back(&mut self) {
        self.containers.iter_mut().for_each(FrozenContainer::give_processors_back);
    }

    /// Thaws for a moment, because the pod may run, a CRIU that hangs can only end in a pod that runs, and the guard is
    /// needed until it has ended. Blocking.
    ///
    /// # Errors
    /// As [`FrozenPod::thaw`].
    pub fn thaw_under_criu(&mut self, _proof: &MayRun) -> Result<(), FreezerError> {
        self.give_processors_back();
        self.containers.iter().try_for_each(|container| container.freezer.thaw(END_LIMIT))
    }

    /// Ends every process, because the attempt was committed elsewhere. None of them runs another instruction of its own:
    /// the kill is pending before the thaw. Blocking.
    ///
    /// # Errors
    /// With the guard, so that it can be tried again. A container that has ended is no error.
    pub fn retire(mut self, _proof: &Committed) -> Result<(), Box<(Self, FreezerError)>> {
        self.settle(|container| container.freezer.kill_all(END_LIMIT)).map_err(|error| Box::new((self, error)))
    }

    /// Does `what` to every container. Those with which that went wrong stay, and the error is of the last of them.
    fn settle(
        &mut self,
        mut what: impl FnMut(&mut FrozenContainer) -> Result<(), FreezerError>,
    ) -> Result<(), FreezerError> {
        let Self { containers, settled } = self;
        let mut failed = None;
        containers.retain_mut(|container| match what(container) {
            Ok(()) | Err(FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }) => {
                settled.push(std::mem::take(&mut container.limits));
                false
            }
            Err(error) => {
                failed = Some(error);
                true
            }
        });
        failed.map_or(Ok(()), Err)
    }
}

impl FrozenContainer {
    /// Gives its tasks the processors that they had. That is done while it is frozen, also where a CRIU that was killed has thawed it: what
    /// a task makes is no task yet for a while, and would have what that task had before.
    fn give_processors_back(&mut self) {
        if !self.limits.has_one_processor() {
            return;
        }
        let ran = matches!(self.freezer.state(), Ok(FreezerState::Thawed));
        if let Err(error) = self.freezer.freeze(FREEZE_LIMIT) {
            warn!(error = %chain(&error), "processes are given their processors back while they may run");
        }
        if let Err(error) = self.limits.give_processors_back() {
            warn!(error = %chain(&error), "processes are left one processor for now");
        }
        if ran && let Err(error) = self.freezer.thaw(END_LIMIT) {
            warn!(error = %chain(&error), "a container that ran stays frozen until its attempt is decided");
        }
    }
}

impl Drop for FrozenPod {
    fn drop(&mut self) {
        for container in &self.containers {
            error!(cgroup = ?container.freezer.path_in_node(), "left frozen: the attempt is undecided, the journal has it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::Busy;
    use crate::throttle::fixture::{Beside, Pod};
    use nix::sched::{CpuSet, sched_getaffinity};
    use nix::unistd::Pid;
    use std::time::Instant;

    /// Each process makes another one and ends, two thousand times.
    const FORKS: &str = "f() { [ $1 -eq 0 ] || f $(($1 - 1)) & }; f 2000; wait; exec sleep 600";

    fn affinity(pid: i32) -> nix::Result<CpuSet> {
        sched_getaffinity(Pid::from_raw(pid))
    }

    #[test]
    fn what_a_killed_criu_leaves_running_has_all_processors_again_and_so_has_what_it_makes() {
        let Some(pod) = Pod::crowd(FORKS) else { return };
        let freezer = pod.freezer();
        let (criu, found) = (Beside::start(), affinity(pod.pid()).expect("affinity"));
        let begun = Instant::now();
        let (mut bound, mut times) = (0, 0);
        // Until the chain of forks has ended.
        while (times == 0 || pod.pids().len() > 12) && begun.elapsed() < Duration::from_secs(60) {
            let mut limits = pod.limits();
            if limits.plan_one_processor(criu.pid(), &freezer, &Busy::default(), &[]).expect("plan").is_none() {
                assert_eq!(times, 0, "a task was left one processor");
                return eprintln!("not tried: this machine has one processor");
            }
            let (mut frozen, froze) = FrozenPod::freeze(vec![FrozenContainer { freezer: freezer.clone(), limits }]);
            froze.expect("frozen");
            bound += usize::from(affinity(pod.pid()).expect("affinity") != found);
            freezer.thaw(END_LIMIT).expect("as a CRIU does");
            frozen.give_processors_back();
            times += 1;
        }
        assert_eq!((bound, freezer.state().expect("a state")), (times, FreezerState::Thawed));
        assert!(pod.pids().into_iter().all(|pid| affinity(pid) == Ok(found)));
    }
}
