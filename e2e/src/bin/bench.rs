//! The freeze that an application sees, through Tideover and through bare runc, side by side in one run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use e2e::bench::goals::TRANSFER;
use e2e::bench::machine::{self, Run};
use e2e::bench::matrix::{self, Selection};
use e2e::bench::progress::{Progress, minutes};
use e2e::bench::table::table;
use e2e::bench::{gate, measure, plot, report, results};
use e2e::scenario::Cluster;
use e2e::scenario::figures::{self, Figure, keep};

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
        /// Write docs/benchmarks.md and its picture too.
        #[arg(long)]
        write_docs: bool,
    },
    /// Write docs/benchmarks.md and its picture from the figures that were kept last.
    Docs {
        /// Day of the run; that of the commit where it is not given.
        #[arg(long)]
        date: Option<String>,
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
const PICTURE: &str = "benchmarks.svg";

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
            for case in wanted.select()? {
                println!("{}: {}", case.program.name(), minutes(case.estimate()));
            }
            Ok(())
        }
        Command::Measure { wanted, write_docs } => {
            let run = measure(&wanted)?;
            if write_docs {
                docs(None)?;
            }
            let failed: Vec<_> = run.failed.into_keys().collect();
            ensure!(failed.is_empty(), "no figures of {}", failed.join("; "));
            Ok(())
        }
        Command::Docs { date } => docs(date),
        Command::Gate { figures, limits } => gate::gate(&figures.unwrap_or_else(|| kept(FREEZE)), &limits),
    }
}

impl Wanted {
    fn select(&self) -> Result<Vec<e2e::bench::case::Case>> {
        let selection = Selection { names: self.cases.clone(), quick: self.quick };
        let cases = selection.of(matrix::all(self.runs));
        ensure!(!cases.is_empty(), "there is no such case: `bench list` prints them");
        Ok(cases)
    }
}

/// A case that fails does not end the run: the others are as good as ever.
fn measure(wanted: &Wanted) -> Result<Run> {
    let cases = wanted.select()?;
    let cluster = Cluster::ready()?;
    let mut run = Run {
        command: machine::command_line("bench", std::env::args().skip(1)),
        commit: machine::commit()?,
        machine: machine::facts(cluster)?,
        engines: BTreeMap::new(),
        failed: BTreeMap::new(),
    };
    let mut progress = Progress::start(&cases);
    let (mut seen, mut measured) = (Vec::new(), Vec::new());
    for case in cases {
        let name = case.program.name();
        let moves = measure::case(cluster, &case);
        progress.done(&case);
        match moves {
            Ok(moves) => seen.push((case, moves)),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                run.failed.insert(name, format!("{error:#}").lines().next().unwrap_or_default().to_owned());
            }
        }
        // Kept after each case: what comes after it may fail.
        measured = results::figures(&seen)?;
        run.engines = results::engines(&seen);
        measured.extend(of_transfer()?);
        keep(FREEZE, &measured)?;
        keep(RUN, &run)?;
    }
    println!("{}\n{}", table(&measured), kept(FREEZE).display());
    Ok(run)
}

/// What was measured of the transfer alone, where it was.
fn of_transfer() -> Result<Option<Figure>> {
    let path = kept(TRANSFER);
    if path.exists() { Ok(results::transfer(figures::load(&path)?)) } else { Ok(None) }
}

fn docs(date: Option<String>) -> Result<()> {
    let (figures, run): (Vec<Figure>, Run) = (figures::load(&kept(FREEZE))?, figures::load(&kept(RUN))?);
    let date = date.map_or_else(machine::day, Ok)?;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let picture = plot::svg(&plot::series(&figures))?;
    for (name, text) in [(PICTURE, picture), ("benchmarks.md", report::document(&figures, &run, &date, PICTURE))] {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
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
        let Command::Measure { wanted, write_docs: false } = cli.command else { panic!("not to measure") };
        assert_eq!(wanted.select().expect("cases").len(), 2);
        assert!(Cli::try_parse_from(["bench", "measure", "--runs", "0"]).is_err());
    }
}
