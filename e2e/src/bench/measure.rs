//! Measures one case. Where bare runc moves the program too, there are two of it, and they take turns: whatever else the machine
//! does, it does it to both. Each stands still while the other is moved, because two cores are what both have.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::bare::{self, Bare};
use super::case::{Case, Probe, Program};
use super::moved::{self, Moved};
use super::progress;
use super::resident;
use super::spent::Spent;
use super::store::Filled;
use crate::scenario::victim::Stopped;
use crate::scenario::{Cluster, Collector, Sandbox, manifests};

const TICKER: &str = "ticker";
/// Processors that the pod of a ticker asks for: its cgroup then has as many shares as the one that bare runc makes for its program,
/// 1024, if below others of kubelet's.
const SHARE: &str = "1";

/// All that was seen of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Through Tideover.
    pub moves: Vec<Moved>,
    /// Gaps under bare runc, milliseconds.
    pub bare: Vec<f64>,
}

/// A case that is being measured.
struct Turns<'a> {
    cluster: &'a Cluster,
    sandbox: &'a Sandbox,
    collector: &'a Collector,
    case: &'a Case,
    spent: Spent,
}

/// Moves the program of `case` as often as it says. What was made for it in `sandbox` is gone afterwards.
///
/// # Errors
/// When a move fails, or the program does not go on where it was. Then something may be left in `sandbox`.
pub fn case(cluster: &Cluster, sandbox: &Sandbox, case: &Case) -> Result<Seen> {
    let (name, about) = (case.program.name(), progress::minutes(case.estimate()));
    eprintln!("{name}: {} moves, {} by bare runc, about {about}", case.runs, case.bare_runs);
    let collector = Collector::listen(cluster.host_address())?;
    let mut turns = Turns { cluster, sandbox, collector: &collector, case, spent: Spent::start() };
    let seen = match case.program {
        Program::Store { mib } => turns.store(mib),
        Program::Database { idle } => turns.database(idle),
        Program::Probe(probe) => turns.ticker(&probe),
    }?;
    sandbox.clear()?;
    turns.spent.on("end");
    eprintln!("{name}: {}", turns.spent.line());
    Ok(seen)
}

impl Turns<'_> {
    fn ticker(&mut self, probe: &Probe) -> Result<Seen> {
        let args = probe.args(self.collector.address());
        let manifest = manifests::probe_deployment(TICKER, probe.mib, &args);
        self.sandbox.apply(&manifests::with_cpu_request(&manifest, SHARE))?;
        let bare = if self.case.bare_runs > 0 { Some(Bare::start(self.cluster, probe)?) } else { None };
        let seen = self.take(TICKER, bare.as_ref())?;
        bare::went_on(self.collector)?;
        Ok(seen)
    }

    fn store(&mut self, mib: usize) -> Result<Seen> {
        let filled = Filled::start(self.sandbox, mib, self.collector)?;
        let seen = self.take("store", None)?;
        filled.verify()?;
        Ok(seen)
    }

    fn database(&mut self, idle: usize) -> Result<Seen> {
        let args = [format!("--sessions={idle}"), format!("--report={}", self.collector.address())];
        self.sandbox.apply(&manifests::database("database", &args))?;
        let seen = self.take("database", None)?;
        bare::went_on(self.collector)?;
        Ok(seen)
    }

    /// All moves of the pod of `app`, which is started already, and of the same program under bare runc.
    fn take(&mut self, app: &str, bare: Option<&Bare>) -> Result<Seen> {
        self.sandbox.ready_pod(app)?;
        moved::settle(self.collector)?;
        self.spent.on("start");
        let (name, runs) = (self.case.program.name(), self.case.runs);
        let mut seen = Seen { moves: Vec::new(), bare: Vec::new() };
        for number in 1..=runs {
            let migration = format!("move-{number}");
            let works = self.case.program.works();
            let at = (app, migration.as_str());
            self.rest();
            let moved = moved::watch(self.cluster, self.sandbox, self.collector, at, works, &mut self.spent)?;
            eprint!("{name}, {number}/{runs}: {:.1} ms, {}", moved.gap, moved.told.engine);
            seen.moves.push(moved);
            if let Some(bare) = bare.filter(|_| self.case.bare_follows(number)) {
                let still = resident::processes(&self.sandbox.ready_pod(app)?.uid)?.into_iter().map(Stopped::process);
                let still: Vec<_> = still.collect::<Result<_>>()?;
                self.rest();
                let gap = bare.moved()?;
                drop(still);
                self.spent.on("bare runc");
                eprint!(", bare runc {gap:.1} ms");
                seen.bare.push(gap);
            }
            eprintln!();
        }
        Ok(seen)
    }

    /// Has the disks take what was written before: memory that was moved, and images of bare runc. What comes next would wait for it.
    fn rest(&mut self) {
        rustix::fs::sync();
        self.spent.on("disks");
    }
}
