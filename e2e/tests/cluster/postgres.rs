//! A real database with many sessions: its processes share memory, keep a System V segment, and talk over sockets of their own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::scenario::drain::Drain;
use e2e::scenario::{Cluster, Collector, Sandbox, manifests, migration, until};

const LIMIT: Duration = Duration::from_secs(180);
/// Sessions that hold a temporary table, an advisory lock and an open transaction each.
const SESSIONS: u64 = 20;
/// Rows that are written before the move, and after it: long enough for a look at each session.
const ROWS: u64 = 600;

/// What the client in the container says of a look at all rows: how many the server has acknowledged, and since when it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    rows: u64,
    server: String,
}

impl Look {
    /// From `acknowledged 840, all there, server of 2026-01-01 00:00:00.123+00`.
    fn parse(line: &str) -> Option<Self> {
        let (rows, server) = line.strip_prefix("acknowledged ")?.split_once(", all there, server of ")?;
        Some(Self { rows: rows.parse().ok()?, server: server.to_owned() })
    }
}

/// The newest look that the log of `pod` has. A container that is about to run has none yet.
fn newest(sandbox: &Sandbox, pod: &str) -> Option<Look> {
    sandbox.log(pod).unwrap_or_default().lines().rev().find_map(Look::parse)
}

#[test]
fn a_drain_moves_a_database_with_its_sessions_and_loses_no_row() -> Result<()> {
    let cluster = Cluster::ready()?;
    let sandbox = Sandbox::new(cluster.kube(), "drain-database")?;
    let collector = Collector::listen(cluster.host_address())?;
    sandbox.apply(&manifests::policy("database", "database", ""))?;
    let args = ["--write".to_owned(), format!("--sessions={SESSIONS}"), format!("--report={}", collector.address())];
    sandbox.apply(&manifests::database("database", &args))?;
    let pod = sandbox.ready_pod("database")?;
    let before = until("rows", LIMIT, || Ok(newest(&sandbox, &pod.name).filter(|look| look.rows > ROWS)))?;

    let drained = Drain::of_node(sandbox.kube(), &pod.node, &[])?.finish(LIMIT)?;
    ensure!(drained.code == Some(0), "kubectl drain ended with {:?}: {}", drained.code, drained.said);

    let moved = sandbox.ready_pod("database")?;
    ensure!(moved.node != pod.node, "the pod is still on {}", moved.node);
    // The client looks at every session between two looks at the rows, and ends the container where something is not as it was.
    let first = until("a look at the rows after the move", LIMIT, || Ok(newest(&sandbox, &moved.name)))?;
    let after =
        until(
            "another look",
            LIMIT,
            || Ok(newest(&sandbox, &moved.name).filter(|look| look.rows > first.rows + ROWS)),
        )?;
    ensure!(sandbox.ready_pod("database")?.restarts == 0, "the container was restarted: {}", sandbox.log(&moved.name)?);
    ensure!(after.server == before.server, "another server runs: of {}, not of {}", after.server, before.server);
    ensure!(first.rows > before.rows, "rows went back from {} to {}", before.rows, first.rows);
    let account = collector.account();
    ensure!(account.starts.len() == 1 && account.repeated == 0, "{account:?}");

    let ended = migration::succeeded(&sandbox, &pod.name, LIMIT)?;
    let source = &ended["status"]["source"];
    ensure!(source["engine"] == "WriteProtect", "memory was copied in the freeze: {}", source["notes"]);
    let left_out = source["timings"]["sharedBytes"].as_u64().context("no shared memory was left out of the dump")?;
    ensure!(left_out > 1 << 20, "the server's shared memory was dumped: {left_out} bytes were left out");
    println!(
        "{} rows, {} ms without an answer at most: {}",
        after.rows,
        collector.take_gap().length.as_millis(),
        source["timings"]
    );
    sandbox.passed()
}
