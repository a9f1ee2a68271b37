//! Measures one case: a namespace of its own for Tideover, then a container of bare runc, so that each has the machine to
//! itself.

use anyhow::Result;

use super::case::{Case, Probe, Program};
use super::moved::{self, Moved};
use super::store::Filled;
use super::{bare, progress};
use crate::scenario::{Cluster, Collector, Sandbox, manifests};

const TICKER: &str = "ticker";

/// All that was seen of a case.
#[derive(Debug)]
pub struct Seen {
    /// Through Tideover.
    pub moves: Vec<Moved>,
    /// Gaps under bare runc, milliseconds.
    pub bare: Vec<f64>,
}

/// Moves the program of `case` as often as it says.
///
/// # Errors
/// When a move fails, or the program does not go on where it was.
pub fn case(cluster: &Cluster, case: &Case) -> Result<Seen> {
    let name = case.program.name();
    eprintln!(
        "{name}: {} moves, {} by bare runc, about {}",
        case.runs,
        case.bare_runs,
        progress::minutes(case.estimate())
    );
    let (moves, bare) = match case.program {
        Program::Store { mib } => (store(cluster, case, mib)?, Vec::new()),
        Program::Database { idle } => (database(cluster, case, idle)?, Vec::new()),
        Program::Probe(probe) => {
            let moves = ticker(cluster, case, &probe)?;
            let seen = |gap| eprintln!("{name}, bare runc: {gap:.1} ms");
            (moves, bare::moves(cluster, &probe, case.bare_runs, seen)?)
        }
    };
    Ok(Seen { moves, bare })
}

fn ticker(cluster: &Cluster, case: &Case, probe: &Probe) -> Result<Vec<Moved>> {
    let sandbox = Sandbox::new(cluster.kube(), "bench")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::probe_deployment(TICKER, probe.mib, &probe.args(collector.address())))?;
    let moves = moves(cluster, &sandbox, &collector, case, TICKER)?;
    bare::went_on(&collector)?;
    sandbox.passed()?;
    Ok(moves)
}

fn store(cluster: &Cluster, case: &Case, mib: usize) -> Result<Vec<Moved>> {
    let sandbox = Sandbox::new(cluster.kube(), "bench")?;
    let collector = Collector::listen(cluster.host_address())?;
    let filled = Filled::start(&sandbox, mib, &collector)?;
    let moves = moves(cluster, &sandbox, &collector, case, "store")?;
    filled.verify()?;
    sandbox.passed()?;
    Ok(moves)
}

fn database(cluster: &Cluster, case: &Case, idle: usize) -> Result<Vec<Moved>> {
    let sandbox = Sandbox::new(cluster.kube(), "bench")?;
    let collector = Collector::listen(cluster.host_address())?;
    let args = [format!("--sessions={idle}"), format!("--report={}", collector.address())];
    sandbox.apply(&manifests::database("database", &args))?;
    let moves = moves(cluster, &sandbox, &collector, case, "database")?;
    bare::went_on(&collector)?;
    sandbox.passed()?;
    Ok(moves)
}

fn moves(cluster: &Cluster, sandbox: &Sandbox, collector: &Collector, case: &Case, app: &str) -> Result<Vec<Moved>> {
    let mut moves = Vec::new();
    for number in 1..=case.runs {
        let name = format!("move-{number}");
        let moved = moved::watch(cluster, sandbox, collector, (app, &name), case.program.works())?;
        eprintln!("{}, {number}/{}: {:.1} ms, {}", case.program.name(), case.runs, moved.gap, moved.told.engine);
        moves.push(moved);
    }
    Ok(moves)
}
