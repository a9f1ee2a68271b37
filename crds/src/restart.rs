//! The `restart` section of a policy: systemd's directives by systemd's names, for containers.
//!
//! What each means, and where a container differs from a unit, is in `docs/restart.md`. Defaults are systemd's.

use kube::KubeSchema;
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration as StdDuration;

/// Refuses what is neither an exit code nor a name that systemd has for one, nor a signal. Sources: systemd.exec(5),
/// sysexits.h, signal(7); RTMIN is 34 and the last signal 64.
const EXIT_STATUSES: &str = concat!(
    "self.all(entry, entry.matches('^([0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5]",
    "|SUCCESS|FAILURE|USAGE|DATAERR|NOINPUT|NOUSER|NOHOST|UNAVAILABLE|SOFTWARE|OSERR|OSFILE|CANTCREAT|IOERR|TEMPFAIL",
    "|PROTOCOL|NOPERM|CONFIG",
    "|(SIG)?(HUP|INT|QUIT|ILL|TRAP|ABRT|BUS|FPE|KILL|USR1|SEGV|USR2|PIPE|ALRM|TERM|STKFLT|CHLD|CONT|STOP|TSTP|TTIN|TTOU",
    "|URG|XCPU|XFSZ|VTALRM|PROF|WINCH|IO|PWR|SYS|RTMIN([+]([0-9]|[12][0-9]|30))?))$'))"
);

/// After which ends the application is started again in its container, and when.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.steps) == has(self.maxDelay)").message("steps and maxDelay go together: set both or neither"))]
#[x_kube(validation = Rule::new("!has(self.maxDelay) || duration(self.delay) > duration('0s')").message("delay must be more than 0s when it is to grow to maxDelay"))]
#[x_kube(validation = Rule::new("!has(self.maxDelay) || duration(self.maxDelay) >= duration(self.delay)").message("maxDelay must not be less than delay"))]
#[x_kube(validation = Rule::new("self.type != 'Notify' || !has(self.notifyAccess) || self.notifyAccess != 'None'").message("with type Notify somebody must be heard: notifyAccess can't be None"))]
pub struct RestartPolicy {
    /// After which ends the application is started again: systemd's `Restart=`. Default "No", which YAML wants in quotes.
    #[serde(default)]
    pub policy: RestartOn,
    /// Exit codes and signals that are clean besides 0, SIGHUP, SIGINT, SIGTERM and SIGPIPE, as text: "143", TEMPFAIL, SIGUSR1.
    #[x_kube(validation = Rule::new(EXIT_STATUSES).message("successExitStatus must hold exit codes from 0 to 255, or names of exit codes or signals, as text: \"143\", TEMPFAIL, SIGUSR1"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 320), inner(length(max = 12)))]
    pub success_exit_status: Vec<String>,
    /// Exit codes and signals after which the application is never started again. They beat `restartForceExitStatus`.
    #[x_kube(validation = Rule::new(EXIT_STATUSES).message("restartPreventExitStatus must hold exit codes from 0 to 255, or names of exit codes or signals, as text: \"143\", TEMPFAIL, SIGUSR1"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 320), inner(length(max = 12)))]
    pub restart_prevent_exit_status: Vec<String>,
    /// Exit codes and signals after which the application is always started again, whatever `policy` says.
    #[x_kube(validation = Rule::new(EXIT_STATUSES).message("restartForceExitStatus must hold exit codes from 0 to 255, or names of exit codes or signals, as text: \"143\", TEMPFAIL, SIGUSR1"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 320), inner(length(max = 12)))]
    pub restart_force_exit_status: Vec<String>,
    /// Pause before a restart. Default 100ms.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("delay must be between 0s and 8784h"))]
    #[serde(default = "default_delay")]
    pub delay: Duration,
    /// In how many steps the pause grows to `maxDelay`.
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1000").message("steps must be between 1 and 1000"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u32>,
    /// What the pause grows to.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("maxDelay must be between 0s and 8784h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_delay: Option<Duration>,
    /// How often the application may be started before that is kubelet's affair.
    #[serde(default)]
    pub start_limit: StartLimit,
    /// When start-up is complete. Default Simple.
    #[serde(default)]
    pub r#type: StartType,
    /// Whose messages are heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify_access: Option<NotifyAccess>,
    /// The application must say WATCHDOG=1 at least this often. Left out, or 0s, there is no watchdog.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("watchdog must be between 0s and 8784h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watchdog: Option<Duration>,
    /// How long start-up with `type: Notify`, and a reload, may take; 0s is for ever. Default 90s.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("timeoutStart must be between 0s and 8784h"))]
    #[serde(default = "default_timeout")]
    pub timeout_start: Duration,
    /// How long the application has between SIGTERM and SIGKILL; 0s is for ever. Default 90s.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("timeoutStop must be between 0s and 8784h"))]
    #[serde(default = "default_timeout")]
    pub timeout_stop: Duration,
    /// How long it has between the watchdog's SIGABRT and SIGKILL. Left out, `timeoutStop`.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("timeoutAbort must be between 0s and 8784h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_abort: Option<Duration>,
    /// How long one run may last. Left out, or 0s, for ever.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("runtimeMax must be between 0s and 8784h"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_max: Option<Duration>,
    /// What a stop ends. Default ControlGroup.
    #[serde(default)]
    pub kill_mode: KillMode,
}

/// systemd's `Restart=`.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartOn {
    /// Never. Time-outs, the watchdog and stops are seen to all the same.
    #[default]
    No,
    /// After every end.
    Always,
    /// After a clean one.
    OnSuccess,
    /// After one that is not clean.
    OnFailure,
    /// After an unclean signal, a time-out, the watchdog, an OOM kill.
    OnAbnormal,
    /// After an unclean signal.
    OnAbort,
    /// After the watchdog.
    OnWatchdog,
}

/// How often the application may be started.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.action != 'RestoreCheckpoint' || (self.burst > 0 && duration(self.interval) > duration('0s'))").message("with action RestoreCheckpoint there must be a limit: burst and interval can't be 0"))]
pub struct StartLimit {
    /// Length of the window, which slides. 0s is no limit. Default 10s.
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s') && duration(self) <= duration('8784h')").message("startLimit.interval must be between 0s and 8784h"))]
    #[serde(default = "default_interval")]
    pub interval: Duration,
    /// Most starts in any window, the first one included. 0 is no limit. Default 5.
    #[x_kube(validation = Rule::new("self >= 0 && self <= 1000").message("startLimit.burst must be between 0 and 1000"))]
    #[serde(default = "default_burst")]
    pub burst: u32,
    /// What happens instead of one more start: Exit ends the container, Migrate tries another node first, RestoreCheckpoint
    /// goes back to a stored checkpoint. Default Exit.
    #[serde(default)]
    pub action: StartLimitAction,
}

impl Default for StartLimit {
    fn default() -> Self {
        Self { interval: default_interval(), burst: default_burst(), action: StartLimitAction::default() }
    }
}

/// systemd's `StartLimitAction=`.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartLimitAction {
    /// The container ends with the application's own status, and kubelet does what the pod's restartPolicy says.
    #[default]
    Exit,
    /// Perhaps it is this node: the container waits, without a run, for up to three minutes to be moved, and the application is
    /// started again where it arrives, with a start limit that begins anew. If nobody moves it, or the limit is hit there as
    /// well within ten minutes (or `interval`, if that is longer), it is Exit.
    Migrate,
    /// Perhaps it is the application's state: the container ends with the application's own status, and when kubelet starts it
    /// again in its pod, it goes on from its newest good checkpoint. Where there is none, it is Exit. Needs `spec.checkpoint`.
    RestoreCheckpoint,
}

/// systemd's `Type=`.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartType {
    /// As soon as the program is executed.
    #[default]
    Simple,
    /// When it says READY=1.
    Notify,
}

/// Whose messages are heard: systemd's `NotifyAccess=`. Left out, Main with `type: Notify` or a watchdog, otherwise None.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotifyAccess {
    /// Nobody's.
    None,
    /// The main process'.
    Main,
    /// The main process', and that of the process that was started, where MAINPID= has named another.
    Exec,
    /// Those of every process of the application.
    All,
}

/// systemd's `KillMode=`.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillMode {
    /// SIGTERM and SIGKILL to every process of the application.
    #[default]
    ControlGroup,
    /// SIGTERM to the main process, SIGKILL to every process.
    Mixed,
    /// Both to the main process only.
    Process,
}

fn default_delay() -> Duration {
    StdDuration::from_millis(100).into()
}

fn default_timeout() -> Duration {
    StdDuration::from_secs(90).into()
}

fn default_interval() -> Duration {
    StdDuration::from_secs(10).into()
}

fn default_burst() -> u32 {
    5
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_systemds_default() {
        let policy: RestartPolicy = serde_json::from_str("{}").expect("policy");
        let said = serde_json::to_value(&policy).expect("JSON");
        let expected = serde_json::json!({
            "policy": "No", "delay": "100ms", "startLimit": { "interval": "10s", "burst": 5, "action": "Exit" },
            "type": "Simple", "timeoutStart": "90s", "timeoutStop": "90s", "killMode": "ControlGroup",
        });
        assert_eq!(said, expected);
    }

    #[test]
    fn everything_is_said_with_systemds_names() {
        let text = r#"{"policy": "OnFailure", "successExitStatus": ["143", "SIGUSR1"],
            "restartPreventExitStatus": ["CONFIG"], "restartForceExitStatus": ["TEMPFAIL"], "delay": "2s", "steps": 5,
            "maxDelay": "2m", "startLimit": {"interval": "1m", "burst": 3}, "type": "Notify", "notifyAccess": "Exec",
            "watchdog": "30s", "timeoutStart": "1s", "timeoutStop": "2s", "timeoutAbort": "3s", "runtimeMax": "24h",
            "killMode": "Mixed"}"#;
        let policy: RestartPolicy = serde_json::from_str(text).expect("policy");
        assert_eq!((policy.policy, policy.steps), (RestartOn::OnFailure, Some(5)));
        assert_eq!((policy.start_limit.burst, policy.start_limit.action), (3, StartLimitAction::Exit));
        let again = serde_json::to_string(&policy).expect("JSON");
        assert_eq!(serde_json::from_str::<RestartPolicy>(&again).expect("policy"), policy);
    }

    #[test]
    fn a_start_limits_action_is_one_that_there_is() {
        let parse = |action| serde_json::from_str::<StartLimit>(&format!(r#"{{"action": "{action}"}}"#));
        assert_eq!(parse("Migrate").expect("limit").action, StartLimitAction::Migrate);
        assert_eq!(parse("RestoreCheckpoint").expect("limit").action, StartLimitAction::RestoreCheckpoint);
        assert!(parse("Reboot").is_err());
    }
}
