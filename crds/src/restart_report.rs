//! What the node of a pod says about the restarts in place of its containers.
//!
//! The node's agent writes it on the pod, as the annotation [`RESTARTS`](crate::names::RESTARTS), and the operator reads it from
//! there. It is a node's word: [`RestartReport::parse`] takes nothing that has no bounds, and no word of an application's is in it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Version of [`RestartReport`].
pub const VERSION: u32 = 1;
/// Most containers in it. Of a pod that has more, the first ones are told.
pub const CONTAINERS_MAX: usize = 16;
/// Most bytes of the annotation.
pub const BYTES_MAX: usize = 8 << 10;
/// What a count stops at: as far as every reader of JSON can count.
pub const COUNT_MAX: u64 = (1 << 53) - 1;
/// Most characters of a container's name, which is a DNS label.
const NAME_MAX: usize = 63;
/// Most characters of a container's id.
const ID_MAX: usize = 64;
/// Most characters of [`LastEnd::status`]; the longest is `SIGRTMIN+30`.
const STATUS_MAX: usize = 16;

/// Why a run of an application ended, in the terms of systemd.service(5).
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cause {
    /// With a clean exit code or signal.
    Clean,
    /// With another exit code.
    UncleanExitCode,
    /// By another signal, or with a core dump.
    UncleanSignal,
    /// It did not start, reload or stop in time, or ran too long.
    Timeout,
    /// It did not answer the watchdog, or triggered it.
    Watchdog,
    /// It was killed for want of memory.
    OomKill,
    /// It ended cleanly before it said READY=1.
    Protocol,
}

/// What followed the end of a run.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Outcome {
    /// Another run.
    Restart,
    /// None as yet: the container waits to be moved, and has another run on the node that it comes to.
    Migrate,
    /// The end of the container, which is to come back from a stored checkpoint.
    RestoreCheckpoint,
    /// The end of the container.
    Exit,
}

/// What decided that.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Rule {
    /// Somebody outside the container asked for a stop.
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

/// The newest end of a run.
#[derive(JsonSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastEnd {
    /// When the node's agent saw it.
    pub at: Time,
    /// Why it ended.
    pub cause: Cause,
    /// Exit code, or name of the signal, where it is known: "7", SIGSEGV.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// What followed.
    pub outcome: Outcome,
    /// What decided that.
    pub rule: Rule,
    /// With Migrate: until when the container waits, by the node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Time>,
}

/// What is known of one container of the pod, by its name: kubelet may have made it anew several times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ContainerReport {
    /// Its name in the pod.
    pub name: String,
    /// The id of the newest that kubelet has made.
    pub id: String,
    /// Number of the newest end in that one's record, which goes on where it is moved.
    pub sequence: u64,
    /// Restarts in place of that one.
    pub restarts: u64,
    /// Those of the ones before it.
    #[serde(default)]
    pub earlier: u64,
    /// The newest end.
    pub last: LastEnd,
}

impl ContainerReport {
    /// Restarts in place, of all that had the name.
    pub fn total(&self) -> u64 {
        self.earlier.saturating_add(self.restarts).min(COUNT_MAX)
    }

    fn is_sound(&self) -> bool {
        let letter = |letter: char| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '+';
        let status = self.last.status.as_deref();
        (1..=NAME_MAX).contains(&self.name.len())
            && (1..=ID_MAX).contains(&self.id.len())
            && self.restarts <= COUNT_MAX
            && self.earlier <= COUNT_MAX
            && status.is_none_or(|status| status.len() <= STATUS_MAX && status.chars().all(letter))
    }
}

/// Value of the annotation [`RESTARTS`](crate::names::RESTARTS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestartReport {
    /// [`VERSION`].
    pub version: u32,
    /// One for each container whose application has ended, at most [`CONTAINERS_MAX`].
    pub containers: Vec<ContainerReport>,
}

impl Default for RestartReport {
    fn default() -> Self {
        Self { version: VERSION, containers: Vec::new() }
    }
}

/// Why an annotation says nothing.
#[derive(Debug, Error)]
pub enum ReportError {
    /// It is longer than any that an agent writes.
    #[error("the report on restarts has {length} bytes, more than {BYTES_MAX}")]
    TooLong {
        /// Its length, bytes.
        length: usize,
    },
    /// It is no such document.
    #[error("parse the report on restarts")]
    Parse(#[source] serde_json::Error),
    /// It is of another version, or a value is out of its bounds.
    #[error("the report on restarts has values that no agent of this version writes")]
    Unsound,
}

impl RestartReport {
    /// Reads an annotation's value.
    ///
    /// # Errors
    /// [`ReportError`]. What is returned is within the bounds of this module.
    pub fn parse(text: &str) -> Result<Self, ReportError> {
        if text.len() > BYTES_MAX {
            return Err(ReportError::TooLong { length: text.len() });
        }
        let report: Self = serde_json::from_str(text).map_err(ReportError::Parse)?;
        let sound = report.version == VERSION
            && report.containers.len() <= CONTAINERS_MAX
            && report.containers.iter().all(ContainerReport::is_sound);
        if sound { Ok(report) } else { Err(ReportError::Unsound) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container() -> serde_json::Value {
        json!({
            "name": "app", "id": "c".repeat(64), "sequence": 3, "restarts": 3, "earlier": 4,
            "last": { "at": "2026-01-01T00:00:00Z", "cause": "UncleanSignal", "status": "SIGRTMIN+30",
                      "outcome": "Restart", "rule": "Policy" },
        })
    }

    fn parse(containers: serde_json::Value) -> Result<RestartReport, ReportError> {
        RestartReport::parse(&json!({ "version": 1, "containers": containers }).to_string())
    }

    #[test]
    fn what_is_written_is_read() {
        let report = parse(json!([container()])).expect("a report");
        assert_eq!(report.containers[0].total(), 7);
        let text = serde_json::to_string(&report).expect("JSON");
        assert_eq!(RestartReport::parse(&text).expect("a report"), report);
    }

    #[test]
    fn the_longest_report_fits_into_the_annotation() {
        let mut container = container();
        container["name"] = json!("n".repeat(NAME_MAX));
        for count in ["sequence", "restarts", "earlier"] {
            container[count] = json!(COUNT_MAX);
        }
        container["sequence"] = json!(u64::MAX);
        container["last"]["rule"] = json!("PreventExitStatus");
        container["last"]["heldUntil"] = json!("2026-01-01T00:00:00Z");
        let report = parse(json!(vec![container; CONTAINERS_MAX])).expect("a report");
        assert!(serde_json::to_string(&report).expect("JSON").len() <= BYTES_MAX);
    }

    #[test]
    fn what_no_agent_writes_is_refused() {
        let check = |pointer: &str, value: serde_json::Value| {
            let mut container = container();
            *container.pointer_mut(pointer).expect("a field") = value;
            assert!(parse(json!([container])).is_err(), "{pointer}");
        };
        check("/name", json!(""));
        check("/name", json!("n".repeat(64)));
        check("/id", json!("c".repeat(65)));
        check("/restarts", json!(COUNT_MAX + 1));
        check("/earlier", json!(-1));
        check("/last/status", json!("a\u{1b}[2J"));
        check("/last/status", json!("S".repeat(17)));
        check("/last/cause", json!("Boredom"));
        check("/last/at", json!("yesterday"));
        assert!(parse(json!(vec![container(); CONTAINERS_MAX + 1])).is_err());
        assert!(matches!(RestartReport::parse(&" ".repeat(BYTES_MAX + 1)), Err(ReportError::TooLong { .. })));
        assert!(RestartReport::parse(r#"{"version": 2, "containers": []}"#).is_err());
    }
}
