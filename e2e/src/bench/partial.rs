//! What a run has measured so far, case by case, so that one that was interrupted can go on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::case::Case;
use super::measure::Seen;
use crate::scenario::figures::{self, Figure};
use crate::write_atomic;

/// Cases that are done, by name, and the transfer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Partial {
    /// The work tree's commit.
    pub commit: String,
    /// On what they were measured.
    pub machine: Vec<(String, String)>,
    cases: BTreeMap<String, Seen>,
    transfer: Option<Vec<Figure>>,
}

impl Partial {
    /// Nothing yet.
    pub fn new(commit: String, machine: Vec<(String, String)>) -> Self {
        Self { commit, machine, cases: BTreeMap::new(), transfer: None }
    }

    /// What an earlier run has left, for one of this `commit` on this `machine`: figures of two builds don't belong into one
    /// document.
    ///
    /// # Errors
    /// When there is nothing, or it is of another commit or machine.
    pub fn resume(path: &Path, commit: &str, machine: &[(String, String)]) -> Result<Self> {
        let found: Self = figures::load(path).context("there is no run to go on with")?;
        ensure!(found.commit == commit, "that run was of {}, and this is {commit}: measure anew", found.commit);
        ensure!(!commit.ends_with('+'), "what is not committed may have changed since: measure anew");
        ensure!(found.machine == machine, "that run was on another machine, or with other programs: measure anew");
        Ok(found)
    }

    /// Where it is kept.
    pub fn path() -> PathBuf {
        figures::directory().join("partial.json")
    }

    /// What was seen of `case`, where it was moved at least as often.
    pub fn of(&self, case: &Case) -> Option<&Seen> {
        let seen = self.cases.get(&case.program.name())?;
        (seen.moves.len() >= case.runs && seen.bare.len() >= case.bare_runs).then_some(seen)
    }

    /// What was measured of the transfer.
    pub fn transfer(&self) -> Option<&[Figure]> {
        self.transfer.as_deref()
    }

    /// `case` is done.
    pub fn done(&mut self, case: &Case, seen: Seen) {
        self.cases.insert(case.program.name(), seen);
    }

    /// The transfer is done.
    pub fn transfer_done(&mut self, figures: Vec<Figure>) {
        self.transfer = Some(figures);
    }

    /// Keeps it in `path`.
    ///
    /// # Errors
    /// When it can't be written; then what was kept before is as it was.
    pub fn keep(&self, path: &Path) -> Result<()> {
        write_atomic::json(path, self).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::case::{Probe, Program};

    fn case(bare_runs: usize) -> Case {
        Case { program: Program::Probe(Probe::plain(64, 1)), runs: 0, bare_runs }
    }

    fn machine() -> Vec<(String, String)> {
        vec![("cores".to_owned(), "2".to_owned())]
    }

    fn partial() -> Partial {
        let mut partial = Partial::new("abc".to_owned(), machine());
        partial.done(&case(2), Seen { moves: Vec::new(), bare: vec![270.5, 280.1] });
        partial
    }

    #[test]
    fn a_run_goes_on_with_what_was_kept() {
        let directory = tempfile::tempdir().expect("dir");
        let path = directory.path().join("bench/partial.json");
        let mut partial = partial();
        partial.transfer_done(vec![Figure::of("c", "transfer_ratio", "1", &[0.81]).expect("values")]);
        partial.keep(&path).expect("kept");
        let found = Partial::resume(&path, "abc", &machine()).expect("the same run");
        assert_eq!(found, partial);
        assert_eq!(found.of(&case(2)).map(|seen| seen.bare.len()), Some(2));
        assert_eq!(found.transfer().map(<[_]>::len), Some(1));
    }

    #[test]
    fn figures_of_two_builds_or_two_machines_do_not_come_together() {
        let directory = tempfile::tempdir().expect("dir");
        let path = directory.path().join("partial.json");
        Partial::resume(&path, "abc", &machine()).expect_err("nothing is kept");
        partial().keep(&path).expect("kept");
        Partial::resume(&path, "def", &machine()).expect_err("another commit");
        Partial::resume(&path, "abc", &[]).expect_err("another machine");
    }

    #[test]
    fn a_case_that_was_moved_less_often_is_measured_again() {
        assert!(partial().of(&case(3)).is_none());
        assert!(partial().of(&case(1)).is_some());
    }
}
