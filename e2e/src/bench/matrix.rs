//! All that is measured, and which of it a person asked for.

use super::case::{Beside, Case, Kind, Probe, Program};
use super::goals::{GOALS, TRANSFER};

/// Resident sizes, MiB.
pub const SIZES: [usize; 5] = [1, 64, 256, 1024, 4096];
/// Dirty rates, percent of the memory in a second.
pub const PERCENTS: [usize; 3] = [0, 1, 10];
/// The case that a crowd is compared with.
pub const ALONE: Probe = Probe { mib: 1, percent: 0, beside: Beside::Nothing };

/// A server with fifty idle backends, which have all of its memory in common with it.
pub const FORKED: Probe = Probe { mib: 256, percent: 0, beside: Beside::Forks(50) };

/// A writable layer whose size must not be felt, MiB.
pub const LAYER: usize = 2048;
/// Files of it that change between the last round and the freeze.
pub const CHANGED: usize = 1000;

/// Sessions of a database that has users who think.
pub const BACKENDS: usize = 50;

/// Moves of each kind, where nobody says another number.
pub const RUNS: usize = 9;
/// The most moves by bare runc of what it takes ten seconds for, or of what is measured for its own sake.
const FEW: usize = 3;
/// From this size on bare runc is moved a [`FEW`] times only, MiB.
const LARGE: usize = 4096;

/// Operations a second of a program that has time to spare.
pub const PACE: u64 = 100_000;

/// Every case, each moved `runs` times.
pub fn all(runs: usize) -> Vec<Case> {
    let few = runs.min(FEW);
    let mut cases = Vec::new();
    for mib in SIZES {
        for percent in PERCENTS {
            let bare_runs = if mib < LARGE { runs } else { few };
            cases.push(Case { program: Program::Probe(Probe::plain(mib, percent)), runs, bare_runs });
        }
    }
    cases.push(Case { program: Program::Probe(FORKED), runs, bare_runs: few });
    for (kind, count) in crowds() {
        let beside = Beside::Crowd(kind, count);
        // runc refuses to dump a connection unless it is told to keep it, which is another thing than a move to a new address.
        let bare_runs = if kind == Kind::Connections { 0 } else { few };
        cases.push(Case { program: Program::Probe(Probe { beside, ..ALONE }), runs, bare_runs });
    }
    for changed in [0, CHANGED] {
        cases.push(Case { program: Program::Probe(layer(changed)), runs, bare_runs: 0 });
    }
    for per_second in [PACE, 0] {
        let beside = Beside::Work(per_second);
        cases.push(Case { program: Program::Probe(Probe { beside, ..Probe::plain(1024, 0) }), runs, bare_runs: 0 });
    }
    cases.push(Case { program: Program::Store { mib: 1024 }, runs, bare_runs: 0 });
    cases.push(Case { program: Program::Database { idle: BACKENDS }, runs, bare_runs: 0 });
    cases
}

/// A program with a large writable layer, of which so many files change.
pub fn layer(changed: usize) -> Probe {
    Probe { beside: Beside::Layer { mib: LAYER, changed }, ..ALONE }
}

/// Of what there are crowds, and how large they are.
pub fn crowds() -> Vec<(Kind, usize)> {
    let thousand = [Kind::Vmas, Kind::Files, Kind::Eventfds, Kind::Sockets, Kind::Pipes].map(|kind| (kind, 1000));
    let fewer = [(Kind::Processes, 50), (Kind::Threads, 100), (Kind::Connections, 100)];
    fewer.into_iter().chain(thousand).collect()
}

/// Which cases a person wants.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Parts of their names; none means all.
    pub names: Vec<String>,
    /// Only what there is a goal for.
    pub quick: bool,
}

impl Selection {
    /// Whether the transfer alone is among it, for which there is a goal.
    pub fn transfer(&self) -> bool {
        self.asks_for(TRANSFER)
    }

    fn asks_for(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|part| name.contains(part.as_str()))
    }

    /// Those of `cases`, in their order.
    pub fn of(&self, cases: Vec<Case>) -> Vec<Case> {
        // With what one of them is compared with.
        let unchanged = Program::Probe(layer(0)).name();
        let quick = |name: &str| !self.quick || name == unchanged || GOALS.iter().any(|goal| goal.case == name);
        cases
            .into_iter()
            .filter(|case| {
                let name = case.program.name();
                self.asks_for(&name) && quick(&name)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(cases: &[Case]) -> Vec<String> {
        cases.iter().map(|case| case.program.name()).collect()
    }

    #[test]
    fn no_two_cases_have_one_name() {
        let all = names(&all(RUNS));
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
        assert_eq!(all.len(), 15 + 1 + 8 + 2 + 2 + 1 + 1);
    }

    #[test]
    fn a_part_of_a_name_selects() {
        let wanted = Selection { names: vec!["1024 MiB, 1 %/s".to_owned(), "eventfds".to_owned()], quick: false };
        assert_eq!(names(&wanted.of(all(2))), ["1024 MiB, 1 %/s", "1000 eventfds"]);
        assert_eq!(Selection::default().of(all(2)).len(), all(2).len());
        assert!(Selection::default().transfer() && !wanted.transfer());
    }

    #[test]
    fn a_quick_run_measures_what_there_are_goals_for() {
        let quick = Selection { names: Vec::new(), quick: true };
        let measured = names(&quick.of(all(RUNS)));
        assert_eq!(measured.len(), 7, "{measured:?}");
        for goal in GOALS.iter().filter(|goal| !goal.metric.starts_with("transfer")) {
            assert!(measured.iter().any(|name| name == goal.case), "{}", goal.case);
        }
    }

    #[test]
    fn bare_runc_is_moved_as_often_except_where_it_takes_long() {
        let runs = |mib| {
            let case = all(9).into_iter().find(|case| case.program == Program::Probe(Probe::plain(mib, 1)));
            case.map(|case| (case.runs, case.bare_runs))
        };
        assert_eq!((runs(1024), runs(4096)), (Some((9, 9)), Some((9, 3))));
    }

    #[test]
    fn a_quick_run_takes_twenty_minutes_and_all_of_it_fifty() {
        let minutes = |quick| {
            let cases = Selection { names: Vec::new(), quick }.of(all(RUNS));
            cases.iter().map(|case| case.estimate().as_secs_f64() / 60.0).sum::<f64>()
        };
        assert!((10.0..20.0).contains(&minutes(true)), "{}", minutes(true));
        assert!((35.0..50.0).contains(&minutes(false)), "{}", minutes(false));
    }
}
