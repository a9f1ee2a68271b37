//! What a line of a record says, in the words of the API and of the metrics. Pure.

use tideover_crds::restart_report::{Cause, Outcome, Rule};
use tideover_init::record::Line;
use tideover_init::{decide, exit, record, signal};

/// Why a run ended.
pub fn cause(line: &Line) -> Cause {
    match line.cause {
        exit::Cause::Clean => Cause::Clean,
        exit::Cause::UncleanExitCode => Cause::UncleanExitCode,
        exit::Cause::UncleanSignal => Cause::UncleanSignal,
        exit::Cause::Timeout => Cause::Timeout,
        exit::Cause::Watchdog => Cause::Watchdog,
        exit::Cause::OomKill => Cause::OomKill,
        exit::Cause::Protocol => Cause::Protocol,
    }
}

/// What followed.
pub fn outcome(line: &Line) -> Outcome {
    match line.outcome {
        record::Outcome::Restart { .. } => Outcome::Restart,
        record::Outcome::Migrate { .. } => Outcome::Migrate,
        record::Outcome::RestoreCheckpoint => Outcome::RestoreCheckpoint,
        record::Outcome::Exit => Outcome::Exit,
    }
}

/// What decided that.
pub fn rule(line: &Line) -> Rule {
    match line.rule {
        decide::Rule::StopAsked => Rule::StopAsked,
        decide::Rule::PreventExitStatus => Rule::PreventExitStatus,
        decide::Rule::ForceExitStatus => Rule::ForceExitStatus,
        decide::Rule::Policy => Rule::Policy,
        decide::Rule::StartLimit => Rule::StartLimit,
    }
}

/// An exit code or the name of a signal, as a policy lists them; none where nobody knows.
pub fn status(line: &Line) -> Option<String> {
    let code = line.code.map(|code| code.to_string());
    code.or_else(|| line.signal.map(|number| signal::name(number.into())))
}

/// Labels of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// Why.
    pub cause: String,
    /// What followed.
    pub outcome: String,
    /// What decided that.
    pub rule: String,
}

impl Words {
    /// Those of a line.
    pub fn of(line: &Line) -> Self {
        let (cause, outcome, rule) = (cause(line), outcome(line), rule(line));
        Self { cause: format!("{cause:?}"), outcome: format!("{outcome:?}"), rule: format!("{rule:?}") }
    }

    /// Those of an end without a line: another one came later, so it was followed by a run.
    pub fn unseen() -> Self {
        Self { cause: "Unknown".into(), outcome: format!("{:?}", Outcome::Restart), rule: "Unknown".into() }
    }
}
