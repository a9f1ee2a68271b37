//! Random courses of events, held against a model that knows nothing of stages and timers: only what a person may rely on.

use super::{Act, Event, Machine, Origin, SpawnFailure, Whom};
use crate::clock::Moment;
use crate::config::{KillMode, Policy, Settings, StartLimit, StartLimitAction, Type};
use crate::decide::{Decision, HOLD, Rule, SAME_CAUSE};
use crate::exit::{Cause, Exit};
use crate::notice;
use proptest::prelude::*;
use std::time::Duration;

/// What happens next, should the application be able to do it.
#[derive(Clone, Debug)]
enum Happening {
    Passes(u64),
    Exits {
        code: u8,
        others: bool,
    },
    Dies {
        number: i32,
        oom: bool,
        others: bool,
    },
    Says(&'static str),
    OtherEnds,
    AllGone,
    Signal {
        number: i32,
        outside: bool,
    },
    /// From now on so many attempts to make a process fail.
    NoRoom(u8),
    /// It is found on another node.
    Arrives,
}

/// What a person may rely on.
#[derive(Default)]
struct Model {
    /// The main process lives.
    alive: bool,
    /// The main process has ended, others may be left.
    clearing: bool,
    stop_asked: bool,
    over: bool,
    last_status: Option<u8>,
    /// Those on this node.
    starts: Vec<Moment>,
    /// How often a process was to be made.
    attempts: usize,
    /// Where it is was noted, and no record said since that it waits to be moved.
    noted: bool,
    /// It waits to be moved until then.
    holding: Option<Moment>,
    /// When a wait had an end that it is for.
    arrived: Option<Moment>,
    /// A signal that can end a container without a run is being told.
    signalled: bool,
    /// Earliest moment of the next start.
    not_before: Option<Moment>,
    recorded: usize,
    spawning: bool,
    no_room: u8,
    asked_to_end: bool,
    /// The main process has a SIGKILL pending: it may still be there, but never runs a line of its program again.
    killed: bool,
}

struct Course {
    machine: Machine,
    model: Model,
    settings: Settings,
    now: Moment,
}

impl Course {
    fn begin(settings: Settings) -> Self {
        let machine = Machine::new(settings.clone());
        Self { machine, model: Model::default(), settings, now: Moment::default() }
    }

    fn feed(&mut self, event: Event) -> Result<(), TestCaseError> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let was_over = self.model.over;
            let (machine, acts) = self.machine.clone().step(event, self.now);
            self.machine = machine;
            prop_assert!(!was_over || acts.is_empty(), "after the end: {:?}", acts);
            for act in acts {
                if let Some(event) = self.check(&act)? {
                    events.push(event);
                }
            }
        }
        Ok(())
    }

    /// Holds one act against the model; an attempt to start is answered.
    fn check(&mut self, act: &Act) -> Result<Option<Event>, TestCaseError> {
        let model = &mut self.model;
        match act {
            Act::Spawn => {
                prop_assert!(!model.alive || model.killed, "two at a time");
                prop_assert!(!model.over && !model.spawning && !model.stop_asked && model.holding.is_none());
                model.attempts += 1;
                if model.no_room > 0 {
                    model.no_room -= 1;
                    return Ok(Some(Event::NotSpawned { failure: SpawnFailure::NoRoom }));
                }
                prop_assert!(model.not_before.is_none_or(|earliest| self.now >= earliest), "earlier than the delay");
                model.starts.push(self.now);
                let limit = self.settings.start_limit;
                let recent = model.starts.iter().filter(|start| self.now.since(**start) < limit.interval).count();
                prop_assert!(recent <= limit.burst as usize, "{} starts in an interval", recent);
                (model.alive, model.asked_to_end, model.killed, model.spawning) = (true, false, false, true);
                let pid = i32::try_from(model.attempts).unwrap() + 100;
                return Ok(Some(Event::Spawned { pid }));
            }
            Act::Kill { whom, signal } => {
                prop_assert!(model.alive || model.clearing, "a signal to nobody");
                prop_assert!(*whom == Whom::All || model.alive, "a signal to a process that has ended");
                prop_assert!(self.settings.kill_mode != KillMode::Process || *whom == Whom::Main);
                if *signal == libc::SIGKILL && model.alive {
                    prop_assert!(model.asked_to_end, "killed before it was asked");
                    model.killed = true;
                }
                model.asked_to_end |= matches!(*signal, libc::SIGTERM | libc::SIGABRT);
            }
            Act::Hold => model.noted = true,
            Act::Record(stop) => {
                model.recorded += 1;
                model.clearing = false;
                // Where the next run is there before the record, it is that one which lives.
                let next_runs = matches!(stop.decision, Decision::Restart { delay, .. } if delay.is_zero());
                model.alive &= next_runs;
                let expected = expected(&self.settings, stop.cause, stop.exit, model.stop_asked);
                let limit = self.settings.start_limit;
                let same_cause = model.arrived.is_some_and(|at| self.now.since(at) < SAME_CAUSE.max(limit.interval));
                let moves = limit.action == StartLimitAction::Migrate && !same_cause;
                prop_assert_eq!(model.noted, matches!(stop.decision, Decision::Migrate { .. }));
                match stop.decision {
                    Decision::Restart { delay, rule, .. } => {
                        prop_assert_eq!(expected, Some(rule));
                        prop_assert_eq!(delay, self.settings.delay);
                        model.not_before = Some(self.now + delay);
                    }
                    Decision::Migrate { hold } => {
                        prop_assert!(expected.is_some() && moves && hold == HOLD);
                        (model.noted, model.holding) = (false, Some(self.now + hold));
                    }
                    Decision::RestoreCheckpoint => {
                        prop_assert!(expected.is_some() && limit.action == StartLimitAction::RestoreCheckpoint);
                    }
                    Decision::Exit { rule: Rule::StartLimit } => {
                        prop_assert!(expected.is_some() && !moves);
                        prop_assert!(limit.action != StartLimitAction::RestoreCheckpoint);
                    }
                    // A signal that might be a stop may be one without our knowing here.
                    Decision::Exit { rule: Rule::StopAsked } => {}
                    Decision::Exit { .. } => prop_assert_eq!(expected, None),
                }
                model.last_status = Some(stop.exit.container_status());
            }
            Act::Exit(status) => {
                prop_assert_eq!(*status, model.last_status.unwrap_or(143));
                let hold = model.holding.take();
                prop_assert!(hold.is_none_or(|until| self.now >= until || model.signalled), "too early");
                model.over = true;
            }
        }
        Ok(None)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::Passes(millis) => {
                // As the driver does: a tick at every deadline on the way.
                let until = self.now + Duration::from_millis(millis);
                while let Some(at) = self.machine.deadline().filter(|at| *at <= until) {
                    self.now = self.now.max(at);
                    self.feed(Event::Tick)?;
                    prop_assert!(self.machine.deadline().is_none_or(|next| next > self.now), "no progress");
                    self.settle();
                }
                self.now = until;
                prop_assert!(self.model.holding.is_none_or(|end| end > until), "it waits for ever");
            }
            Happening::Exits { code, others } => self.end(Exit::Code(code), false, others)?,
            Happening::Dies { number, oom, others } => self.end(Exit::Signal { number, core: false }, oom, others)?,
            Happening::Says(text) => {
                let notice = notice::parse(text.as_bytes()).unwrap();
                // Then it has asked itself.
                self.model.asked_to_end |= text == "STOPPING=1";
                self.feed(Event::Notified { notice, main_pid: None })?;
            }
            Happening::OtherEnds => self.feed(Event::OtherEnded)?,
            Happening::AllGone => {
                if self.model.clearing {
                    self.feed(Event::Empty)?;
                }
            }
            Happening::Signal { number, outside } => {
                let origin = if outside { Origin::Outside } else { Origin::Inside };
                self.model.stop_asked |= outside && number == libc::SIGTERM;
                self.model.signalled = outside && number != libc::SIGHUP;
                self.feed(Event::Signal { number, origin })?;
                self.model.signalled = false;
            }
            Happening::NoRoom(times) => self.model.no_room = times,
            Happening::Arrives => {
                let held = self.model.holding.take().is_some();
                if held {
                    self.model.starts.clear();
                    (self.model.arrived, self.model.not_before) = (Some(self.now), None);
                }
                let before = self.model.attempts;
                self.feed(Event::Arrived)?;
                prop_assert_eq!(self.model.attempts - before, usize::from(held), "whatever else it was doing");
            }
        }
        self.settle();
        Ok(())
    }

    fn settle(&mut self) {
        self.model.spawning = false;
    }

    fn end(&mut self, exit: Exit, oom_killed: bool, others: bool) -> Result<(), TestCaseError> {
        if !self.model.alive || self.model.over {
            return Ok(());
        }
        (self.model.alive, self.model.clearing) = (false, true);
        self.feed(Event::MainEnded { exit, oom_killed, others })
    }
}

/// The rule that must start another run, start limit aside; none where there must be no other.
fn expected(settings: &Settings, cause: Cause, exit: Exit, stop_asked: bool) -> Option<Rule> {
    let abnormal = [Cause::UncleanSignal, Cause::Timeout, Cause::Watchdog, Cause::OomKill, Cause::Protocol];
    if stop_asked || settings.restart_prevent_exit_status.contains(exit) {
        return None;
    }
    if settings.restart_force_exit_status.contains(exit) {
        return Some(Rule::ForceExitStatus);
    }
    let restarts = match settings.policy {
        Policy::No => false,
        Policy::Always => true,
        Policy::OnSuccess => cause == Cause::Clean,
        Policy::OnFailure => cause == Cause::UncleanExitCode || abnormal.contains(&cause),
        Policy::OnAbnormal => abnormal.contains(&cause),
        Policy::OnAbort => cause == Cause::UncleanSignal,
        Policy::OnWatchdog => cause == Cause::Watchdog,
    };
    restarts.then_some(Rule::Policy)
}

fn any_settings() -> impl Strategy<Value = Settings> {
    let policy = prop_oneof![
        4 => Just(Policy::Always),
        2 => Just(Policy::OnFailure),
        1 => prop::sample::select(vec![Policy::No, Policy::OnSuccess, Policy::OnAbnormal, Policy::OnAbort, Policy::OnWatchdog]),
    ];
    let kill_mode = prop::sample::select(vec![KillMode::ControlGroup, KillMode::Mixed, KillMode::Process]);
    let lists = prop::sample::select(vec![("[]", "[]"), ("[7]", "[7,8]"), ("[\"SIGUSR1\"]", "[9]")]);
    let action = prop::sample::select(vec![
        StartLimitAction::Exit,
        StartLimitAction::Migrate,
        StartLimitAction::RestoreCheckpoint,
    ]);
    let limit = (1..6000u64, 1..6u32, action);
    (policy, kill_mode, lists, any::<bool>(), (0..3000u64, 0..5u64, 0..4u64), limit).prop_map(
        |(policy, kill_mode, (prevent, force), notify, (delay, watchdog, runtime), (interval, burst, action))| {
            Settings {
                policy,
                kill_mode,
                restart_prevent_exit_status: serde_json::from_str(prevent).unwrap(),
                restart_force_exit_status: serde_json::from_str(force).unwrap(),
                r#type: if notify { Type::Notify } else { Type::Simple },
                // Without a pause now and then, which is a path of its own.
                delay: Duration::from_millis(if delay < 500 { 0 } else { delay }),
                watchdog: Duration::from_secs(watchdog),
                runtime_max: Duration::from_secs(runtime * 10),
                timeout_start: Duration::from_secs(4),
                timeout_stop: Duration::from_secs(3),
                start_limit: StartLimit { interval: Duration::from_millis(interval), burst, action },
                ..Settings::default()
            }
        },
    )
}

fn any_happening() -> impl Strategy<Value = Happening> {
    let messages = vec![
        "READY=1",
        "RELOADING=1",
        "STOPPING=1",
        "WATCHDOG=1",
        "WATCHDOG=trigger",
        "WATCHDOG_USEC=500000",
        "WATCHDOG_USEC=0",
        "EXTEND_TIMEOUT_USEC=5000000",
        "RESTART_RESET=1",
        "STATUS=x\nERRNO=5",
    ];
    let numbers = vec![libc::SIGTERM, libc::SIGHUP, libc::SIGSEGV, libc::SIGKILL, libc::SIGUSR1];
    let signals = vec![libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1];
    prop_oneof![
        6 => (0..5000u64).prop_map(Happening::Passes),
        1 => (0..900_000u64).prop_map(Happening::Passes),
        4 => (0..10u8, any::<bool>()).prop_map(|(code, others)| Happening::Exits { code, others }),
        3 => (prop::sample::select(numbers), any::<bool>(), any::<bool>())
            .prop_map(|(number, oom, others)| Happening::Dies { number, oom, others }),
        5 => prop::sample::select(messages).prop_map(Happening::Says),
        1 => Just(Happening::OtherEnds),
        2 => Just(Happening::AllGone),
        1 => (prop::sample::select(signals), prop::bool::weighted(0.3))
            .prop_map(|(number, outside)| Happening::Signal { number, outside }),
        1 => (1..4u8).prop_map(Happening::NoRoom),
        2 => Just(Happening::Arrives),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn ten_thousand_random_courses_keep_to_the_model(
        settings in any_settings(),
        happenings in proptest::collection::vec(any_happening(), 1..40),
    ) {
        let mut course = Course::begin(settings);
        course.feed(Event::Begin)?;
        course.settle();
        for happening in happenings {
            course.happen(happening)?;
        }
        // Whatever went before: after a stop from outside, and with time, it comes to an end.
        course.happen(Happening::Signal { number: libc::SIGTERM, outside: true })?;
        course.happen(Happening::Passes(60_000))?;
        prop_assert!(course.model.over);
    }
}
