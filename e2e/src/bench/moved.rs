//! One move through Tideover, and everything that is seen of it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::resident;
use super::resources::{Meter, Used};
use super::spent::Spent;
use super::status::Told;
use super::throughput::{Around, WINDOW, around};
use crate::scenario::collector::{Gap, longest};
use crate::scenario::flip::IMAGES;
use crate::scenario::wait::until_true;
use crate::scenario::watch::Watch;
use crate::scenario::{Cluster, Collector, Sandbox, migration, until};

/// How long a move, or what comes before or after it, may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Ticks that a program is given to find its pace after it was started or restored.
const SETTLE: u64 = 300;

/// What was seen of one move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// The longest gap that the collector saw from the go for the freeze on, milliseconds.
    pub gap: f64,
    /// The longest that it saw before, while memory was copied, milliseconds; 0 where there was none.
    pub before: f64,
    /// Memory that was the pod's own before, bytes.
    pub resident: u64,
    /// What the Migration says.
    pub told: Told,
    /// The source's agent.
    pub source: Used,
    /// The target's agent.
    pub target: Used,
    /// What the program did, where it counts that.
    pub around: Option<Around>,
}

/// Moves the pod of `app`, which has [settled](settle), by a Migration called `name`, and waits until nothing of the move is left and
/// it has settled again.
///
/// # Errors
/// When it does not succeed.
pub fn watch(
    cluster: &Cluster,
    sandbox: &Sandbox,
    collector: &Collector,
    (app, name): (&str, &str),
    works: bool,
    spent: &mut Spent,
) -> Result<Moved> {
    let pod = sandbox.ready_pod(app)?;
    settle(collector)?;
    spent.on("ready");
    collector.forget_samples();
    let resident = resident::unique_bytes(&pod.uid)?;
    if works {
        let begin = until("the first sample", LIMIT, || Ok(collector.samples().first().map(|sample| sample.at)))?;
        sampled(collector, begin)?;
    }
    let watch = Watch::start(sandbox)?;
    let meter = Meter::start(cluster)?;
    spent.on("looks before");
    collector.take_gaps();
    sandbox.create(&migration::manifest(name, &pod.name))?;
    succeeded(&watch, name)?;
    drop(watch);
    spent.on("moves");
    settle(collector)?;
    let gaps = collector.take_gaps();
    spent.on("looks after");
    let told = filled(cluster, sandbox, name)?;
    let (before, gap) = around_the_go(&gaps, told.span.go);
    ensure!(gap.length > Duration::ZERO, "{name} went by without a gap: its ticks were not heard");
    let used = meter.finish()?;
    spent.on("filling");
    if works {
        sampled(collector, gap.end)?;
    }
    let of = |node: &str| used.get(node).copied().with_context(|| format!("nobody looked at the agent of {node}"));
    let around = || around(&collector.samples(), &told.span, gap.end).context("the samples do not reach far enough");
    Ok(Moved {
        gap: millis(gap),
        before: millis(before),
        resident,
        source: of(&pod.node)?,
        target: of(&told.target)?,
        around: works.then(around).transpose()?,
        told,
    })
}

/// The longest of `gaps` that was over before `go`, and the longest of the others.
fn around_the_go(gaps: &[Gap], go: i64) -> (Gap, Gap) {
    let (before, since): (Vec<_>, Vec<_>) = gaps.iter().partition(|gap| gap.end < go);
    (longest(before), longest(since))
}

fn millis(gap: Gap) -> f64 {
    gap.length.as_secs_f64() * 1e3
}

/// Waits until the program has ticked for a while.
///
/// # Errors
/// When it does not tick.
pub fn settle(collector: &Collector) -> Result<()> {
    let newest = collector.account().newest;
    until_true("the ticker", LIMIT, || Ok(collector.account().newest > newest + SETTLE))
}

/// Waits until the Migration has ended, and it must have succeeded. Asking for it again and again would cost more of two
/// cores than the move does, so it is watched.
fn succeeded(watch: &Watch, name: &str) -> Result<()> {
    let object = until(format!("{name} to end"), LIMIT, || {
        while let Some(object) = watch.next(Duration::ZERO)? {
            if object["metadata"]["name"] == name && migration::has_ended(&object) {
                return Ok(Some(object));
            }
        }
        Ok(None)
    })?;
    let phase = &object["status"]["phase"];
    ensure!(phase == "Succeeded", "{name} {phase}: {}", migration::message(&object));
    Ok(())
}

/// Waits until it is known what the program did in the window that begins with `begin`.
fn sampled(collector: &Collector, begin: i64) -> Result<()> {
    until_true("the program's work", LIMIT, || {
        Ok(collector.samples().last().is_some_and(|newest| newest.at >= begin + WINDOW))
    })
}

/// Waits until all memory is in the processes, so that the target has removed what it kept of the move; then everything has
/// been reported.
fn filled(cluster: &Cluster, sandbox: &Sandbox, name: &str) -> Result<Told> {
    let object = || sandbox.get(&["migration", name])?.context("the Migration is gone");
    let found = object()?;
    let uid = found["metadata"]["uid"].as_str().context("a Migration without a UID")?;
    let target = found["status"]["targetNode"].as_str().context("a Migration without a target")?;
    let kept = cluster.node(target)?.path(Path::new(IMAGES).join(uid))?;
    until_true("the memory to be filled in", LIMIT, || Ok(!kept.exists()))?;
    Told::by(&object()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_over_before_the_go_is_not_the_freeze() {
        let gap = |millis: u64, end: i64| Gap { length: Duration::from_millis(millis), end };
        let gaps = [gap(90, 5), gap(3, 9), gap(20, 11), gap(25, 30)];
        assert_eq!(around_the_go(&gaps, 10), (gap(90, 5), gap(25, 30)));
        assert_eq!(around_the_go(&gaps[3..], 10), (Gap::default(), gap(25, 30)));
    }
}
