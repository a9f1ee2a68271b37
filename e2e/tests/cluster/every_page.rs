//! Memory of every kind, every page of which is what it must be after the move.

use anyhow::{Context, Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::{Cluster, Collector, LIMIT, Sandbox, manifests, migration, until};

/// Looks at every page after the move. The first may have begun before it.
const LOOKS: usize = 3;
/// Of the shared memory, MiB: what is anonymous, in a memfd, in one that is not mapped, and in a System V segment.
const SHARED: u64 = 8 + 4 + 2 + 2;

/// What the program says of one look: its step, the pages, and how often its children and threads have looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    step: u64,
    pages: u64,
    others: u64,
}

impl Look {
    /// From `verified 3 at step 300: 12688 pages in 15 regions, 29 passes of others`.
    fn parse(line: &str) -> Option<Self> {
        let (step, rest) = line.strip_prefix("verified ")?.split_once(" at step ")?.1.split_once(": ")?;
        let (pages, rest) = rest.split_once(" pages in ")?;
        let others = rest.split_once(", ")?.1.strip_suffix(" passes of others")?;
        Some(Self { step: step.parse().ok()?, pages: pages.parse().ok()?, others: others.parse().ok()? })
    }
}

fn looks(sandbox: &Sandbox, pod: &str) -> Vec<Look> {
    // A container that is about to run has no log yet.
    sandbox.log(pod).unwrap_or_default().lines().filter_map(Look::parse).collect()
}

#[test]
fn every_page_of_every_kind_of_memory_is_right_after_a_move() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "every-page")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("zoo", "zoo", ""))?;
    sandbox.apply(&manifests::zoo("zoo", collector.address()))?;
    let before = sandbox.ready_pod("zoo")?;
    let first = until("a look at every page", LIMIT, || Ok(looks(&sandbox, &before.name).get(1).copied()))?;

    let drained = Drain::of_node(sandbox.kube(), &before.node, &[])?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

    let after = sandbox.ready_pod("zoo")?;
    ensure!(after.node != before.node, "the pod is still on {}", after.node);
    let seen = until("looks at every page after the move", LIMIT, || {
        ensure!(collector.account().starts.len() == 1, "a page was not what it must be: {}", sandbox.log(&after.name)?);
        Ok(Some(looks(&sandbox, &after.name)).filter(|seen| seen.len() >= LOOKS))
    })?;
    let (begin, end) = (seen.first().context("a look")?, seen.last().context("a look")?);
    ensure!(seen.iter().all(|look| look.pages == first.pages), "{first:?} before, {seen:?} after");
    ensure!(begin.step > first.step && begin.others >= first.others, "it went back: {first:?} before, {seen:?} after");
    ensure!(end.others > begin.others + 4, "children or threads have stopped: {seen:?}");
    let account = collector.account();
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");

    let moved = migration::succeeded(&sandbox, &before.name, LIMIT)?;
    let source = &moved["status"]["source"];
    ensure!(source["engine"] == "WriteProtect", "memory was copied in the freeze: {}", source["notes"]);
    let left_out = source["timings"]["sharedBytes"].as_u64();
    ensure!(left_out >= Some(SHARED << 20), "{left_out:?} bytes of shared memory were left out of the dump");
    println!("{} pages: {}", first.pages, source["timings"]);
    sandbox.passed()
}
