//! Courses of events, told one by one.

use super::{Act, Event, Machine, Origin, SpawnFailure, Stop, Whom};
use crate::clock::Moment;
use crate::config::{KillMode, Policy, Settings, StartLimit, StartLimitAction, Type};
use crate::decide::{Decision, HOLD, Rule};
use crate::exit::{Cause, Exit};
use crate::notice;
use std::time::Duration;

const CRASH: Exit = Exit::Signal { number: libc::SIGSEGV, core: true };
const KILLED: Exit = Exit::Signal { number: libc::SIGKILL, core: false };
const TERMINATED: Exit = Exit::Signal { number: libc::SIGTERM, core: false };

/// A machine at work, and its clock.
struct Course {
    machine: Machine,
    now: Moment,
    acts: Vec<Act>,
}

impl Course {
    fn begin(settings: Settings) -> Self {
        let mut course = Self { machine: Machine::new(settings), now: Moment::default(), acts: Vec::new() };
        course.on(Event::Begin).must(&[Act::Spawn]);
        course.on(Event::Spawned { pid: 10 }).must(&[]);
        course
    }

    fn on(&mut self, event: Event) -> &mut Self {
        let (machine, acts) = self.machine.clone().step(event, self.now);
        self.machine = machine;
        self.acts = acts;
        self
    }

    fn after(&mut self, seconds: f64) -> &mut Self {
        self.now = self.now + Duration::from_secs_f64(seconds);
        self.on(Event::Tick)
    }

    fn ends(&mut self, exit: Exit) -> &mut Self {
        self.on(Event::MainEnded { exit, oom_killed: false, others: false })
    }

    fn says(&mut self, datagram: &str) -> &mut Self {
        let notice = notice::parse(datagram.as_bytes()).unwrap();
        self.on(Event::Notified { notice, main_pid: None })
    }

    fn signalled(&mut self, number: i32) -> &mut Self {
        self.on(Event::Signal { number, origin: Origin::Outside })
    }

    fn must(&mut self, acts: &[Act]) -> &mut Self {
        assert_eq!(self.acts, acts);
        self
    }

    fn stop(&self) -> &Stop {
        self.acts
            .iter()
            .find_map(|act| match act {
                Act::Record(stop) => Some(stop),
                _ => None,
            })
            .expect("a record")
    }

    fn exits_with(&self, status: u8) {
        assert_eq!(self.acts.last(), Some(&Act::Exit(status)));
        assert_eq!(self.machine.deadline(), None);
    }
}

fn settings(policy: Policy) -> Settings {
    Settings { policy, ..Settings::default() }
}

fn kill(whom: Whom, signal: i32) -> Act {
    Act::Kill { whom, signal }
}

fn terminate(whom: Whom) -> [Act; 2] {
    [kill(whom, libc::SIGTERM), kill(whom, libc::SIGCONT)]
}

fn abort(whom: Whom) -> [Act; 2] {
    [kill(whom, libc::SIGABRT), kill(whom, libc::SIGCONT)]
}

#[test]
fn a_crash_is_followed_by_another_run_after_the_delay() {
    let mut course = Course::begin(settings(Policy::OnFailure));
    course.after(3.0).ends(CRASH);
    let stop = course.stop();
    assert_eq!((stop.cause, stop.ran), (Cause::UncleanSignal, Duration::from_secs(3)));
    let delay = Duration::from_millis(100);
    assert_eq!(stop.decision, Decision::Restart { delay, attempt: 1, rule: Rule::Policy });
    assert_eq!(course.acts.len(), 1);
    course.after(0.05).must(&[]);
    course.after(0.05).must(&[Act::Spawn]);
    course.on(Event::Spawned { pid: 11 }).must(&[]);
    assert_eq!(course.machine.main(), Some(11));
}

#[test]
fn without_a_delay_the_next_run_comes_before_the_record() {
    let mut course = Course::begin(Settings { delay: Duration::ZERO, ..settings(Policy::Always) });
    course.ends(Exit::Code(0));
    assert!(matches!(course.acts[..], [Act::Spawn, Act::Record(_)]));
}

#[test]
fn a_clean_end_under_on_failure_ends_the_container_with_the_applications_status() {
    let mut course = Course::begin(settings(Policy::OnFailure));
    course.ends(Exit::Code(0)).exits_with(0);
    let mut course = Course::begin(settings(Policy::No));
    course.ends(KILLED).exits_with(137);
}

#[test]
fn the_start_limit_ends_a_crash_loop_with_the_true_status() {
    let limit = StartLimit { interval: Duration::from_secs(10), burst: 3, ..StartLimit::default() };
    let mut course = Course::begin(Settings { start_limit: limit, ..settings(Policy::Always) });
    for pid in [11, 12] {
        course.ends(Exit::Code(7));
        course.after(0.1).must(&[Act::Spawn]);
        course.on(Event::Spawned { pid });
    }
    course.ends(Exit::Code(7)).exits_with(7);
    assert_eq!(course.stop().decision, Decision::Exit { rule: Rule::StartLimit });
}

/// A container that has hit its start limit, of 2 starts, and waits to be moved.
fn holding() -> Course {
    let limit = StartLimit { interval: Duration::from_secs(10), burst: 2, action: StartLimitAction::Migrate };
    let mut course = Course::begin(Settings { start_limit: limit, ..settings(Policy::Always) });
    course.ends(Exit::Code(7)).after(0.1).must(&[Act::Spawn]);
    course.on(Event::Spawned { pid: 11 }).ends(Exit::Code(7));
    assert!(course.machine.is_holding());
    course
}

#[test]
fn a_container_that_may_be_moved_notes_where_it_is_before_it_says_that_it_waits() {
    let mut course = holding();
    assert!(matches!(course.acts[..], [Act::Hold, Act::Record(_)]), "{:?}", course.acts);
    assert_eq!(course.stop().decision, Decision::Migrate { hold: HOLD });
    course.after(179.0).must(&[]);
    course.signalled(libc::SIGHUP).must(&[]);
    course.on(Event::Signal { number: libc::SIGTERM, origin: Origin::Inside }).must(&[]);
    assert!(course.machine.is_holding());
}

#[test]
fn on_another_node_it_starts_at_once_and_its_limit_begins_anew() {
    let mut course = holding();
    course.after(20.0).on(Event::Arrived).must(&[Act::Spawn]);
    assert!(!course.machine.is_holding());
    course.on(Event::Spawned { pid: 12 }).ends(Exit::Code(7));
    let delay = Duration::from_millis(100);
    assert_eq!(course.stop().decision, Decision::Restart { delay, attempt: 1, rule: Rule::Policy });
    course.after(0.1).must(&[Act::Spawn]);
    course.on(Event::Spawned { pid: 13 }).ends(Exit::Code(7)).exits_with(7);
    assert_eq!(course.stop().decision, Decision::Exit { rule: Rule::StartLimit });
}

#[test]
fn where_nobody_moves_it_or_a_stop_comes_first_it_ends_with_the_last_status() {
    holding().after(180.0).must(&[Act::Exit(7)]).exits_with(7);
    let mut course = holding();
    course.signalled(libc::SIGTERM).must(&[Act::Exit(7)]);
    course.on(Event::Arrived).must(&[]);
    course.after(1000.0).must(&[]);
}

#[test]
fn a_move_at_any_other_time_starts_nothing() {
    let mut course = Course::begin(settings(Policy::Always));
    course.on(Event::Arrived).must(&[]);
    course.ends(CRASH).on(Event::Arrived).must(&[]);
    course.after(0.1).must(&[Act::Spawn]);
    course.on(Event::Arrived).must(&[]);
}

#[test]
fn a_stop_from_outside_terminates_and_is_never_followed_by_a_run() {
    let mut course = Course::begin(settings(Policy::Always));
    course.signalled(libc::SIGTERM).must(&terminate(Whom::All));
    course.signalled(libc::SIGTERM).must(&[]);
    course.after(89.0).must(&[]);
    course.after(1.0).must(&[kill(Whom::All, libc::SIGKILL)]);
    course.ends(KILLED).exits_with(137);
    assert_eq!(course.stop().decision, Decision::Exit { rule: Rule::StopAsked });
}

#[test]
fn a_stop_in_the_delay_ends_at_once_with_the_last_status() {
    let mut course = Course::begin(settings(Policy::Always));
    course.ends(Exit::Code(3));
    course.signalled(libc::SIGTERM).must(&[Act::Exit(3)]);
    course.after(10.0).must(&[]);
}

#[test]
fn a_stop_while_the_last_run_is_being_cleared_away_is_heeded() {
    let mut course = Course::begin(settings(Policy::Always));
    course.on(Event::MainEnded { exit: CRASH, oom_killed: false, others: true }).must(&terminate(Whom::All));
    course.signalled(libc::SIGTERM).must(&[]);
    course.on(Event::Empty).exits_with(139);
}

#[test]
fn an_images_own_stop_signal_is_forwarded_and_counts_as_a_stop_if_the_application_ends_on_it() {
    let mut course = Course::begin(settings(Policy::Always));
    course.signalled(libc::SIGQUIT).must(&[kill(Whom::Main, libc::SIGQUIT)]);
    course.after(20.0).ends(Exit::Code(0)).exits_with(0);
}

#[test]
fn a_signal_that_the_application_survives_is_forgotten() {
    let mut course = Course::begin(settings(Policy::Always));
    course.signalled(libc::SIGUSR1).must(&[kill(Whom::Main, libc::SIGUSR1)]);
    course.after(91.0).ends(CRASH);
    assert!(matches!(course.stop().decision, Decision::Restart { .. }));
    let mut course = Course::begin(settings(Policy::Always));
    course.signalled(libc::SIGHUP).must(&[kill(Whom::Main, libc::SIGHUP)]);
    course.ends(CRASH);
    assert!(matches!(course.stop().decision, Decision::Restart { .. }));
}

#[test]
fn a_signal_from_inside_is_the_applications_and_no_stop() {
    let mut course = Course::begin(settings(Policy::Always));
    course.on(Event::Signal { number: libc::SIGTERM, origin: Origin::Inside });
    course.must(&[kill(Whom::Main, libc::SIGTERM)]).ends(TERMINATED);
    assert!(matches!(course.stop().decision, Decision::Restart { .. }));
}

#[test]
fn what_outlives_the_main_process_is_ended_before_the_next_run() {
    let mut course = Course::begin(settings(Policy::Always));
    course.on(Event::MainEnded { exit: CRASH, oom_killed: false, others: true }).must(&terminate(Whom::All));
    course.after(90.0).must(&[kill(Whom::All, libc::SIGKILL)]);
    course.on(Event::OtherEnded).must(&[kill(Whom::All, libc::SIGKILL)]);
    course.on(Event::Empty);
    assert_eq!(course.stop().cause, Cause::UncleanSignal);

    let mut mixed = Course::begin(Settings { kill_mode: KillMode::Mixed, ..settings(Policy::Always) });
    mixed.on(Event::MainEnded { exit: CRASH, oom_killed: false, others: true });
    mixed.must(&[kill(Whom::All, libc::SIGKILL)]);

    let mut process = Course::begin(Settings { kill_mode: KillMode::Process, ..settings(Policy::Always) });
    process.on(Event::MainEnded { exit: CRASH, oom_killed: false, others: true });
    assert_eq!(process.stop().cause, Cause::UncleanSignal);
}

#[test]
fn what_even_sigkill_does_not_end_is_left_behind() {
    let mut course = Course::begin(settings(Policy::OnFailure));
    course.on(Event::MainEnded { exit: Exit::Code(0), oom_killed: false, others: true });
    course.after(90.0).after(90.0);
    // The main process had ended cleanly; that the others would not is what went wrong.
    assert_eq!(course.stop().cause, Cause::Timeout);
    assert!(matches!(course.stop().decision, Decision::Restart { .. }));
}

fn notify(policy: Policy) -> Settings {
    Settings { r#type: Type::Notify, watchdog: Duration::from_secs(30), ..settings(policy) }
}

#[test]
fn an_application_that_does_not_get_ready_in_time_has_timed_out() {
    let mut course = Course::begin(notify(Policy::OnAbnormal));
    course.after(90.0).must(&terminate(Whom::All));
    course.ends(TERMINATED);
    assert_eq!(course.stop().cause, Cause::Timeout);
}

#[test]
fn an_application_that_ends_cleanly_before_it_is_ready_has_broken_the_protocol() {
    let mut course = Course::begin(notify(Policy::OnFailure));
    course.ends(Exit::Code(0));
    assert_eq!(course.stop().cause, Cause::Protocol);
}

#[test]
fn the_watchdog_is_armed_by_ready_fed_by_pings_and_bites_with_sigabrt() {
    let mut course = Course::begin(notify(Policy::OnWatchdog));
    course.after(60.0).must(&[]);
    course.says("READY=1").after(29.0).must(&[]);
    course.says("WATCHDOG=1").after(29.0).must(&[]);
    course.after(1.0).must(&abort(Whom::All));
    course.after(90.0).must(&[kill(Whom::All, libc::SIGKILL)]);
    course.ends(KILLED);
    assert_eq!(course.stop().cause, Cause::Watchdog);
    assert!(matches!(course.stop().decision, Decision::Restart { .. }));
}

#[test]
fn the_watchdog_can_be_triggered_changed_and_turned_off() {
    let mut course = Course::begin(notify(Policy::OnWatchdog));
    course.says("WATCHDOG=trigger").must(&abort(Whom::All));
    let mut course = Course::begin(notify(Policy::OnWatchdog));
    course.says("READY=1\nWATCHDOG_USEC=1000000").after(1.0).must(&abort(Whom::All));
    let mut course = Course::begin(notify(Policy::OnWatchdog));
    course.says("READY=1\nWATCHDOG_USEC=0").after(1000.0).must(&[]);
    // The next run has the policy's watchdog again.
    course.says("WATCHDOG=trigger").ends(CRASH).after(0.1).on(Event::Spawned { pid: 11 });
    course.says("READY=1").after(30.0).must(&abort(Whom::All));
}

#[test]
fn an_extension_moves_every_timer_but_never_forwards() {
    let mut course = Course::begin(notify(Policy::Always));
    course.says("EXTEND_TIMEOUT_USEC=1000000").after(89.0).must(&[]);
    course.says("EXTEND_TIMEOUT_USEC=10000000").after(5.0).must(&[]);
    course.after(5.0).must(&terminate(Whom::All));
    let mut course = Course::begin(notify(Policy::Always));
    course.says("READY=1\nEXTEND_TIMEOUT_USEC=60000000").after(59.0).must(&[]);
    course.after(1.0).must(&abort(Whom::All));
}

#[test]
fn a_reload_must_end_in_time_and_a_late_message_begins_none() {
    let mut course = Course::begin(Settings { watchdog: Duration::ZERO, ..notify(Policy::OnFailure) });
    course.says("READY=1").says("RELOADING=1\nMONOTONIC_USEC=5").says("READY=1").after(100.0).must(&[]);
    course.says("RELOADING=1\nMONOTONIC_USEC=5").after(100.0).must(&[]);
    course.says("RELOADING=1\nMONOTONIC_USEC=6").after(90.0).must(&terminate(Whom::All));
    course.ends(TERMINATED);
    assert_eq!(course.stop().cause, Cause::Timeout);
}

#[test]
fn an_application_that_says_it_is_stopping_has_time_to_do_so_and_is_restarted_by_its_status() {
    let mut course = Course::begin(notify(Policy::OnFailure));
    course.says("READY=1").says("STOPPING=1").after(89.0).must(&[]);
    course.after(1.0).must(&[kill(Whom::All, libc::SIGKILL)]);
    course.ends(KILLED);
    assert_eq!(course.stop().cause, Cause::Timeout);
}

#[test]
fn a_run_ends_at_runtime_max() {
    let mut course = Course::begin(Settings { runtime_max: Duration::from_secs(60), ..settings(Policy::OnFailure) });
    course.after(60.0).must(&terminate(Whom::All));
    course.ends(TERMINATED);
    assert_eq!(course.stop().cause, Cause::Timeout);
}

#[test]
fn another_main_process_takes_over() {
    let mut course = Course::begin(notify(Policy::Always));
    let notice = notice::parse(b"READY=1").unwrap();
    course.on(Event::Notified { notice, main_pid: Some(99) });
    assert_eq!((course.machine.main(), course.machine.started()), (Some(99), Some(10)));
}

#[test]
fn restart_reset_begins_the_delay_anew() {
    let grown = Settings {
        delay: Duration::from_secs(1),
        steps: 1,
        max_delay: Some(Duration::from_secs(50)),
        ..settings(Policy::Always)
    };
    let mut course = Course::begin(grown);
    let delay = |course: &mut Course| match course.ends(CRASH).stop().decision {
        Decision::Restart { delay, .. } => {
            course.after(delay.as_secs_f64()).on(Event::Spawned { pid: 11 });
            delay.as_secs()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!((delay(&mut course), delay(&mut course)), (1, 50));
    course.says("RESTART_RESET=1");
    assert_eq!(delay(&mut course), 1);
}

#[test]
fn an_oom_kill_is_told_apart_from_a_sigkill() {
    let mut course = Course::begin(settings(Policy::OnAbort));
    course.on(Event::MainEnded { exit: KILLED, oom_killed: true, others: false }).exits_with(137);
    assert_eq!(course.stop().cause, Cause::OomKill);
    let mut course = Course::begin(settings(Policy::OnAbort));
    course.ends(KILLED);
    assert!(matches!(course.stop().decision, Decision::Restart { .. }));
}

#[test]
fn where_there_is_no_room_for_a_process_it_is_tried_again_and_again_and_counts_as_no_start() {
    let mut course = Course { machine: Machine::new(settings(Policy::Always)), now: Moment::default(), acts: vec![] };
    course.on(Event::Begin);
    for pause in [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0] {
        course.on(Event::NotSpawned { failure: SpawnFailure::NoRoom }).must(&[]);
        course.after(pause - 0.01).must(&[]);
        course.after(0.01).must(&[Act::Spawn]);
    }
    course.on(Event::Spawned { pid: 10 }).ends(CRASH);
    assert!(matches!(course.stop().decision, Decision::Restart { attempt: 1, .. }));
    course.after(0.1).on(Event::NotSpawned { failure: SpawnFailure::NoRoom });
    course.signalled(libc::SIGTERM).exits_with(139);
}

#[test]
fn a_program_that_can_not_be_executed_is_a_run_that_failed() {
    let mut course = Course { machine: Machine::new(settings(Policy::OnAbort)), now: Moment::default(), acts: vec![] };
    course.on(Event::Begin).on(Event::NotSpawned { failure: SpawnFailure::NotExecutable { code: 127 } });
    course.exits_with(127);
}
