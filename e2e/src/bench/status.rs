//! What a Migration that succeeded says of itself. Pure.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::scenario::migration;

/// What is taken from a Migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Phases and parts of them, milliseconds, each name once.
    pub phases: Vec<(String, f64)>,
    /// When it was what, realtime.
    pub span: Span,
    /// The engine that copied memory.
    pub engine: String,
    /// The attempt that succeeded; those before it failed.
    pub attempt: u64,
    /// The node that it moved to.
    pub target: String,
    /// Rounds before the freeze.
    pub rounds: u64,
    /// Bytes sent in them.
    pub copied: u64,
    /// Bytes sent inside the freeze.
    pub in_freeze: u64,
}

/// Moments of a move, realtime nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first phase began.
    pub created: i64,
    /// Memory began to be copied, in the attempt that succeeded.
    pub copying: i64,
    /// The go for a freeze was given, in the first attempt that came to it.
    pub go: i64,
    /// The same in the attempt that succeeded.
    pub freezing: i64,
}

const TARGET: [(&str, &str); 5] = [
    ("target: receive", "receiveMillis"),
    ("target: stage", "stageMillis"),
    ("target: restore", "restoreMillis"),
    ("target: commit", "commitMillis"),
    ("target: release until it runs", "resumeMillis"),
];

impl Told {
    /// By the Migration `object`.
    ///
    /// # Errors
    /// When it lacks what a Migration that succeeded has.
    pub fn by(object: &Value) -> Result<Self> {
        let status = &object["status"];
        let (source, target) = (&status["source"], &status["target"]);
        let mut phases: Vec<(String, f64)> = Vec::new();
        for (name, millis) in migration::phases(object)? {
            let name = match name.strip_prefix("  ") {
                Some(part) => part.to_owned(),
                None => format!("phase {name}"),
            };
            // A second attempt goes through the phases again.
            match phases.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += millis,
                None => phases.push((name, millis)),
            }
        }
        for (name, field) in TARGET {
            let millis = target["timings"][field].as_f64();
            phases.push((name.to_owned(), millis.with_context(|| format!("no {field} in the target's report"))?));
        }
        Ok(Self {
            phases,
            span: Span::of(status)?,
            engine: source["engine"].as_str().context("no engine in the report")?.to_owned(),
            attempt: status["attempt"].as_u64().context("no attempt")?,
            target: status["targetNode"].as_str().context("no target")?.to_owned(),
            rounds: source["preCopied"]["rounds"].as_u64().unwrap_or(0),
            copied: source["preCopied"]["bytes"].as_u64().unwrap_or(0),
            in_freeze: source["timings"]["bytes"].as_u64().context("no bytes in the report")?,
        })
    }

    /// How long memory was copied before the freeze, seconds: the phases in which rounds go.
    pub fn copying_seconds(&self) -> f64 {
        (self.span.freezing - self.span.copying) as f64 / 1e9
    }
}

impl Span {
    fn of(status: &Value) -> Result<Self> {
        let entries = status["phases"].as_array().context("no phases")?;
        let time = |entry: &Value| -> Result<i64> {
            let at: jiff::Timestamp = entry["at"].as_str().context("a phase without a time")?.parse()?;
            i64::try_from(at.as_nanosecond()).context("a time out of range")
        };
        let last = |phase: &str| {
            let entry = entries.iter().rfind(|entry| entry["phase"] == phase);
            time(entry.with_context(|| format!("it was never {phase}"))?)
        };
        let first = entries.iter().find(|entry| entry["phase"] == "Freezing");
        Ok(Self {
            go: time(first.context("it was never Freezing")?)?,
            created: time(entries.first().context("no phases")?)?,
            copying: last("PreCopying")?,
            freezing: last("Freezing")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    pub(crate) fn migration() -> Value {
        let at = |second: u32| format!("2026-01-01T00:00:{second:02}.500000Z");
        json!({"status": {
            "attempt": 2, "targetNode": "worker-2",
            "phases": [
                {"phase": "Preparing", "at": at(0)}, {"phase": "BackingOff", "at": at(2)},
                {"phase": "Preparing", "at": at(3)}, {"phase": "PreCopying", "at": at(4)},
                {"phase": "Handover", "at": at(9)}, {"phase": "Freezing", "at": at(11)},
                {"phase": "Succeeded", "at": at(12)},
            ],
            "source": {
                "engine": "WriteProtect", "preCopied": {"rounds": 5, "bytes": 1000, "millis": 7.5},
                "timings": {
                    "freezeWaitMillis": 0.25, "dumpMillis": 7.0, "transferMillis": 2.0, "restoreMillis": 9.0,
                    "commitMillis": 3.0, "freezeMillis": 22.0, "bytes": 50,
                },
            },
            "target": {"timings": {
                "receiveMillis": 8.0, "stageMillis": 1.0, "restoreMillis": 9.0, "commitMillis": 2.0, "resumeMillis": 12.0,
            }},
        }})
    }

    #[test]
    fn a_freeze_that_was_rolled_back_is_not_before_the_go() {
        let mut migration = migration();
        let go = Span::of(&migration["status"]).expect("times").go;
        migration["status"]["phases"][1] = json!({"phase": "Freezing", "at": "2026-01-01T00:00:02.500000Z"});
        let span = Span::of(&migration["status"]).expect("times");
        assert_eq!((go - span.go, span.freezing), (9_000_000_000, go));
    }

    #[test]
    fn phases_of_two_attempts_add_up_and_each_name_comes_once() {
        let told = Told::by(&migration()).expect("what it says");
        let of =
            |name: &str| told.phases.iter().filter(|(known, _)| known == name).map(|(_, ms)| *ms).collect::<Vec<_>>();
        assert_eq!(of("phase Preparing"), [3_000.0]);
        assert_eq!(of("freeze: dump"), [7.0]);
        assert_eq!(of("target: restore"), [9.0]);
        assert_eq!((told.attempt, told.rounds, told.copied, told.in_freeze), (2, 5, 1000, 50));
        assert_eq!(told.copying_seconds(), 7.0);
    }

    #[test]
    fn without_rounds_nothing_was_copied_before() {
        let mut object = migration();
        object["status"]["source"]["preCopied"].take();
        assert_eq!(Told::by(&object).expect("what it says").copied, 0);
    }

    #[test]
    fn a_missing_figure_is_named() {
        let mut object = migration();
        object["status"]["target"]["timings"]["stageMillis"].take();
        assert!(format!("{:#}", Told::by(&object).expect_err("no figure")).contains("stageMillis"));
    }
}
