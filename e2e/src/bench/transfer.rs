//! What a transfer moves beside what the same TLS connection moves plainly, between two nodes: a program that is both agents, each in
//! the network namespace of a worker.
//!
//! Owns how it is built and started. What it measures is in `e2e/transfer`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::goals::TRANSFER;
use crate::progress::Progress;
use crate::scenario::Cluster;
use crate::scenario::figures::{self, Figure};
use crate::{command, compile};

/// The metric that there is a goal for.
pub const RATIO: &str = "transfer_ratio";
/// Where it lands: in memory, as no disk is asked what it can do.
const LANDING: &str = "/dev/shm";

/// Builds the program. Before anything is measured: compilers take all the processors there are.
///
/// # Errors
/// With the compiler's message.
pub fn build() -> Result<PathBuf> {
    let directory = figures::directory();
    std::fs::create_dir_all(&directory).context("make target/bench")?;
    let mut step = Progress::new().step("transfer between two agents");
    let programs = compile::static_programs(&mut step, &directory.join("transfer.log"), &["tideover-transfer"])?;
    step.done();
    Ok(programs.join("transfer"))
}

/// Runs it `runs` times between the first two workers.
///
/// # Errors
/// When it fails, or there are not two.
pub fn measure(cluster: &Cluster, program: &Path, runs: usize) -> Result<Vec<Figure>> {
    let topology = cluster.lab().topology();
    let workers: Vec<_> = topology.workers().take(2).collect();
    let [source, target] = workers.as_slice() else { anyhow::bail!("a transfer goes between two workers") };
    let [from, to] = [source, target].map(|worker| topology.namespace_of(worker).path());
    let kept = figures::directory().join(format!("{TRANSFER}.json"));
    let mut command = command::program(program, ["--landing", LANDING, "--runs", &runs.to_string(), "--address"]);
    command.arg(target.address.to_string());
    command.arg("--keep").arg(&kept).arg("--from").arg(from).arg("--to").arg(to);
    command::run(&mut command)?;
    let figures: Vec<Figure> = figures::load(&kept)?;
    ensure!(figures.iter().any(|figure| figure.metric == RATIO), "nothing was measured of the transfer");
    Ok(figures)
}

/// The figure that there is a goal for: the worst of the ratios, of all that a transfer carries.
pub fn worst(figures: &[Figure]) -> Option<Figure> {
    let ratios = figures.iter().filter(|figure| figure.metric == RATIO);
    let worst = ratios.min_by(|one, other| one.median.total_cmp(&other.median));
    worst.map(|figure| Figure { case: TRANSFER.to_owned(), ..figure.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_transfer_the_worst_ratio_counts() {
        let figure = |case, metric, value| Figure::of(case, metric, "1", &[value]).expect("values");
        let measured = [
            figure("256-memory", "transfer_rate", 0.1),
            figure("256-image", RATIO, 0.8),
            figure("256-memory", RATIO, 0.7),
        ];
        assert_eq!(worst(&measured), Some(figure(TRANSFER, RATIO, 0.7)));
        assert_eq!(worst(&[]), None);
    }
}
