//! One step.

use super::run::{Run, Stage, limit};
use super::{Act, Event, Machine, Origin, Phase, SPAWN_PAUSE, SPAWN_PAUSE_MAX, SpawnFailure, Stop, StopAsked, Whom};
use crate::clock::Moment;
use crate::config::{KillMode, Type};
use crate::decide::{Decision, End, decide};
use crate::exit::{Cause, Exit, cause_of};

/// What an application that never ran has ended with when a stop is asked for.
const STOPPED_BEFORE: Exit = Exit::Signal { number: libc::SIGTERM, core: false };
/// How a run ends that even SIGKILL did not end in time.
const NOT_GONE_YET: Exit = Exit::Signal { number: libc::SIGKILL, core: false };

impl Machine {
    /// Takes `event`, which happened at `now`, and says what is to be done.
    #[must_use]
    pub fn step(mut self, event: Event, now: Moment) -> (Self, Vec<Act>) {
        let mut acts = Vec::new();
        match event {
            Event::Begin => acts.push(Act::Spawn),
            Event::Spawned { pid } => self.spawned(pid, now),
            Event::NotSpawned { failure } => self.not_spawned(failure, now, &mut acts),
            Event::MainEnded { exit, oom_killed, others } => {
                self.main_ended(exit, oom_killed, others, now, &mut acts);
            }
            Event::OtherEnded => self.other_ended(&mut acts),
            Event::Empty => {
                if self.awaits_empty() {
                    self.finish(now, &mut acts);
                }
            }
            Event::Signal { number, origin } => self.signal(number, origin, now, &mut acts),
            Event::Notified { notice, main_pid } => self.notified(notice, main_pid, now, &mut acts),
            Event::Arrived => self.arrived(now, &mut acts),
            Event::Tick => self.tick(now, &mut acts),
        }
        (self, acts)
    }

    fn spawned(&mut self, pid: i32, now: Moment) {
        self.history.started(now, &self.settings.start_limit);
        self.phase = Phase::Up(Run::begin(pid, &self.settings, now));
    }

    fn not_spawned(&mut self, failure: SpawnFailure, now: Moment, acts: &mut Vec<Act>) {
        match (failure, &self.phase) {
            (SpawnFailure::NoRoom, Phase::Spawning { pause }) => {
                let pause = *pause;
                self.phase = Phase::NoRoom { at: now + pause, pause: (pause * 2).min(SPAWN_PAUSE_MAX) };
            }
            (SpawnFailure::NoRoom, _) => {}
            (SpawnFailure::NotExecutable { code }, _) => {
                self.spawned(0, now);
                self.main_ended(Exit::Code(code), false, false, now, acts);
            }
        }
    }

    fn main_ended(&mut self, exit: Exit, oom_killed: bool, others: bool, now: Moment, acts: &mut Vec<Act>) {
        let settings = &self.settings;
        let Phase::Up(run) = &mut self.phase else { return };
        run.exit = Some((exit, now));
        match cause_of(exit, oom_killed, settings) {
            Cause::Clean if run.stage == Stage::Starting && settings.r#type == Type::Notify => {
                run.blame(Cause::Protocol)
            }
            Cause::Clean => {}
            cause => run.blame(cause),
        }
        if !others || settings.kill_mode == KillMode::Process {
            return self.finish(now, acts);
        }
        match settings.kill_mode {
            KillMode::ControlGroup if run.stage != Stage::Killing => run.terminate(settings, now, acts),
            _ => run.kill(settings, now, acts),
        }
    }

    /// A process that dies may have made another one just before.
    fn other_ended(&mut self, acts: &mut Vec<Act>) {
        if let Phase::Up(run) = &self.phase
            && run.stage == Stage::Killing
            && self.settings.kill_mode != KillMode::Process
        {
            acts.push(Act::Kill { whom: Whom::All, signal: libc::SIGKILL });
        }
    }

    fn signal(&mut self, number: i32, origin: Origin, now: Moment, acts: &mut Vec<Act>) {
        let forward = Act::Kill { whom: Whom::Main, signal: number };
        // Nobody stops a container with these, and many applications reload or wake up on them.
        let never_stops = matches!(number, libc::SIGHUP | libc::SIGCONT);
        if origin == Origin::Inside || never_stops {
            if self.main().is_some() {
                acts.push(forward);
            }
            return;
        }
        match &mut self.phase {
            Phase::Ended => {}
            Phase::Spawning { .. } | Phase::NoRoom { .. } | Phase::Delaying { .. } | Phase::Holding { .. } => {
                self.stop = StopAsked::Yes;
                self.end(acts);
            }
            Phase::Up(run) if number == libc::SIGTERM => {
                self.stop = StopAsked::Yes;
                if run.is_in_service() && run.exit.is_none() {
                    run.terminate(&self.settings, now, acts);
                }
            }
            Phase::Up(run) => {
                if self.stop == StopAsked::No || matches!(self.stop, StopAsked::Perhaps { .. }) {
                    self.stop = match limit(now, self.settings.timeout_stop) {
                        Some(until) => StopAsked::Perhaps { until },
                        None => StopAsked::Yes,
                    };
                }
                if run.exit.is_none() {
                    acts.push(forward);
                }
            }
        }
    }

    /// The container ends, and nothing runs.
    fn end(&mut self, acts: &mut Vec<Act>) {
        self.phase = Phase::Ended;
        acts.push(Act::Exit(self.last.unwrap_or(STOPPED_BEFORE).container_status()));
    }

    /// A move while the application runs, or is about to, is no affair of the start limit's.
    fn arrived(&mut self, now: Moment, acts: &mut Vec<Act>) {
        if self.is_holding() {
            self.history.arrived(now);
            self.phase = Phase::Spawning { pause: SPAWN_PAUSE };
            acts.push(Act::Spawn);
        }
    }

    fn tick(&mut self, now: Moment, acts: &mut Vec<Act>) {
        let settings = &self.settings;
        let due = |timer: Option<Moment>| timer.is_some_and(|at| at <= now);
        match &mut self.phase {
            Phase::Spawning { .. } | Phase::Ended => {}
            Phase::NoRoom { at, pause } if *at <= now => {
                self.phase = Phase::Spawning { pause: *pause };
                acts.push(Act::Spawn);
            }
            Phase::Delaying { until } if *until <= now => {
                self.phase = Phase::Spawning { pause: SPAWN_PAUSE };
                acts.push(Act::Spawn);
            }
            Phase::Holding { until } if *until <= now => self.end(acts),
            Phase::NoRoom { .. } | Phase::Delaying { .. } | Phase::Holding { .. } => {}
            Phase::Up(run) if due(run.limit) => match run.stage {
                Stage::Starting | Stage::Running | Stage::Reloading => {
                    run.blame(Cause::Timeout);
                    run.terminate(settings, now, acts);
                }
                // It has had its time to end.
                Stage::Leaving | Stage::Terminating | Stage::Aborting => {
                    run.blame(Cause::Timeout);
                    run.kill(settings, now, acts);
                }
                // What is left has a SIGKILL pending and never runs a line of its program again: go on without it.
                Stage::Killing => {
                    run.blame(Cause::Timeout);
                    self.finish(now, acts);
                }
            },
            Phase::Up(run) if due(run.watchdog) => {
                run.blame(Cause::Watchdog);
                run.abort(settings, now, acts);
            }
            Phase::Up(run) if due(run.runtime) => {
                run.blame(Cause::Timeout);
                run.terminate(settings, now, acts);
            }
            Phase::Up(_) => {}
        }
    }

    /// The run is over: decides what follows, and says so.
    fn finish(&mut self, now: Moment, acts: &mut Vec<Act>) {
        let Phase::Up(run) = &self.phase else { return };
        let (exit, ended) = run.exit.unwrap_or((NOT_GONE_YET, now));
        let stop_asked = match self.stop {
            StopAsked::No => false,
            StopAsked::Perhaps { until } => ended <= until,
            StopAsked::Yes => true,
        };
        let cause = run.cause.unwrap_or(Cause::Clean);
        let decision = decide(&End { cause, exit, stop_asked }, &self.settings, &self.history, now);
        let record = Act::Record(Stop {
            cause,
            exit,
            ran: ended.since(run.begun),
            decision,
            status: run.status.clone(),
            errno: run.errno,
        });
        self.last = Some(exit);
        match decision {
            Decision::Exit { .. } | Decision::RestoreCheckpoint => {
                acts.push(record);
                self.end(acts);
            }
            Decision::Migrate { hold } => {
                self.stop = StopAsked::No;
                self.phase = Phase::Holding { until: now + hold };
                acts.extend([Act::Hold, record]);
            }
            Decision::Restart { delay, .. } => {
                self.history.restarting();
                self.stop = StopAsked::No;
                if delay.is_zero() {
                    // The record can wait for the application; the other way round would be time in which it is down.
                    self.phase = Phase::Spawning { pause: SPAWN_PAUSE };
                    acts.extend([Act::Spawn, record]);
                } else {
                    self.phase = Phase::Delaying { until: now + delay };
                    acts.push(record);
                }
            }
        }
    }
}
