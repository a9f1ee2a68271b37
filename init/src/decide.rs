//! Whether there is another run, and when. Pure: the time is an argument.
//!
//! The order is systemd's (`service_shall_restart()`): a stop that was asked for, then `restartPreventExitStatus`, then
//! `restartForceExitStatus`, then `policy`; the start limit has the last word.

use crate::clock::Moment;
use crate::config::{Policy, Settings, StartLimitAction};
use crate::exit::{Cause, Exit};
use crate::history::History;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a container whose start limit was hit waits to be moved, before it exits after all. Minutes, because another pod
/// has to be placed and started first, and files are copied; no more of them, because it is of no use to anybody meanwhile.
pub const HOLD: Duration = Duration::from_secs(180);

/// Where the start limit is hit again so soon after such a move, the node was not the cause. Where `startLimit.interval` is
/// longer, it is that: even a steady loop of crashes can take so long to hit the limit again. kubelet too begins its back-off
/// anew when a container has run for ten minutes. Source: Kubernetes' documentation of the pod's lifecycle.
pub const SAME_CAUSE: Duration = Duration::from_secs(600);

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why it ended.
    pub cause: Cause,
    /// How its main process ended.
    pub exit: Exit,
    /// Whether somebody outside the container had asked for a stop.
    pub stop_asked: bool,
}

/// What follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another run.
    Restart {
        /// After this pause.
        delay: Duration,
        /// Number of the restart since the beginning or the last reset, from 1.
        attempt: u32,
        /// What decided.
        rule: Rule,
    },
    /// No run here, because of the start limit: the container waits to be moved.
    Migrate {
        /// For so long at most.
        hold: Duration,
    },
    /// The container exits with the application's status, because of the start limit, and is to come back from a checkpoint.
    RestoreCheckpoint,
    /// The container exits with the application's status.
    Exit {
        /// What decided.
        rule: Rule,
    },
}

/// What decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    /// Kubelet, or somebody on the node, asked for a stop.
    StopAsked,
    /// `restartPreventExitStatus`.
    PreventExitStatus,
    /// `restartForceExitStatus`.
    ForceExitStatus,
    /// `policy`.
    Policy,
    /// `startLimit`.
    StartLimit,
}

/// Decides what follows from the end of a run.
pub fn decide(end: &End, settings: &Settings, history: &History, now: Moment) -> Decision {
    if end.stop_asked {
        return Decision::Exit { rule: Rule::StopAsked };
    }
    if settings.restart_prevent_exit_status.contains(end.exit) {
        return Decision::Exit { rule: Rule::PreventExitStatus };
    }
    let rule = if settings.restart_force_exit_status.contains(end.exit) {
        Rule::ForceExitStatus
    } else if restarts(settings.policy, end.cause) {
        Rule::Policy
    } else {
        return Decision::Exit { rule: Rule::Policy };
    };
    let attempt = history.restarts().saturating_add(1);
    let delay = delay(settings, attempt);
    // It would be refused when the delay is over: nobody gains from waiting for that.
    if !history.allows(now + delay, &settings.start_limit) {
        return given_up(settings, history, now);
    }
    Decision::Restart { delay, attempt, rule }
}

/// What `startLimit.action` says, once the limit is hit.
fn given_up(settings: &Settings, history: &History, now: Moment) -> Decision {
    let same_cause = SAME_CAUSE.max(settings.start_limit.interval);
    match settings.start_limit.action {
        StartLimitAction::Migrate if !history.has_arrived_within(same_cause, now) => Decision::Migrate { hold: HOLD },
        StartLimitAction::RestoreCheckpoint => Decision::RestoreCheckpoint,
        StartLimitAction::Migrate | StartLimitAction::Exit => Decision::Exit { rule: Rule::StartLimit },
    }
}

/// The table of systemd.service(5), "Exit causes and the effect of the Restart= settings".
fn restarts(policy: Policy, cause: Cause) -> bool {
    match policy {
        Policy::No => false,
        Policy::Always => true,
        Policy::OnSuccess => cause == Cause::Clean,
        Policy::OnFailure => cause != Cause::Clean,
        Policy::OnAbnormal => !matches!(cause, Cause::Clean | Cause::UncleanExitCode),
        Policy::OnAbort => cause == Cause::UncleanSignal,
        Policy::OnWatchdog => cause == Cause::Watchdog,
    }
}

/// The pause before restart number `attempt`: `delay * (maxDelay/delay)^((attempt-1)/steps)` up to `steps`, then
/// `maxDelay`. Source: systemd's `service_restart_usec_next()`.
fn delay(settings: &Settings, attempt: u32) -> Duration {
    let Some(max) = settings.max_delay.filter(|_| settings.steps > 0 && !settings.delay.is_zero()) else {
        return settings.delay;
    };
    if attempt > settings.steps {
        return max;
    }
    let growth = max.as_secs_f64() / settings.delay.as_secs_f64();
    let part = f64::from(attempt.saturating_sub(1)) / f64::from(settings.steps);
    Duration::try_from_secs_f64(settings.delay.as_secs_f64() * growth.powf(part)).map_or(max, |delay| delay.min(max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ExitStatus, ExitStatusSet, StartLimit};
    use proptest::prelude::*;

    const POLICIES: [Policy; 7] = [
        Policy::No,
        Policy::Always,
        Policy::OnSuccess,
        Policy::OnFailure,
        Policy::OnAbnormal,
        Policy::OnAbort,
        Policy::OnWatchdog,
    ];

    fn end(cause: Cause) -> End {
        let exit = match cause {
            Cause::Clean | Cause::Protocol => Exit::Code(0),
            Cause::UncleanExitCode => Exit::Code(1),
            Cause::UncleanSignal => Exit::Signal { number: 11, core: true },
            Cause::Timeout | Cause::OomKill => Exit::Signal { number: 9, core: false },
            Cause::Watchdog => Exit::Signal { number: 6, core: false },
        };
        End { cause, exit, stop_asked: false }
    }

    fn settings(policy: Policy) -> Settings {
        Settings { policy, ..Settings::default() }
    }

    fn set(entries: &[ExitStatus]) -> ExitStatusSet {
        entries.iter().copied().collect()
    }

    fn decided(end: &End, settings: &Settings) -> (bool, Rule) {
        match decide(end, settings, &History::default(), Moment::default()) {
            Decision::Restart { rule, .. } => (true, rule),
            Decision::Migrate { .. } | Decision::RestoreCheckpoint => (false, Rule::StartLimit),
            Decision::Exit { rule } => (false, rule),
        }
    }

    #[test]
    fn the_table_of_policies_and_causes_is_systemds() {
        use Policy::{Always, OnAbnormal, OnAbort, OnFailure, OnSuccess, OnWatchdog};
        let table: [(Cause, &[Policy]); 7] = [
            (Cause::Clean, &[Always, OnSuccess]),
            (Cause::UncleanExitCode, &[Always, OnFailure]),
            (Cause::UncleanSignal, &[Always, OnFailure, OnAbnormal, OnAbort]),
            (Cause::Timeout, &[Always, OnFailure, OnAbnormal]),
            (Cause::Watchdog, &[Always, OnFailure, OnAbnormal, OnWatchdog]),
            (Cause::OomKill, &[Always, OnFailure, OnAbnormal]),
            (Cause::Protocol, &[Always, OnFailure, OnAbnormal]),
        ];
        for (cause, restarting) in table {
            for policy in POLICIES {
                assert_eq!(
                    decided(&end(cause), &settings(policy)),
                    (restarting.contains(&policy), Rule::Policy),
                    "{cause:?} under {policy:?}"
                );
            }
        }
    }

    #[test]
    fn a_stop_beats_prevent_which_beats_force_which_beats_the_policy() {
        let listed = set(&[ExitStatus::Code(1), ExitStatus::Signal(9)]);
        let mut settings = settings(Policy::No);
        settings.restart_force_exit_status = listed.clone();
        assert_eq!(decided(&end(Cause::UncleanExitCode), &settings), (true, Rule::ForceExitStatus));
        assert_eq!(decided(&end(Cause::OomKill), &settings), (true, Rule::ForceExitStatus));
        assert_eq!(decided(&end(Cause::Clean), &settings), (false, Rule::Policy));
        settings.restart_prevent_exit_status = listed;
        assert_eq!(decided(&end(Cause::UncleanExitCode), &settings), (false, Rule::PreventExitStatus));
        settings.policy = Policy::Always;
        assert_eq!(decided(&end(Cause::UncleanExitCode), &settings), (false, Rule::PreventExitStatus));
        for cause in [Cause::Clean, Cause::UncleanExitCode, Cause::Watchdog] {
            let stopped = End { stop_asked: true, ..end(cause) };
            assert_eq!(decided(&stopped, &settings), (false, Rule::StopAsked));
        }
    }

    #[test]
    fn the_delay_grows_as_in_the_manual() {
        let settings = Settings {
            delay: Duration::from_secs(2),
            max_delay: Some(Duration::from_secs(120)),
            steps: 5,
            ..Settings::default()
        };
        let tenths = |attempt| (delay(&settings, attempt).as_secs_f64() * 10.0).round() / 10.0;
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(tenths), [2.0, 4.5, 10.3, 23.3, 52.9, 120.0, 120.0]);
        assert_eq!(delay(&settings, u32::MAX), Duration::from_secs(120));
    }

    #[test]
    fn without_steps_the_delay_is_always_the_same() {
        let settings = settings(Policy::Always);
        assert_eq!([1, 2, 1000].map(|attempt| delay(&settings, attempt)), [Duration::from_millis(100); 3]);
    }

    #[test]
    fn zero_turns_the_start_limit_off() {
        let mut settings = settings(Policy::Always);
        let mut history = History::default();
        for limit in [
            StartLimit { burst: 0, ..StartLimit::default() },
            StartLimit { interval: Duration::ZERO, ..StartLimit::default() },
        ] {
            settings.start_limit = limit;
            for _ in 0..100 {
                history.started(Moment::default(), &limit);
            }
            let decision = decide(&end(Cause::Clean), &settings, &history, Moment::default());
            assert!(matches!(decision, Decision::Restart { .. }));
        }
    }

    #[test]
    fn the_sixth_start_in_ten_seconds_is_refused_and_the_first_counts() {
        let settings = settings(Policy::Always);
        let mut history = History::default();
        let mut now = Moment::default();
        let mut starts = 0;
        let rule = loop {
            history.started(now, &settings.start_limit);
            starts += 1;
            match decide(&end(Cause::UncleanExitCode), &settings, &history, now) {
                Decision::Restart { delay, .. } => now = now + delay,
                Decision::Migrate { .. } | Decision::RestoreCheckpoint => panic!("nobody asked for that"),
                Decision::Exit { rule } => break rule,
            }
        };
        assert_eq!((starts, rule), (5, Rule::StartLimit));
        // Once the first start is as old as the interval, there is room for one again.
        assert!(matches!(
            decide(&end(Cause::UncleanExitCode), &settings, &history, Moment::default() + Duration::from_millis(9900)),
            Decision::Restart { .. }
        ));
    }

    #[test]
    fn the_limits_action_is_taken_once_and_again_only_when_the_other_node_has_done_for_a_while() {
        use StartLimitAction::{Exit, Migrate, RestoreCheckpoint};
        let (exit, migrate) = (Decision::Exit { rule: Rule::StartLimit }, Decision::Migrate { hold: HOLD });
        // The action, startLimit.interval, how long ago it arrived here, all in seconds, and what follows.
        let table = [
            (Exit, 10, None, exit),
            (Exit, 10, Some(9000), exit),
            (RestoreCheckpoint, 10, None, Decision::RestoreCheckpoint),
            (RestoreCheckpoint, 10, Some(9000), Decision::RestoreCheckpoint),
            (Migrate, 10, None, migrate),
            (Migrate, 10, Some(0), exit),
            (Migrate, 10, Some(599), exit),
            (Migrate, 10, Some(600), migrate),
            (Migrate, 3600, Some(600), exit),
            (Migrate, 3600, Some(3599), exit),
            (Migrate, 3600, Some(3600), migrate),
        ];
        for (action, interval, arrived, expected) in table {
            let limit = StartLimit { interval: Duration::from_secs(interval), burst: 1, action };
            let settings = Settings { start_limit: limit, ..settings(Policy::Always) };
            let mut history = History::default();
            let mut now = Moment::default() + Duration::from_secs(5);
            if let Some(ago) = arrived {
                history.arrived(now);
                now = now + Duration::from_secs(ago);
            }
            history.started(now, &limit);
            let decided = decide(&end(Cause::UncleanExitCode), &settings, &history, now);
            assert_eq!(decided, expected, "{action:?} {interval} {arrived:?}");
            // What is not to be restarted is not moved either.
            let stopped = End { stop_asked: true, ..end(Cause::UncleanExitCode) };
            let decided = decide(&stopped, &settings, &history, now);
            assert_eq!(decided, Decision::Exit { rule: Rule::StopAsked });
        }
    }

    fn any_settings() -> impl Strategy<Value = Settings> {
        let action = prop::sample::select(vec![
            StartLimitAction::Exit,
            StartLimitAction::Migrate,
            StartLimitAction::RestoreCheckpoint,
        ]);
        let numbers = (0..2000u64, 0..6u32, 0..20_000u64, 1..3000u64, 1..8u32);
        (numbers, action).prop_map(|((delay, steps, more, interval, burst), action)| {
            let delay = Duration::from_millis(delay);
            let curve = steps > 0 && !delay.is_zero();
            Settings {
                policy: Policy::Always,
                delay,
                steps: if curve { steps } else { 0 },
                max_delay: curve.then_some(delay + Duration::from_millis(more)),
                start_limit: StartLimit { interval: Duration::from_millis(interval), burst, action },
                ..Settings::default()
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn no_history_starts_more_than_burst_runs_in_an_interval_on_one_node(
            settings in any_settings(),
            runs in proptest::collection::vec(prop_oneof![20 => 0..1500u64, 1 => 0..1_200_000u64], 1..60),
        ) {
            let limit = settings.start_limit;
            let mut history = History::default();
            // Those on each node, and when each was come to.
            let mut starts = vec![Vec::new()];
            let mut arrivals = Vec::new();
            let mut now = Moment::default();
            for run in runs {
                history.started(now, &limit);
                starts.last_mut().unwrap().push(now);
                now = now + Duration::from_millis(run);
                match decide(&end(Cause::Clean), &settings, &history, now) {
                    Decision::Restart { delay, .. } => {
                        history.restarting();
                        now = now + delay;
                    }
                    Decision::Migrate { .. } => {
                        prop_assert_eq!(limit.action, StartLimitAction::Migrate);
                        history.arrived(now);
                        arrivals.push(now);
                        starts.push(Vec::new());
                    }
                    Decision::RestoreCheckpoint => {
                        prop_assert_eq!(limit.action, StartLimitAction::RestoreCheckpoint);
                        break;
                    }
                    Decision::Exit { rule } => {
                        prop_assert_eq!(rule, Rule::StartLimit);
                        break;
                    }
                }
            }
            for starts in &starts {
                for first in starts {
                    let within = starts.iter().filter(|start| *start >= first && start.since(*first) < limit.interval);
                    prop_assert!(within.count() <= limit.burst as usize);
                }
            }
            prop_assert!(arrivals.windows(2).all(|pair| pair[1].since(pair[0]) >= SAME_CAUSE));
        }

        #[test]
        fn the_delay_never_shrinks_and_keeps_within_its_bounds(settings in any_settings()) {
            let mut last = Duration::ZERO;
            for attempt in 1..10 {
                let delay = delay(&settings, attempt);
                prop_assert!(delay >= last && delay <= settings.max_delay.unwrap_or(settings.delay));
                last = delay;
            }
            prop_assert!(delay(&settings, 1) == settings.delay);
        }
    }
}
