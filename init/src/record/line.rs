//! One line.

use crate::config::MAX_DURATION;
use crate::decide::{Decision, Rule};
use crate::exit::{Cause, Exit};
use crate::machine::Stop;
use crate::signal;
use serde::{Deserialize, Serialize};

/// Version of the lines.
pub(super) const VERSION: u32 = 1;
/// Most characters of [`Line::status`].
pub(super) const MAX_STATUS: usize = 200;

/// The end of a run, as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Line {
    /// Version of this shape.
    pub version: u32,
    /// Number of the line in this container, from 1, without gaps.
    pub sequence: u64,
    /// Wall clock of the container's node, milliseconds since 1970.
    pub at_millis: u64,
    /// Why the run ended.
    pub cause: Cause,
    /// Exit code of its main process, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<u8>,
    /// Number of the signal that ended it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// Whether that was a core dump.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub core: bool,
    /// How long it ran, milliseconds.
    pub ran_millis: u64,
    /// What followed.
    pub outcome: Outcome,
    /// What decided that.
    pub rule: Rule,
    /// Its last STATUS=; no control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Its last ERRNO=.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<i32>,
    /// How many lines before this one could not be written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost: u64,
}

/// What followed the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Outcome {
    /// Another run.
    Restart {
        /// After so many milliseconds.
        delay_millis: u64,
        /// Number of the restart, from 1.
        attempt: u32,
    },
    /// None as yet: the container waits to be moved to another node, and has another run there. If nobody moves it, it ends.
    Migrate {
        /// For so many milliseconds at most.
        hold_millis: u64,
    },
    /// The end of the container, because of the start limit: it is to come back from a stored checkpoint.
    RestoreCheckpoint,
    /// The end of the container.
    Exit,
}

impl Outcome {
    /// Whether `rule` can have led to this, within the bounds of a configuration.
    fn is_sound(self, rule: Rule) -> bool {
        let longest = millis(MAX_DURATION);
        match self {
            Self::Restart { delay_millis, .. } => delay_millis <= longest,
            Self::Migrate { hold_millis } => hold_millis <= longest && rule == Rule::StartLimit,
            Self::RestoreCheckpoint => rule == Rule::StartLimit,
            Self::Exit => true,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Line {
    /// The line for `stop`.
    pub fn new(stop: &Stop, sequence: u64, at_millis: u64, lost: u64) -> Self {
        let (code, signal, core) = match stop.exit {
            Exit::Code(code) => (Some(code), None, false),
            Exit::Signal { number, core } => (None, u8::try_from(number).ok(), core),
            Exit::Unknown => (None, None, false),
        };
        let (outcome, rule) = match stop.decision {
            Decision::Restart { delay, attempt, rule } => {
                (Outcome::Restart { delay_millis: millis(delay), attempt }, rule)
            }
            Decision::Migrate { hold } => (Outcome::Migrate { hold_millis: millis(hold) }, Rule::StartLimit),
            Decision::RestoreCheckpoint => (Outcome::RestoreCheckpoint, Rule::StartLimit),
            Decision::Exit { rule } => (Outcome::Exit, rule),
        };
        Self {
            version: VERSION,
            sequence,
            at_millis,
            cause: stop.cause,
            code,
            signal,
            core,
            ran_millis: millis(stop.ran),
            outcome,
            rule,
            status: stop.status.clone(),
            errno: stop.errno,
            lost,
        }
    }

    /// Whether a container that keeps to the format could have written this.
    pub(super) fn is_sound(&self) -> bool {
        self.version == VERSION
            && self.outcome.is_sound(self.rule)
            && self.signal.is_none_or(|signal| (1..=signal::MAX).contains(&i32::from(signal)))
            && !(self.code.is_some() && self.signal.is_some())
            && self
                .status
                .as_ref()
                .is_none_or(|status| status.chars().count() <= MAX_STATUS && !status.chars().any(char::is_control))
    }
}
