//! What this node must do now for one Migration: a pure decision from the object and what was done here already.
//!
//! It never does I/O and never reads a clock. Two rules hold for whatever sequence of objects it is shown: it answers
//! [`SourceDuty::Thaw`] only where the attempt that froze the pod was aborted, and [`TargetDuty::Resume`] only where
//! the attempt was committed to this node and not given up since, or [`TargetDuty::Run`] where this agent has taken it.

use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, MigrationStatus, Phase, SourceStep, Strategy, TargetStep};

/// Which side of a Migration a node is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The pod runs here.
    Source,
    /// The pod will run here.
    Target,
}

/// The side that `node` is on in `migration`, if any.
pub fn role(migration: &Migration, node: &str) -> Option<Role> {
    let status = migration.status.as_ref()?;
    if status.source_pod.as_ref()?.node.as_deref() == Some(node) {
        Some(Role::Source)
    } else if status.target_node.as_deref() == Some(node) {
        Some(Role::Target)
    } else {
        None
    }
}

/// What the source's side has done, for which attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceLocal {
    /// The attempt that `at` speaks of.
    pub attempt: u32,
    /// How far it got.
    pub at: SourceAt,
}

/// How far the source's side got in an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceAt {
    /// Nothing was done.
    Idle,
    /// Preflight passed.
    Ready,
    /// Connected to the target; what can go early has gone.
    Connected,
    /// Connected, and the cut for the rehearsal has been sent. The application runs.
    Cut,
    /// This side said that it can't go on. Nothing is frozen.
    Failed,
    /// The pod is frozen, or may be: the journal says that a freeze was begun and not that it was ended.
    Frozen,
    /// Nothing of the attempt is left here; the application runs.
    Thawed,
    /// No process of the source is left here.
    Retired,
}

/// What the source's side must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceDuty {
    /// Wait for news.
    None,
    /// Look whether the pod can be dumped, and report `Ready`.
    Preflight(u32),
    /// Connect to the target, send what can go early, and report `PreCopying`, then `Converged`.
    Connect(u32),
    /// Freeze for a moment, and send what was dumped for the rehearsal.
    Cut(u32),
    /// The go: freeze, dump, send, and see it through to the verdict.
    Freeze(u32),
    /// Frozen, and nobody has decided: stay so, and find out.
    Settle(u32),
    /// The target has taken it, and nothing is frozen or will be: decide it for this node.
    TakeBack(u32),
    /// Aborted while frozen: thaw.
    Thaw(u32),
    /// Aborted (or over) with nothing frozen: clean up and report `Thawed`.
    Abandon(u32),
    /// Committed: make sure that nothing of the source ever runs again.
    Retire(u32),
}

/// Decides the source's next step.
pub fn source_duty(migration: &Migration, local: SourceLocal) -> SourceDuty {
    let Some(status) = &migration.status else { return SourceDuty::None };
    if local.at == SourceAt::Frozen {
        return match status.verdict_of(local.attempt) {
            Verdict::Open | Verdict::Taken => SourceDuty::Settle(local.attempt),
            Verdict::Aborted => SourceDuty::Thaw(local.attempt),
            Verdict::Committed => SourceDuty::Retire(local.attempt),
        };
    }
    let attempt = status.attempt;
    let at = if local.attempt == attempt { local.at } else { SourceAt::Idle };
    let reported = status.source_now().map(|report| report.step);
    match status.verdict_of(attempt) {
        Verdict::Committed if at == SourceAt::Retired || reported == Some(SourceStep::Retired) => SourceDuty::None,
        Verdict::Committed => SourceDuty::Retire(attempt),
        Verdict::Aborted if at == SourceAt::Thawed || reported == Some(SourceStep::Thawed) => SourceDuty::None,
        Verdict::Aborted => SourceDuty::Abandon(attempt),
        Verdict::Taken => taken_source_duty(migration.metadata.deletion_timestamp.is_some(), attempt, at),
        Verdict::Open if status.phase.is_terminal() => match at {
            SourceAt::Ready | SourceAt::Connected | SourceAt::Cut => SourceDuty::Abandon(attempt),
            _ => SourceDuty::None,
        },
        Verdict::Open if migration.metadata.deletion_timestamp.is_some() || attempt == 0 => SourceDuty::None,
        Verdict::Open => open_source_duty(status, attempt, at),
    }
}

/// The target takes the attempt at the go. A side that can't come to the freeze any more says so by taking it back.
fn taken_source_duty(deleted: bool, attempt: u32, at: SourceAt) -> SourceDuty {
    match at {
        SourceAt::Connected | SourceAt::Cut if deleted => SourceDuty::TakeBack(attempt),
        SourceAt::Connected | SourceAt::Cut => SourceDuty::Freeze(attempt),
        SourceAt::Idle | SourceAt::Ready | SourceAt::Failed => SourceDuty::TakeBack(attempt),
        SourceAt::Frozen | SourceAt::Thawed | SourceAt::Retired => SourceDuty::None,
    }
}

fn open_source_duty(status: &MigrationStatus, attempt: u32, at: SourceAt) -> SourceDuty {
    let reachable = status.target_now().is_some_and(|target| target.failure.is_none() && target.address.is_some());
    match (status.phase, at) {
        (
            Phase::Preparing | Phase::PreCopying | Phase::Rehearsing | Phase::Handover | Phase::Freezing,
            SourceAt::Idle,
        ) => SourceDuty::Preflight(attempt),
        (Phase::PreCopying | Phase::Rehearsing | Phase::Handover | Phase::Freezing, SourceAt::Ready) if reachable => {
            SourceDuty::Connect(attempt)
        }
        (Phase::Rehearsing, SourceAt::Connected) => SourceDuty::Cut(attempt),
        (Phase::Freezing, SourceAt::Connected | SourceAt::Cut) => SourceDuty::Freeze(attempt),
        _ => SourceDuty::None,
    }
}

/// What the target's side has done for one container of the pod, in the current attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneLocal {
    /// Everything has landed and is verified.
    pub staged: bool,
    /// A relay holds CRIU's request.
    pub waiting: bool,
    /// The request was released.
    pub released: bool,
    /// The processes are rebuilt and held.
    pub held: bool,
    /// The processes run here.
    pub resumed: bool,
}

/// Whether this agent has taken the attempt, so that the agents of the two nodes alone decide it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Taking {
    /// It has not tried.
    #[default]
    Not,
    /// It tries, and what came of it is not known yet.
    UnderWay,
    /// It has.
    Done,
}

/// What the target's side has done, for which attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetLocal {
    /// The attempt that the rest speaks of.
    pub attempt: u32,
    /// Ready to receive.
    pub listening: bool,
    /// Everything has landed and is verified.
    pub staged: bool,
    /// A relay holds CRIU's request.
    pub waiting: bool,
    /// The request was released.
    pub released: bool,
    /// The processes are rebuilt and held.
    pub held: bool,
    /// The processes run here.
    pub resumed: bool,
    /// Whether the attempt is this agent's to decide.
    pub taking: Taking,
    /// It is certain that CRIU had no request for this attempt, whoever was the agent, or that nothing is left of what it made.
    pub unreleased: bool,
    /// This side said that it can't go on.
    pub failed: bool,
    /// Nothing of the attempt is left here.
    pub destroyed: bool,
}

impl TargetLocal {
    /// Whether CRIU waits for a request that it can be given.
    fn is_due(&self) -> bool {
        self.staged && self.waiting && !self.released
    }

    /// The same, with what was done for each container of the pod.
    ///
    /// Until they are told to run the containers go `together`: one that is behind holds up all others, so that they are let run when all
    /// of them are held. After it each goes for itself: none can be taken back any more, and what one of them has not been able to do yet,
    /// it goes on with from the same cut.
    #[must_use]
    pub fn of_pod(self, lanes: &[LaneLocal], together: bool) -> Self {
        let left = || lanes.iter().filter(|lane| !lane.resumed);
        let any = !lanes.is_empty();
        let pod = Self {
            staged: any && lanes.iter().all(|lane| lane.staged),
            resumed: any && lanes.iter().all(|lane| lane.resumed),
            ..self
        };
        if together {
            Self {
                waiting: any && lanes.iter().all(|lane| lane.waiting),
                released: any && lanes.iter().all(|lane| lane.released),
                held: any && lanes.iter().all(|lane| lane.held),
                ..pod
            }
        } else {
            let due = left().any(|lane| lane.waiting && !lane.released);
            let waiting = left().any(|lane| lane.waiting);
            Self { waiting, released: waiting && !due, held: left().any(|lane| lane.held), ..pod }
        }
    }
}

/// What the target's side must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetDuty {
    /// Wait for news.
    None,
    /// Get ready to receive and report `Listening`.
    Listen(u32),
    /// Take the attempt, so that the agents of the two nodes alone decide it. For an agent that comes after the one that has: to give it back.
    Take(u32),
    /// Put files in place and let CRIU use the images. Before the commit: and take the attempt meanwhile, if it is not taken.
    Release(u32),
    /// Everything is rebuilt, and the attempt is this agent's: let the processes run, and commit.
    Run(u32),
    /// Take `status.owner` for this node, for good.
    Commit(u32),
    /// Committed: let the processes run.
    Resume(u32),
    /// Aborted, or given up after the commit: remove everything and report `Destroyed`.
    Destroy(u32),
    /// The processes run here: remove images.
    Clean(u32),
}

/// Decides the target's next step on `node`.
pub fn target_duty(migration: &Migration, node: &str, local: TargetLocal) -> TargetDuty {
    let Some(status) = &migration.status else { return TargetDuty::None };
    let busy = local.attempt > 0 && local.attempt < status.attempt && local.listening && !local.destroyed;
    let local = if busy || local.attempt == status.attempt {
        local
    } else {
        TargetLocal { attempt: status.attempt, ..TargetLocal::default() }
    };
    let chosen = status.target_node.as_deref() == Some(node);
    let attempt = local.attempt;
    let reported = status.target.as_ref().filter(|report| report.attempt == attempt).map(|report| report.step);
    match status.verdict_of(attempt) {
        Verdict::Committed if status.owner.as_ref().is_none_or(|owner| owner.node != node) => TargetDuty::None,
        Verdict::Committed if local.resumed => {
            if local.listening {
                TargetDuty::Clean(attempt)
            } else {
                TargetDuty::None
            }
        }
        // Given up: the application starts cold, here or elsewhere, and no restored copy may run beside it.
        Verdict::Committed if status.is_given_up() => {
            if local.listening && !local.destroyed {
                TargetDuty::Destroy(attempt)
            } else {
                TargetDuty::None
            }
        }
        Verdict::Committed if local.held => TargetDuty::Resume(attempt),
        Verdict::Committed if local.is_due() => TargetDuty::Release(attempt),
        Verdict::Committed => TargetDuty::None,
        Verdict::Taken if status.owner.as_ref().is_none_or(|owner| owner.node != node) => TargetDuty::None,
        // By an agent before this one, and nothing runs.
        Verdict::Taken if local.taking == Taking::Not && local.listening && local.unreleased => {
            TargetDuty::Take(attempt)
        }
        // By one of which nobody knows whether it has let them run: there is no way but forward.
        Verdict::Taken if local.taking == Taking::Not && local.listening => TargetDuty::Commit(attempt),
        Verdict::Open | Verdict::Taken
            if local.taking == Taking::Done && local.staged && local.held && !local.failed =>
        {
            TargetDuty::Run(attempt)
        }
        Verdict::Taken if local.taking != Taking::Not && !local.failed && local.is_due() => {
            TargetDuty::Release(attempt)
        }
        Verdict::Taken => TargetDuty::None,
        Verdict::Aborted if !chosen && !local.listening => TargetDuty::None,
        Verdict::Aborted if local.destroyed || reported == Some(TargetStep::Destroyed) => TargetDuty::None,
        Verdict::Aborted => TargetDuty::Destroy(attempt),
        Verdict::Open if !chosen || local.failed || attempt == 0 || status.phase.is_terminal() => TargetDuty::None,
        Verdict::Open => open_target_duty(status, local),
    }
}

fn open_target_duty(status: &MigrationStatus, local: TargetLocal) -> TargetDuty {
    let attempt = local.attempt;
    match status.strategy {
        Some(Strategy::ReplaceFirst) if local.is_due() => TargetDuty::Release(attempt),
        // The go: early enough that nothing of it is left to be done in the freeze.
        Some(Strategy::ReplaceFirst)
            if status.phase == Phase::Freezing && local.waiting && !local.released && local.taking == Taking::Not =>
        {
            TargetDuty::Take(attempt)
        }
        Some(Strategy::DeleteFirst) if local.staged => TargetDuty::Commit(attempt),
        _ if local.listening => TargetDuty::None,
        _ => match status.phase {
            Phase::Preparing | Phase::PreCopying | Phase::Rehearsing | Phase::Handover | Phase::Freezing => {
                TargetDuty::Listen(attempt)
            }
            _ => TargetDuty::None,
        },
    }
}

#[cfg(test)]
#[path = "duty_tests.rs"]
mod tests;
