//! Restarts in place: from a crash to the next process, by Tideover, by other supervisors and by kubelet, in one run.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use e2e::bench::machine;
use e2e::bench::restart::local::{Programs, Supervisor};
use e2e::bench::restart::packages::Packages;
use e2e::bench::restart::results::{self, IN_A_POD, KUBELET, Samples, WITH_INIT, WITHOUT_INIT};
use e2e::bench::restart::{pods, start_up};
use e2e::bench::table::table;
use e2e::cache::Cache;
use e2e::image::product;
use e2e::progress::Progress;
use e2e::scenario::Cluster;
use e2e::scenario::figures::keep;
use serde::Serialize;

/// Measure restarts and keep the figures in target/bench/restart.json.
#[derive(Parser)]
struct Cli {
    /// Turns of the supervisors of this machine; each restarts three times in its turn.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..))]
    turns: u16,
    /// Pods of each kind.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pods: u16,
    /// Pairs of starts with init and without.
    #[arg(long, default_value_t = 21, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Only what needs no cluster.
    #[arg(long)]
    local: bool,
    /// Directory of the static programs of an earlier build; the work tree's where it is not given. The cluster always has the
    /// work tree's.
    #[arg(long)]
    programs: Option<PathBuf>,
}

/// Restarts in one turn of a supervisor.
const RESTARTS: usize = 3;
/// Names of the files below target/bench.
const FIGURES: &str = "restart";
const RUN: &str = "restart-run";

/// A run: on what, and all that was measured.
#[derive(Serialize)]
struct Run {
    /// As it was typed.
    command: String,
    /// The work tree's commit.
    commit: String,
    /// Name and value.
    machine: Vec<(String, String)>,
    /// Every measurement.
    samples: Samples,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-restart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    // First: it builds what is measured, and the machine is to be quiet afterwards.
    let cluster = if cli.local { None } else { Some(Cluster::ready()?) };
    let own = match &cli.programs {
        Some(directory) => std::path::absolute(directory).context("find the programs")?,
        None => product::programs(&Progress::new())?,
    };
    let programs = Programs { own, packages: Packages::ensure(&Cache::open()?)? };
    let mut run = Run {
        command: machine::command_line("bench-restart", std::env::args().skip(1)),
        commit: machine::commit()?,
        machine: cluster.map_or_else(machine::host, machine::facts)?,
        samples: Samples::default(),
    };
    run.machine.extend(programs.packages.versions()?);
    local(&programs, cli.turns, &mut run.samples)?;
    if let Some(cluster) = cluster {
        in_cluster(cluster, cli, &mut run.samples)?;
    }
    let figures = results::figures(&run.samples)?;
    keep(RUN, &run)?;
    let path = keep(FIGURES, &figures)?;
    println!("{}\n{}", table(&figures), path.display());
    Ok(())
}

/// The supervisors take turns, so that what else happens on the machine happens to all of them.
fn local(programs: &Programs, turns: u16, samples: &mut Samples) -> Result<()> {
    for turn in 1..=turns {
        for supervisor in Supervisor::ALL {
            let took = supervisor.restarts(programs, RESTARTS)?;
            samples.restart.entry(supervisor.name().to_owned()).or_default().extend(took);
        }
        eprintln!("supervisors, {turn}/{turns}");
    }
    Ok(())
}

fn in_cluster(cluster: &Cluster, cli: &Cli, samples: &mut Samples) -> Result<()> {
    let pods::Seen { kubelet, tideover, rules } = pods::restarts(cluster, cli.pods.into())?;
    samples.restart.insert(KUBELET.to_owned(), kubelet);
    samples.restart.insert(IN_A_POD.to_owned(), tideover);
    let worker = cluster.workers().into_iter().next().context("there are no workers")?;
    let start_up::Seen { supervised, plain } = start_up::pairs(cluster.node(&worker)?, &rules, cli.pairs.into())?;
    samples.start_up.insert(WITH_INIT.to_owned(), supervised);
    samples.start_up.insert(WITHOUT_INIT.to_owned(), plain);
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_words_are_consistent() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["bench-restart", "--turns", "0"]).is_err());
    }
}
