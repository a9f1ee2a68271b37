//! What init is told: one JSON document, read once.
//!
//! Owns its shape, its bounds and its defaults, which are systemd's. Every duration is a whole number of milliseconds; 0
//! means "never" for time-outs, watchdog and `runtimeMax`, as in systemd.

mod refusal;
mod status;

pub use refusal::Refusal;
pub use status::{ExitStatus, ExitStatusSet};

use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Version of the document.
pub const VERSION: u32 = 1;
/// Most bytes that a document may have.
pub const MAX_BYTES: u64 = 64 * 1024;
/// The longest duration.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);
/// The largest `startLimit.burst`: init remembers the time of so many starts.
pub const MAX_BURST: u32 = 1000;
/// The largest `steps`.
pub const MAX_STEPS: u32 = 1000;
/// The longest path of the directory, bytes, so that the socket in it fits into `sun_path`. Source: unix(7).
pub const MAX_DIRECTORY: usize = 90;

/// The document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// [`VERSION`].
    pub version: u32,
    /// Directory, as the container sees it, for the notify socket and the record. A small file system of its own, because
    /// the application may write to it too.
    pub directory: PathBuf,
    /// The rules.
    #[serde(default)]
    pub restart: Settings,
}

/// The rules by which a container is restarted, with systemd's names and defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// `Restart=`.
    pub policy: Policy,
    /// `SuccessExitStatus=`: exit codes and signals that are clean besides 0, SIGHUP, SIGINT, SIGTERM and SIGPIPE.
    pub success_exit_status: ExitStatusSet,
    /// `RestartPreventExitStatus=`: never restart after these.
    pub restart_prevent_exit_status: ExitStatusSet,
    /// `RestartForceExitStatus=`: restart after these, whatever the policy says.
    pub restart_force_exit_status: ExitStatusSet,
    /// `RestartSec=`.
    #[serde(with = "millis")]
    pub delay: Duration,
    /// `RestartSteps=`: in how many steps the delay grows to `maxDelay`; 0 for no growth.
    pub steps: u32,
    /// `RestartMaxDelaySec=`.
    #[serde(with = "millis::option")]
    pub max_delay: Option<Duration>,
    /// `StartLimitIntervalSec=`, `StartLimitBurst=`, `StartLimitAction=`.
    pub start_limit: StartLimit,
    /// `Type=`.
    pub r#type: Type,
    /// `NotifyAccess=`; where absent: `Main` with `type: Notify` or a watchdog, otherwise `None`.
    pub notify_access: Option<NotifyAccess>,
    /// `WatchdogSec=`.
    #[serde(with = "millis")]
    pub watchdog: Duration,
    /// `TimeoutStartSec=`.
    #[serde(with = "millis")]
    pub timeout_start: Duration,
    /// `TimeoutStopSec=`.
    #[serde(with = "millis")]
    pub timeout_stop: Duration,
    /// `TimeoutAbortSec=`; where absent, `timeoutStop`.
    #[serde(with = "millis::option")]
    pub timeout_abort: Option<Duration>,
    /// `RuntimeMaxSec=`.
    #[serde(with = "millis")]
    pub runtime_max: Duration,
    /// `KillMode=`.
    pub kill_mode: KillMode,
}

impl Default for Settings {
    /// systemd's defaults. Source: systemd.service(5), systemd.kill(5), systemd-system.conf(5).
    fn default() -> Self {
        Self {
            policy: Policy::No,
            success_exit_status: ExitStatusSet::default(),
            restart_prevent_exit_status: ExitStatusSet::default(),
            restart_force_exit_status: ExitStatusSet::default(),
            delay: Duration::from_millis(100),
            steps: 0,
            max_delay: None,
            start_limit: StartLimit::default(),
            r#type: Type::Simple,
            notify_access: None,
            watchdog: Duration::ZERO,
            timeout_start: Duration::from_secs(90),
            timeout_stop: Duration::from_secs(90),
            timeout_abort: None,
            runtime_max: Duration::ZERO,
            kill_mode: KillMode::ControlGroup,
        }
    }
}

/// `Restart=`: after which ends there is another run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Never.
    #[default]
    No,
    /// After every end.
    Always,
    /// After a clean one.
    OnSuccess,
    /// After one that is not clean.
    OnFailure,
    /// After a signal, a time-out, the watchdog, an OOM kill.
    OnAbnormal,
    /// After an unclean signal.
    OnAbort,
    /// After the watchdog.
    OnWatchdog,
}

/// How often the application may be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StartLimit {
    /// Length of the window; 0 for no limit.
    #[serde(with = "millis")]
    pub interval: Duration,
    /// Most starts in any window of that length, the first start included; 0 for no limit.
    pub burst: u32,
    /// What happens instead of one more start.
    pub action: StartLimitAction,
}

impl Default for StartLimit {
    fn default() -> Self {
        Self { interval: Duration::from_secs(10), burst: 5, action: StartLimitAction::Exit }
    }
}

/// What happens when the start limit is hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartLimitAction {
    /// The container exits with the application's own status, so that kubelet sees the truth.
    #[default]
    Exit,
    /// It waits, without a run, until it is on another node, and starts the application there. If nobody moves it, or the
    /// limit is hit there as well, it exits.
    Migrate,
    /// As [`Self::Exit`], and the record says that the container is to come back from a stored checkpoint.
    RestoreCheckpoint,
}

/// `Type=`: when start-up is complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    /// As soon as the program is executed.
    #[default]
    Simple,
    /// When it says READY=1.
    Notify,
}

/// `NotifyAccess=`: whose messages are heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NotifyAccess {
    /// Nobody's: there is no socket.
    None,
    /// The main process'.
    Main,
    /// The main process', and that of the process that init started where MAINPID= has named another.
    Exec,
    /// Those of every process that descends from init.
    All,
}

/// `KillMode=`: what a stop ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KillMode {
    /// SIGTERM and SIGKILL to every descendant of init in the container's cgroup.
    #[default]
    ControlGroup,
    /// SIGTERM to the main process; SIGKILL to every descendant.
    Mixed,
    /// Both to the main process only; others live on.
    Process,
}

impl Settings {
    /// Whose messages are heard.
    pub fn access(&self) -> NotifyAccess {
        let needs_socket = self.r#type == Type::Notify || !self.watchdog.is_zero();
        self.notify_access.unwrap_or(if needs_socket { NotifyAccess::Main } else { NotifyAccess::None })
    }

    /// # Errors
    /// The first thing that makes no sense.
    pub fn validate(&self) -> Result<(), Refusal> {
        let durations = [
            ("delay", self.delay),
            ("maxDelay", self.max_delay.unwrap_or_default()),
            ("startLimit.interval", self.start_limit.interval),
            ("watchdog", self.watchdog),
            ("timeoutStart", self.timeout_start),
            ("timeoutStop", self.timeout_stop),
            ("timeoutAbort", self.timeout_abort.unwrap_or_default()),
            ("runtimeMax", self.runtime_max),
        ];
        if let Some((name, _)) = durations.into_iter().find(|(_, duration)| *duration > MAX_DURATION) {
            return Err(Refusal::TooLong { name });
        }
        match (self.steps, self.max_delay) {
            (0, None) => {}
            (0, Some(_)) | (_, None) => return Err(Refusal::HalfACurve),
            (steps, _) if steps > MAX_STEPS => return Err(Refusal::Steps),
            (_, Some(_)) if self.delay.is_zero() => return Err(Refusal::CurveFromNothing),
            (_, Some(max)) if max < self.delay => return Err(Refusal::CurveDownwards),
            _ => {}
        }
        if self.start_limit.burst > MAX_BURST {
            return Err(Refusal::Burst);
        }
        if self.r#type == Type::Notify && self.access() == NotifyAccess::None {
            return Err(Refusal::NobodyHeard);
        }
        Ok(())
    }
}

impl Config {
    /// Reads and checks the document at `path`.
    ///
    /// # Errors
    /// Where it can't be read, is too large, or says something that makes no sense.
    pub fn read(path: &Path) -> Result<Self, Refusal> {
        let failed = |source| Refusal::Read { path: path.to_owned(), source };
        let mut text = Vec::new();
        File::open(path).map_err(failed)?.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
        Self::parse(&text)
    }

    /// Checks the document `text`.
    ///
    /// # Errors
    /// Where it is too large or says something that makes no sense.
    pub fn parse(text: &[u8]) -> Result<Self, Refusal> {
        if text.len() as u64 > MAX_BYTES {
            return Err(Refusal::TooLarge);
        }
        let config: Self = serde_json::from_slice(text).map_err(Refusal::Parse)?;
        if config.version != VERSION {
            return Err(Refusal::Version { theirs: config.version });
        }
        if !config.directory.is_absolute() || config.directory.as_os_str().len() > MAX_DIRECTORY {
            return Err(Refusal::Directory { path: config.directory });
        }
        config.restart.validate()?;
        Ok(config)
    }
}

/// Durations as whole milliseconds.
mod millis {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }

    pub(super) mod option {
        use serde::{Deserialize, Deserializer, Serializer};
        use std::time::Duration;

        pub(in super::super) fn serialize<S: Serializer>(
            duration: &Option<Duration>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => super::serialize(duration, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(restart: &str) -> Result<Settings, String> {
        let text = format!(r#"{{"version":1,"directory":"/run/x","restart":{restart}}}"#);
        Config::parse(text.as_bytes()).map(|config| config.restart).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn what_is_not_said_is_systemds_default() {
        assert_eq!(parse("{}").unwrap(), Settings::default());
        let config = Config::parse(br#"{"version":1,"directory":"/run/x"}"#).unwrap();
        assert_eq!(config.restart.access(), NotifyAccess::None);
        assert_eq!(parse(r#"{"watchdog":1000}"#).unwrap().access(), NotifyAccess::Main);
        assert_eq!(parse(r#"{"type":"Notify","notifyAccess":"All"}"#).unwrap().access(), NotifyAccess::All);
    }

    #[test]
    fn everything_is_said_with_systemds_names() {
        let settings = parse(
            r#"{"policy":"OnFailure","successExitStatus":[143,"SIGUSR1"],"restartPreventExitStatus":["CONFIG"],
                "restartForceExitStatus":[],"delay":2000,"steps":5,"maxDelay":120000,
                "startLimit":{"interval":0,"burst":3,"action":"Migrate"},"type":"Notify","notifyAccess":"Exec",
                "watchdog":30000,"timeoutStart":1,"timeoutStop":2,"timeoutAbort":3,"runtimeMax":4,"killMode":"Mixed"}"#,
        )
        .unwrap();
        assert_eq!(settings.steps, 5);
        assert!(settings.restart_prevent_exit_status.contains(crate::exit::Exit::Code(78)));
        let again = serde_json::to_string(&settings).unwrap();
        assert_eq!(parse(&again).unwrap(), settings);
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for (restart, sentence) in [
            (r#"{"steps":3}"#, "steps and maxDelay go together: set both or neither"),
            (r#"{"maxDelay":3000}"#, "steps and maxDelay go together: set both or neither"),
            (r#"{"steps":3,"maxDelay":50}"#, "maxDelay must not be less than delay"),
            (r#"{"delay":0,"steps":3,"maxDelay":50}"#, "delay must be more than 0 when it is to grow to maxDelay"),
            (r#"{"steps":1001,"maxDelay":500}"#, "steps must be at most 1000"),
            (r#"{"startLimit":{"burst":1001}}"#, "startLimit.burst must be at most 1000"),
            (r#"{"watchdog":99999999999999}"#, "watchdog must be at most 366 days"),
            (
                r#"{"type":"Notify","notifyAccess":"None"}"#,
                "with type Notify somebody must be heard: notifyAccess can't be None",
            ),
        ] {
            assert_eq!(parse(restart).unwrap_err(), sentence, "{restart}");
        }
        assert!(parse(r#"{"polizy":"No"}"#).is_err());
        assert!(Config::parse(br#"{"version":2,"directory":"/x"}"#).unwrap_err().to_string().contains("version 2"));
        assert!(matches!(Config::parse(br#"{"version":1,"directory":"x"}"#), Err(Refusal::Directory { .. })));
        assert!(matches!(Config::parse(&vec![b' '; 70_000]), Err(Refusal::TooLarge)));
    }
}
