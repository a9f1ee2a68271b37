//! From the rules of a policy to those that `tideover-init` is told. Pure.

use super::Checkpoints;
use std::time::Duration;
use thiserror::Error;
use tideover_crds::Supervision;
use tideover_crds::restart::{self, RestartPolicy};
use tideover_init::config::{
    Config, ExitStatus, ExitStatusSet, KillMode, NotifyAccess, Policy, Refusal, Settings, StartLimit, StartLimitAction,
    Type, VERSION,
};

/// Why rules can't be given to init. The API server refuses such a policy; one from before it did may still be there.
#[derive(Debug, Error)]
pub enum RuleError {
    /// Neither a code nor a name.
    #[error("{list} has the entry {entry:?}, which is no exit code and no name of one or of a signal")]
    ExitStatus {
        /// The directive.
        list: &'static str,
        /// The entry.
        entry: String,
    },
    /// A duration below nothing.
    #[error("{name} must not be negative")]
    Negative {
        /// The directive.
        name: &'static str,
    },
    /// Init would refuse it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What init is told: the rules, and where its directory is.
///
/// # Errors
/// [`RuleError`].
pub fn config(policy: &RestartPolicy) -> Result<Config, RuleError> {
    Ok(Config { version: VERSION, directory: super::DIRECTORY.into(), restart: settings(policy)? })
}

/// A run that has lasted shorter than this has shown nothing, however short the start limit's interval is.
const PROVEN: Duration = Duration::from_secs(10);

/// How often the state of the containers is stored, if it is. A run lasts when it has outlived the start limit's interval: what is
/// restored from it then has no start in that interval, and is not given up at once.
pub fn checkpoints(supervision: &Supervision) -> Option<Checkpoints> {
    let policy = supervision.checkpoint.as_ref()?;
    let millis = |duration: kube::core::Duration| {
        // Below nothing is nothing; the API server lets neither pass.
        if duration.is_negative() { 0 } else { u64::try_from(Duration::from(duration).as_millis()).unwrap_or(u64::MAX) }
    };
    let proven = millis(PROVEN.into()).max(millis(supervision.restart.start_limit.interval));
    Some(Checkpoints { interval_millis: millis(policy.interval), keep: policy.keep.max(1), proven_millis: proven })
}

/// Every field is named, so that a directive which is new can't be left out unseen.
fn settings(policy: &RestartPolicy) -> Result<Settings, RuleError> {
    let RestartPolicy {
        policy,
        success_exit_status,
        restart_prevent_exit_status,
        restart_force_exit_status,
        delay,
        steps,
        max_delay,
        start_limit: restart::StartLimit { interval, burst, action },
        r#type,
        notify_access,
        watchdog,
        timeout_start,
        timeout_stop,
        timeout_abort,
        runtime_max,
        kill_mode,
    } = policy;
    let settings = Settings {
        policy: match policy {
            restart::RestartOn::No => Policy::No,
            restart::RestartOn::Always => Policy::Always,
            restart::RestartOn::OnSuccess => Policy::OnSuccess,
            restart::RestartOn::OnFailure => Policy::OnFailure,
            restart::RestartOn::OnAbnormal => Policy::OnAbnormal,
            restart::RestartOn::OnAbort => Policy::OnAbort,
            restart::RestartOn::OnWatchdog => Policy::OnWatchdog,
        },
        success_exit_status: statuses("successExitStatus", success_exit_status)?,
        restart_prevent_exit_status: statuses("restartPreventExitStatus", restart_prevent_exit_status)?,
        restart_force_exit_status: statuses("restartForceExitStatus", restart_force_exit_status)?,
        delay: duration("delay", *delay)?,
        steps: steps.unwrap_or(0),
        max_delay: max_delay.map(|max| duration("maxDelay", max)).transpose()?,
        start_limit: StartLimit {
            interval: duration("startLimit.interval", *interval)?,
            burst: *burst,
            action: match action {
                restart::StartLimitAction::Exit => StartLimitAction::Exit,
                restart::StartLimitAction::Migrate => StartLimitAction::Migrate,
                restart::StartLimitAction::RestoreCheckpoint => StartLimitAction::RestoreCheckpoint,
            },
        },
        r#type: match r#type {
            restart::StartType::Simple => Type::Simple,
            restart::StartType::Notify => Type::Notify,
        },
        notify_access: notify_access.map(|access| match access {
            restart::NotifyAccess::None => NotifyAccess::None,
            restart::NotifyAccess::Main => NotifyAccess::Main,
            restart::NotifyAccess::Exec => NotifyAccess::Exec,
            restart::NotifyAccess::All => NotifyAccess::All,
        }),
        watchdog: watchdog.map(|every| duration("watchdog", every)).transpose()?.unwrap_or_default(),
        timeout_start: duration("timeoutStart", *timeout_start)?,
        timeout_stop: duration("timeoutStop", *timeout_stop)?,
        timeout_abort: timeout_abort.map(|limit| duration("timeoutAbort", limit)).transpose()?,
        runtime_max: runtime_max.map(|limit| duration("runtimeMax", limit)).transpose()?.unwrap_or_default(),
        kill_mode: match kill_mode {
            restart::KillMode::ControlGroup => KillMode::ControlGroup,
            restart::KillMode::Mixed => KillMode::Mixed,
            restart::KillMode::Process => KillMode::Process,
        },
    };
    settings.validate()?;
    Ok(settings)
}

fn duration(name: &'static str, duration: kube::core::Duration) -> Result<Duration, RuleError> {
    if duration.is_negative() { Err(RuleError::Negative { name }) } else { Ok(duration.into()) }
}

fn statuses(list: &'static str, entries: &[String]) -> Result<ExitStatusSet, RuleError> {
    let status =
        |entry: &String| ExitStatus::parse(entry).ok_or_else(|| RuleError::ExitStatus { list, entry: entry.clone() });
    entries.iter().map(status).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tideover_init::exit::Exit;

    fn check(policy: &str) -> Result<Settings, String> {
        settings(&serde_json::from_str(policy).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_policy_that_says_nothing_is_what_init_does_untold() {
        assert_eq!(check("{}").unwrap(), Settings::default());
    }

    #[test]
    fn every_directive_arrives() {
        let settings = check(
            r#"{"policy": "OnFailure", "successExitStatus": ["143", "SIGUSR1"], "restartPreventExitStatus": ["CONFIG"],
                "restartForceExitStatus": ["RTMIN+3"], "delay": "2s", "steps": 5, "maxDelay": "2m",
                "startLimit": {"interval": "1m", "burst": 3, "action": "Migrate"}, "type": "Notify",
                "notifyAccess": "Exec", "watchdog": "30s", "timeoutStart": "1s", "timeoutStop": "2s",
                "timeoutAbort": "3s", "runtimeMax": "24h", "killMode": "Mixed"}"#,
        )
        .unwrap();
        let expected: Settings = serde_json::from_str(
            r#"{"policy": "OnFailure", "successExitStatus": [143, "SIGUSR1"], "restartPreventExitStatus": [78],
                "restartForceExitStatus": ["SIGRTMIN+3"], "delay": 2000, "steps": 5, "maxDelay": 120000,
                "startLimit": {"interval": 60000, "burst": 3, "action": "Migrate"}, "type": "Notify", "notifyAccess": "Exec",
                "watchdog": 30000, "timeoutStart": 1000, "timeoutStop": 2000, "timeoutAbort": 3000,
                "runtimeMax": 86400000, "killMode": "Mixed"}"#,
        )
        .unwrap();
        assert_eq!(settings, expected);
        assert!(settings.success_exit_status.contains(Exit::Code(143)));
    }

    #[test]
    fn what_an_api_server_let_pass_is_refused_with_its_name() {
        assert_eq!(check(r#"{"delay": "-1s"}"#).unwrap_err(), "delay must not be negative");
        assert!(check(r#"{"successExitStatus": ["SIGNOPE"]}"#).unwrap_err().contains("SIGNOPE"));
        assert!(check(r#"{"steps": 3}"#).unwrap_err().contains("go together"));
    }

    #[test]
    fn a_run_lasts_when_it_has_outlived_the_start_limits_interval() {
        let proven = |limit: &str, checkpoint: &str| {
            let text =
                format!(r#"{{"version": 1, "containers": ["app"], "restart": {{"startLimit": {limit}}}{checkpoint}}}"#);
            checkpoints(&Supervision::parse(&text).unwrap())
        };
        let checkpoint = r#", "checkpoint": {"interval": "5m", "keep": 3}"#;
        let expected = |proven_millis| Some(Checkpoints { interval_millis: 300_000, keep: 3, proven_millis });
        assert_eq!(proven(r#"{"interval": "1m"}"#, checkpoint), expected(60_000));
        assert_eq!(proven(r#"{"interval": "1s"}"#, checkpoint), expected(10_000));
        assert_eq!(proven(r#"{"interval": "1m"}"#, ""), None);
    }

    #[test]
    fn init_reads_what_it_is_told() {
        let policy = serde_json::from_str(r#"{"policy": "Always", "successExitStatus": ["143"]}"#).unwrap();
        let config = config(&policy).unwrap();
        assert_eq!(Config::parse(&serde_json::to_vec(&config).unwrap()).unwrap(), config);
    }
}
