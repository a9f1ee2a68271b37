//! One run of the application: its stage, its timers, and why it ends.

use super::{Act, Whom};
use crate::clock::Moment;
use crate::config::{KillMode, Settings, Type};
use crate::exit::{Cause, Exit};
use std::time::Duration;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// With `type: Notify`, before READY=1.
    Starting,
    /// In service.
    Running,
    /// Between RELOADING=1 and READY=1.
    Reloading,
    /// It has said STOPPING=1.
    Leaving,
    /// SIGTERM is out, or the main process has ended and the others are waited for.
    Terminating,
    /// SIGABRT is out.
    Aborting,
    /// SIGKILL is out.
    Killing,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) begun: Moment,
    /// The process that init started.
    pub(super) started: i32,
    /// The main process: that one, or what MAINPID= has named since.
    pub(super) main: i32,
    pub(super) stage: Stage,
    /// When the stage must be over.
    pub(super) limit: Option<Moment>,
    /// When `runtimeMax` is over.
    pub(super) runtime: Option<Moment>,
    /// The watchdog's period; none for no watchdog.
    pub(super) period: Option<Duration>,
    /// When the watchdog must have heard.
    pub(super) watchdog: Option<Moment>,
    /// Set once the main process has ended, and when.
    pub(super) exit: Option<(Exit, Moment)>,
    /// The first thing that went wrong. What follows from it (the SIGABRT of the watchdog, the SIGKILL after a time-out) is no
    /// cause of its own.
    pub(super) cause: Option<Cause>,
    /// MONOTONIC_USEC= of the last reload.
    pub(super) reload_usec: Option<u64>,
    pub(super) status: Option<String>,
    pub(super) errno: Option<i32>,
}

/// A moment after `duration`; none where that is 0, which is systemd's infinity.
pub(super) fn limit(now: Moment, duration: Duration) -> Option<Moment> {
    (!duration.is_zero()).then(|| now + duration)
}

impl Run {
    /// A run that begins as the process `pid`.
    pub(super) fn begin(pid: i32, settings: &Settings, now: Moment) -> Self {
        let mut run = Self {
            begun: now,
            started: pid,
            main: pid,
            stage: Stage::Starting,
            limit: limit(now, settings.timeout_start),
            runtime: None,
            period: (!settings.watchdog.is_zero()).then_some(settings.watchdog),
            watchdog: None,
            exit: None,
            cause: None,
            reload_usec: None,
            status: None,
            errno: None,
        };
        if settings.r#type == Type::Simple {
            run.started_up(settings, now);
        }
        run
    }

    /// Start-up is complete: `runtimeMax` and the watchdog begin.
    pub(super) fn started_up(&mut self, settings: &Settings, now: Moment) {
        self.runtime = limit(now, settings.runtime_max);
        self.watchdog = self.period.map(|period| now + period);
        self.enter(Stage::Running, None);
    }

    pub(super) fn enter(&mut self, stage: Stage, limit: Option<Moment>) {
        self.stage = stage;
        self.limit = limit;
    }

    /// Whether nothing has been done yet to end it.
    pub(super) fn is_in_service(&self) -> bool {
        matches!(self.stage, Stage::Starting | Stage::Running | Stage::Reloading | Stage::Leaving)
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        [self.limit, self.runtime, self.watchdog].into_iter().flatten().min()
    }

    pub(super) fn blame(&mut self, cause: Cause) {
        self.cause.get_or_insert(cause);
    }

    /// SIGTERM, and time to heed it.
    pub(super) fn terminate(&mut self, settings: &Settings, now: Moment, acts: &mut Vec<Act>) {
        let limit = limit(now, settings.timeout_stop);
        self.ask_to_end(Stage::Terminating, libc::SIGTERM, limit, settings, acts);
    }

    /// SIGABRT, so that it leaves a core, and time for that.
    pub(super) fn abort(&mut self, settings: &Settings, now: Moment, acts: &mut Vec<Act>) {
        let limit = limit(now, settings.timeout_abort.unwrap_or(settings.timeout_stop));
        self.ask_to_end(Stage::Aborting, libc::SIGABRT, limit, settings, acts);
    }

    fn ask_to_end(
        &mut self,
        stage: Stage,
        signal: i32,
        limit: Option<Moment>,
        settings: &Settings,
        acts: &mut Vec<Act>,
    ) {
        self.no_more_timers();
        self.enter(stage, limit);
        let whom = if settings.kill_mode == KillMode::ControlGroup { Whom::All } else { Whom::Main };
        // A stopped process hears nothing but SIGKILL until it goes on. Source: systemd.kill(5).
        acts.extend([signal, libc::SIGCONT].map(|signal| Act::Kill { whom, signal }));
    }

    /// SIGKILL, and time for the kernel to carry it out.
    pub(super) fn kill(&mut self, settings: &Settings, now: Moment, acts: &mut Vec<Act>) {
        self.no_more_timers();
        self.enter(Stage::Killing, limit(now, settings.timeout_stop));
        let whom = if settings.kill_mode == KillMode::Process { Whom::Main } else { Whom::All };
        acts.push(Act::Kill { whom, signal: libc::SIGKILL });
    }

    fn no_more_timers(&mut self) {
        self.runtime = None;
        self.watchdog = None;
    }
}
