//! The freeze that an application sees, through Tideover and through bare runc, side by side in one run.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use comfy_table::{Table, presets};
use e2e::scenario::bare_runc::BareRunc;
use e2e::scenario::figures::{Figure, keep};
use e2e::scenario::manifests::Ticker;
use e2e::scenario::{Cluster, Collector, Sandbox, migration, until};

const LIMIT: Duration = Duration::from_secs(180);

/// Measure the freeze, seen by the application's own 1 ms ticker.
#[derive(Parser)]
struct Args {
    /// Moves of each kind and size.
    #[arg(long, default_value_t = 7)]
    runs: usize,
    /// Resident sizes, MiB.
    #[arg(long, value_delimiter = ',', default_value = "64,256")]
    mib: Vec<usize>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let cluster = Cluster::ready()?;
    let mut figures = Vec::new();
    for &mib in &args.mib {
        let (tideover, bare) = side_by_side(cluster, mib, args.runs)?;
        let ratios: Vec<f64> = tideover.iter().zip(&bare).map(|(ours, theirs)| ours / theirs).collect();
        let case = format!("{mib} MiB");
        figures.push(Figure::of(&case, "freeze", "ms", &tideover)?);
        figures.push(Figure::of(&case, "freeze_bare", "ms", &bare)?);
        figures.push(Figure::of(&case, "freeze_ratio", "1", &ratios)?);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["case", "metric", "unit", "n", "min", "median", "max"]);
    for figure in &figures {
        let numbers = [figure.min, figure.median, figure.max].map(|number| format!("{number:.2}"));
        let n = figure.n.to_string();
        table.add_row([&figure.case, &figure.metric, &figure.unit, &n, &numbers[0], &numbers[1], &numbers[2]]);
    }
    println!("{table}\n{}", keep("freeze", &figures)?.display());
    Ok(())
}

/// `runs` moves through Tideover and as many under bare runc, in turn; milliseconds each.
fn side_by_side(cluster: &Cluster, mib: usize, runs: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let sandbox = Sandbox::new(cluster.kube(), "bench")?;
    let (ours, theirs) = (Collector::listen(cluster.host_address())?, Collector::listen(cluster.host_address())?);
    sandbox.apply(&Ticker { mib, collector: ours.address() }.deployment("ticker"))?;
    let node = cluster.node(&cluster.workers()[0])?;
    let bare = BareRunc::start(node, Ticker { mib, collector: theirs.address() })?;
    let (mut tideover, mut runc) = (Vec::new(), Vec::new());
    for number in 0..runs {
        let pod = sandbox.ready_pod("ticker")?;
        tideover.push(gap(&ours, || {
            sandbox.create(&migration::manifest(&format!("move-{number}"), &pod.name))?;
            migration::succeeded(&sandbox, &pod.name, LIMIT).map(drop)
        })?);
        runc.push(gap(&theirs, || bare.checkpoint_and_restore())?);
        eprintln!("{mib} MiB, {}/{runs}: {:.1} ms, bare runc {:.1} ms", number + 1, tideover[number], runc[number]);
    }
    for account in [ours.account(), theirs.account()] {
        ensure!(account.starts.len() == 1 && account.repeated == 0, "a program did not go on: {account:?}");
    }
    sandbox.passed()?;
    Ok((tideover, runc))
}

/// The longest gap that the ticker saw while `act` ran, milliseconds.
fn gap(collector: &Collector, act: impl FnOnce() -> Result<()>) -> Result<f64> {
    settle(collector)?;
    collector.take_gap();
    act()?;
    settle(collector)?;
    Ok(collector.take_gap().as_secs_f64() * 1000.0)
}

/// Waits for 300 more ticks.
fn settle(collector: &Collector) -> Result<()> {
    let newest = collector.account().newest;
    until("the ticker", LIMIT, || Ok(Some(()).filter(|()| collector.account().newest > newest + 300)))
}
