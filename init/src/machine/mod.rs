//! The supervision of one container, as a state machine without I/O.
//!
//! [`Machine::step`] takes what has happened and the time, and returns what is to be done. Owns the phases of a run, its
//! timers and the stop; asks [`decide`](crate::decide::decide) what follows. It never reads a clock and never sees a process:
//! whoever drives it answers [`Act::Spawn`] with [`Event::Spawned`] or [`Event::NotSpawned`], calls [`Event::Tick`] when
//! [`Machine::deadline`] is reached, and says when processes have ended.
//!
//! Invariants, which the property test checks: at most one run at a time; after a stop from outside nothing is started any
//! more; after [`Act::Exit`] nothing is done any more; each run is recorded once; no interval on a node has more starts than the
//! start limit allows; only an arrival ends a hold with another run.

mod notified;
mod run;
mod step;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use crate::clock::Moment;
use crate::config::Settings;
use crate::decide::Decision;
use crate::exit::{Cause, Exit};
use crate::history::History;
use crate::notice::Notice;
use run::Run;
use std::time::Duration;

/// Pause before the first further attempt to make a process where the kernel had no room for one; doubled each time.
pub(crate) const SPAWN_PAUSE: Duration = Duration::from_millis(100);
/// The longest such pause.
pub(crate) const SPAWN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Init is ready: start the application for the first time.
    Begin,
    /// The application was executed, as this process.
    Spawned {
        /// Its pid.
        pid: i32,
    },
    /// It was not.
    NotSpawned {
        /// What that means.
        failure: SpawnFailure,
    },
    /// The main process has ended and was reaped.
    MainEnded {
        /// How.
        exit: Exit,
        /// Whether the kernel has counted an OOM kill in the container's cgroup during this run.
        oom_killed: bool,
        /// Whether other processes of the application are left.
        others: bool,
    },
    /// A descendant that is not the main process has ended and was reaped.
    OtherEnded,
    /// No process of the application is left.
    Empty,
    /// A signal came.
    Signal {
        /// Its number; never SIGCHLD.
        number: i32,
        /// From where.
        origin: Origin,
    },
    /// A message came from a process that may send it.
    Notified {
        /// The message, without its MAINPID=.
        notice: Notice,
        /// The process that it named as main, if that was found to be one of the application's.
        main_pid: Option<i32>,
    },
    /// While [`Machine::is_holding`]: the container is on another node since [`Act::Hold`].
    Arrived,
    /// Time has passed.
    Tick,
}

/// Why there is no process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpawnFailure {
    /// The kernel has no room for one (processes, memory, descriptors): try again.
    NoRoom,
    /// The program can't be executed. Counts as a run that ended with this exit code.
    NotExecutable {
        /// 127 where there is no such program, 126 otherwise: what shells say.
        code: u8,
    },
}

/// Where a signal came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Outside the container: kubelet, or somebody on the node.
    Outside,
    /// A process in the container, or the kernel (a terminal that hung up).
    Inside,
}

/// Which processes are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The main process.
    Main,
    /// Every descendant of init in the container's cgroup, the main process included.
    All,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Start the application.
    Spawn,
    /// Send a signal.
    Kill {
        /// To whom.
        whom: Whom,
        /// Its number.
        signal: i32,
    },
    /// Take note of where the container is. Before it is written down that it waits to be moved: from then on it may be.
    Hold,
    /// Write down how a run has ended.
    Record(Stop),
    /// End, with this status.
    Exit(u8),
}

/// How a run ended and what follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Why.
    pub cause: Cause,
    /// How its main process ended.
    pub exit: Exit,
    /// How long it ran.
    pub ran: Duration,
    /// What follows.
    pub decision: Decision,
    /// Its last STATUS=.
    pub status: Option<String>,
    /// Its last ERRNO=.
    pub errno: Option<i32>,
}

/// Where the container stands.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// [`Act::Spawn`] is out, or nothing was asked for yet.
    Spawning {
        /// Pause before another attempt, should there be no room.
        pause: Duration,
    },
    /// There was no room for a process.
    NoRoom {
        /// When to try again.
        at: Moment,
        /// Pause before the attempt after that.
        pause: Duration,
    },
    /// A run, or what is left of it.
    Up(Run),
    /// Nothing runs; the next run begins then.
    Delaying {
        /// When.
        until: Moment,
    },
    /// Nothing runs; the next run begins when the container has been moved.
    Holding {
        /// When it exits instead.
        until: Moment,
    },
    /// [`Act::Exit`] is out.
    Ended,
}

/// Whether somebody outside has asked for a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopAsked {
    No,
    /// A signal came that some images have as STOPSIGNAL and that others reload on. If the run ends before this moment, it was
    /// a stop.
    Perhaps {
        until: Moment,
    },
    Yes,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    settings: Settings,
    history: History,
    phase: Phase,
    stop: StopAsked,
    /// How the last run ended.
    last: Option<Exit>,
}

impl Machine {
    /// A container whose application was not started yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            history: History::default(),
            phase: Phase::Spawning { pause: SPAWN_PAUSE },
            stop: StopAsked::No,
            last: None,
        }
    }

    /// The rules by which it works.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The main process, while it lives.
    pub fn main(&self) -> Option<i32> {
        match &self.phase {
            Phase::Up(run) if run.exit.is_none() => Some(run.main),
            _ => None,
        }
    }

    /// The process that init has started for this run, alive or not.
    pub fn started(&self) -> Option<i32> {
        match &self.phase {
            Phase::Up(run) => Some(run.started),
            _ => None,
        }
    }

    /// Whether the main process has ended and others are waited for.
    pub fn awaits_empty(&self) -> bool {
        matches!(&self.phase, Phase::Up(run) if run.exit.is_some())
    }

    /// Whether the container waits to be moved.
    pub fn is_holding(&self) -> bool {
        matches!(&self.phase, Phase::Holding { .. })
    }

    /// When [`Event::Tick`] is due, if ever.
    pub fn deadline(&self) -> Option<Moment> {
        match &self.phase {
            Phase::Spawning { .. } | Phase::Ended => None,
            Phase::NoRoom { at, .. } => Some(*at),
            Phase::Up(run) => run.deadline(),
            Phase::Delaying { until } | Phase::Holding { until } => Some(*until),
        }
    }
}
