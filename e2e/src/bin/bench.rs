//! The freeze that an application sees, through Tideover and through bare runc, side by side in one run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use e2e::bench::case::Case;
use e2e::bench::docs::{self, Measured};
use e2e::bench::goals::TRANSFER;
use e2e::bench::machine::{self, Run};
use e2e::bench::matrix::{self, Selection};
use e2e::bench::partial::Partial;
use e2e::bench::progress::{Progress, minutes};
use e2e::bench::table::table;
use e2e::bench::{gate, measure, results, transfer};
use e2e::scenario::figures::{self, keep};
use e2e::scenario::{Cluster, Sandbox};

/// Measure the freeze, seen by the application's own 1 ms ticker.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the cases and how long each takes, about.
    List(Wanted),
    /// Move programs on the lab and keep the figures in target/bench/freeze.json.
    Measure {
        #[command(flatten)]
        wanted: Wanted,
        /// Go on with a run that was interrupted: what it has measured already is taken from it.
        #[arg(long)]
        resume: bool,
        /// Keep the figures in docs/benchmarks.json too, and write docs/benchmarks.md and its picture.
        #[arg(long)]
        write_docs: bool,
    },
    /// Write docs/benchmarks.md and its picture from docs/benchmarks.json.
    Docs {
        /// Keep the figures of the last run in docs/benchmarks.json first.
        #[arg(long)]
        last: bool,
        /// Write nothing: fail where they are not what would be written.
        #[arg(long, conflicts_with = "last")]
        check: bool,
    },
    /// Compare ratios with limits: fails where one does not hold.
    Gate {
        /// Figures; those that were kept last where it is not given.
        figures: Option<PathBuf>,
        /// Limits.
        #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/bench-limits.json"))]
        limits: PathBuf,
    },
}

/// Which cases, how often.
#[derive(Args)]
struct Wanted {
    /// Moves of each kind; fewer by bare runc where they take long.
    #[arg(long, default_value_t = matrix::RUNS, value_parser = at_least_one)]
    runs: usize,
    /// A part of the names of the cases to measure, e.g. '64 MiB'; may be given again.
    #[arg(long)]
    cases: Vec<String>,
    /// Measure only what there is a goal for.
    #[arg(long)]
    quick: bool,
}

/// Names of the files below target/bench.
const FREEZE: &str = "freeze";
const RUN: &str = "run";

/// What the benchmark of the transfer takes, about.
const TRANSFER_TAKES: Duration = Duration::from_secs(40);

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::List(wanted) => {
            let (cases, transfer) = wanted.select()?;
            let mut total = Duration::ZERO;
            let cases = cases.iter().map(|case| (case.program.name(), case.estimate()));
            for (name, takes) in cases.chain(transfer.then(|| (TRANSFER.to_owned(), TRANSFER_TAKES))) {
                println!("{name}: {}", minutes(takes));
                total += takes;
            }
            println!("all of it: {}", minutes(total));
            Ok(())
        }
        Command::Measure { wanted, resume, write_docs } => {
            let measured = measure(&wanted, resume)?;
            keep(RUN, &measured.run)?;
            println!("{}\n{}", table(&measured.figures), keep(FREEZE, &measured.figures)?.display());
            if write_docs {
                docs::keep(&docs::directory(), &measured)?;
            }
            let failed: Vec<_> = measured.run.failed.into_keys().collect();
            ensure!(failed.is_empty(), "no figures of {}", failed.join("; "));
            Ok(())
        }
        Command::Docs { check: true, .. } => docs::check(&docs::directory()),
        Command::Docs { last: true, .. } => {
            let measured = Measured { run: figures::load(&kept(RUN))?, figures: figures::load(&kept(FREEZE))? };
            docs::keep(&docs::directory(), &measured)
        }
        Command::Docs { .. } => docs::write(&docs::directory()),
        Command::Gate { figures, limits } => gate::gate(&figures.unwrap_or_else(|| kept(FREEZE)), &limits),
    }
}

impl Wanted {
    /// The cases, and whether the transfer is measured.
    fn select(&self) -> Result<(Vec<Case>, bool)> {
        let selection = Selection { names: self.cases.clone(), quick: self.quick };
        let (cases, transfer) = (selection.of(matrix::all(self.runs)), selection.transfer());
        ensure!(transfer || !cases.is_empty(), "there is no such case: `bench list` prints them");
        Ok((cases, transfer))
    }
}

/// Measures what is `wanted`. A case that fails does not end the run: the others are as good as ever.
fn measure(wanted: &Wanted, resume: bool) -> Result<Measured> {
    let (cases, transfer) = wanted.select()?;
    let program = transfer.then(transfer::build).transpose()?;
    let cluster = Cluster::ready()?;
    let (commit, machine) = (machine::commit()?, machine::facts(cluster)?);
    let path = Partial::path();
    let mut partial =
        if resume { Partial::resume(&path, &commit, &machine)? } else { Partial::new(commit.clone(), machine.clone()) };
    let program = program.filter(|_| partial.transfer().is_none());
    let left: Vec<_> = cases.iter().filter(|case| partial.of(case).is_none()).collect();
    let of_transfer = program.as_ref().map(|_| TRANSFER_TAKES);
    let mut progress = Progress::start(left.iter().map(|case| case.estimate()).chain(of_transfer).sum());
    let (mut failed, mut empty) = (BTreeMap::new(), None);
    for case in left {
        let name = case.program.name();
        let sandbox = match empty.take() {
            Some(sandbox) => sandbox,
            None => Sandbox::new(cluster.kube(), "bench")?,
        };
        match measure::case(cluster, &sandbox, case) {
            Ok(seen) => {
                partial.done(case, seen);
                partial.keep(&path)?;
                empty = Some(sandbox);
            }
            Err(error) => fail(&mut failed, &name, &error),
        }
        progress.done(&name, case.estimate());
    }
    empty.map_or(Ok(()), Sandbox::passed)?;
    if let Some(program) = program {
        match transfer::measure(cluster, &program, wanted.runs) {
            Ok(figures) => {
                partial.transfer_done(figures);
                partial.keep(&path)?;
            }
            Err(error) => fail(&mut failed, TRANSFER, &error),
        }
        progress.done(TRANSFER, TRANSFER_TAKES);
    }
    let seen = |case: Case| partial.of(&case).cloned().map(|seen| (case, seen));
    let seen: Vec<_> = cases.into_iter().filter_map(seen).collect();
    let mut figures = results::figures(&seen)?;
    let transferred = partial.transfer().filter(|_| transfer).unwrap_or_default();
    figures.extend(transferred.iter().cloned().chain(transfer::worst(transferred)));
    let command = machine::command_line("bench", std::env::args().skip(1));
    Ok(Measured { run: Run { command, commit, machine, engines: results::engines(&seen), failed }, figures })
}

fn fail(failed: &mut BTreeMap<String, String>, name: &str, error: &anyhow::Error) {
    eprintln!("{name}: {error:#}");
    failed.insert(name.to_owned(), format!("{error:#}").lines().next().unwrap_or_default().to_owned());
}

fn kept(name: &str) -> PathBuf {
    figures::directory().join(format!("{name}.json"))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    let number = text.parse().map_err(|error| format!("{error}"))?;
    if number > 0 { Ok(number) } else { Err("nothing would be measured".to_owned()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_words_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn several_cases_may_be_named() {
        let cli = Cli::parse_from(["bench", "measure", "--cases", "64 MiB, 1 %/s", "--cases", "redis", "--runs", "2"]);
        let Command::Measure { wanted, write_docs: false, resume: false } = cli.command else {
            panic!("not to measure")
        };
        let (cases, transfer) = wanted.select().expect("cases");
        assert_eq!((cases.len(), transfer), (2, false));
        assert!(Cli::try_parse_from(["bench", "measure", "--runs", "0"]).is_err());
    }
}
