//! Compares ratios with limits. Milliseconds are never compared: they are of one machine.

use std::path::Path;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::goals::{Bound, Of};
use crate::scenario::figures::{self, Figure};

/// Units whose figures are alike on every machine.
const UNITS: [&str; 2] = ["1", "MiB"];

/// A bound that holds on every machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limit {
    /// The figure's case.
    pub case: String,
    /// The figure's metric.
    pub metric: String,
    /// Which of its numbers.
    pub of: Of,
    /// The bound.
    pub bound: Bound,
    /// Why it is this.
    pub reason: String,
}

/// What came of one limit.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Kept, with the number.
    Pass(f64),
    /// Not kept, with the number.
    Fail(f64),
    /// There is no such figure.
    Missing,
    /// The figure is in a unit that differs between machines.
    Unit(String),
}

impl Limit {
    /// What `figures` have to say to it.
    pub fn judge(&self, figures: &[Figure]) -> Outcome {
        let figure = figures.iter().find(|figure| figure.case == self.case && figure.metric == self.metric);
        let Some(figure) = figure else { return Outcome::Missing };
        if !UNITS.contains(&figure.unit.as_str()) {
            return Outcome::Unit(figure.unit.clone());
        }
        let number = self.of.figure(figure);
        if self.bound.holds(number) { Outcome::Pass(number) } else { Outcome::Fail(number) }
    }

    /// The outcome in a line.
    fn line(&self, outcome: &Outcome) -> String {
        let Self { case, metric, bound, reason, .. } = self;
        let bound = bound.text();
        match outcome {
            Outcome::Pass(number) => format!("pass  {case}: {metric} {number:.3} {bound}"),
            Outcome::Fail(number) => format!("FAIL  {case}: {metric} {number:.3}, not {bound} ({reason})"),
            Outcome::Missing => format!("FAIL  {case}: {metric} was not measured"),
            Outcome::Unit(unit) => format!("FAIL  {case}: {metric} is in {unit}, which no limit can be set for"),
        }
    }
}

/// Judges the figures in `kept` by the limits in `limits`, and prints a line for each.
///
/// # Errors
/// When one does not pass, or there is nothing to compare.
pub fn gate(kept: &Path, limits: &Path) -> Result<()> {
    let (figures, limits): (Vec<Figure>, Vec<Limit>) = (figures::load(kept)?, figures::load(limits)?);
    ensure!(!limits.is_empty(), "there are no limits");
    let outcomes: Vec<Outcome> = limits.iter().map(|limit| limit.judge(&figures)).collect();
    for (limit, outcome) in limits.iter().zip(&outcomes) {
        println!("{}", limit.line(outcome));
    }
    let failed = outcomes.iter().filter(|outcome| !matches!(outcome, Outcome::Pass(_))).count();
    ensure!(failed == 0, "{failed} of {} limits do not hold", limits.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::goals::GOALS;

    fn limit(metric: &str, of: Of, bound: Bound) -> Limit {
        Limit { case: "c".to_owned(), metric: metric.to_owned(), of, bound, reason: "because".to_owned() }
    }

    fn figures() -> Vec<Figure> {
        let figure = |metric, unit, values: &[f64]| Figure::of("c", metric, unit, values).expect("values");
        vec![figure("ratio", "1", &[0.1, 0.2, 0.9]), figure("freeze", "ms", &[20.0])]
    }

    #[test]
    fn the_named_number_is_compared_in_the_named_direction() {
        let judge = |of, bound| limit("ratio", of, bound).judge(&figures());
        assert_eq!(judge(Of::Median, Bound::AtMost(0.2)), Outcome::Pass(0.2));
        assert_eq!(judge(Of::Max, Bound::AtMost(0.2)), Outcome::Fail(0.9));
        assert_eq!(judge(Of::Median, Bound::AtLeast(0.3)), Outcome::Fail(0.2));
        assert_eq!(judge(Of::Max, Bound::AtLeast(0.3)), Outcome::Pass(0.9));
    }

    #[test]
    fn milliseconds_never_pass() {
        let outcome = limit("freeze", Of::Median, Bound::AtMost(1e9)).judge(&figures());
        assert_eq!(outcome, Outcome::Unit("ms".to_owned()));
    }

    #[test]
    fn what_was_not_measured_does_not_pass() {
        assert_eq!(limit("other", Of::Median, Bound::AtMost(1.0)).judge(&figures()), Outcome::Missing);
        let directory = tempfile::tempdir().expect("dir");
        let write = |name: &str, content: &serde_json::Value| {
            let path = directory.path().join(name);
            std::fs::write(&path, content.to_string()).expect("write");
            path
        };
        let kept = write("figures", &serde_json::to_value(figures()).expect("json"));
        let limits = |limit: Limit| write("limits", &serde_json::json!([limit]));
        gate(&kept, &limits(limit("ratio", Of::Median, Bound::AtMost(0.5)))).expect("it holds");
        gate(&kept, &limits(limit("ratio", Of::Median, Bound::AtMost(0.1)))).expect_err("it does not hold");
        gate(&kept, &limits(limit("other", Of::Median, Bound::AtMost(0.5)))).expect_err("it was not measured");
    }

    #[test]
    fn the_limits_that_are_kept_are_those_of_the_goals_that_are_no_milliseconds() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-limits.json");
        let limits: Vec<Limit> = figures::load(&path).expect("limits");
        let named = |limit: &Limit| GOALS.iter().any(|goal| (goal.case, goal.metric) == (&limit.case, &limit.metric));
        assert!(limits.iter().all(named), "{limits:?}");
        assert_eq!(
            limits.len(),
            GOALS.iter().filter(|goal| !["freeze", "freeze_added"].contains(&goal.metric)).count()
        );
        assert!(limits.iter().all(|limit| limit.reason.len() > 20), "a limit without a reason");
    }
}
