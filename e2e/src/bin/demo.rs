//! The main job, once, for people to watch: a store under load is moved by `kubectl drain`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use e2e::scenario::drain::Drain;
use e2e::scenario::store::{Identity, Store};
use e2e::scenario::{Cluster, Sandbox, manifests, migration};

const LIMIT: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let cluster = Cluster::ready()?;
    step("a namespace, a ProtectedWorkload, redis-server with 200,000 keys, and a client that keeps writing");
    let sandbox = Sandbox::new(cluster.kube(), "demo")?;
    sandbox.apply(&manifests::policy("store", "store", ""))?;
    let store = Store::start(&sandbox)?;
    let before = store.identity(&store.pod.name)?;
    let outages = store.outages()?.len();
    println!("{}", sandbox.run(&["get", "pw,pods", "--output=wide"])?);

    step(&format!("kubectl {}", Drain::words(&store.pod.node, &[]).join(" ")));
    let start = Instant::now();
    let drained = Drain::of_node(sandbox.kube(), &store.pod.node, &[])?.finish(LIMIT)?;
    print!("{}", drained.said);
    ensure!(drained.code == Some(0), "kubectl drain failed");
    println!("drain ended after {:.1} s\n", start.elapsed().as_secs_f64());

    step("the same process, on another node");
    let moved = sandbox.ready_pod("store")?;
    let after = store.identity(&moved.name)?;
    store.written_past(store.acknowledged()?)?;
    println!("{}", comparison(&before, &store.pod.node, &after, &moved.node));
    ensure!(before.run_id == after.run_id, "this is another process");
    println!("{}", store.verify()?);
    println!("outages the client saw, ms: {:?}\n", store.outages()?.split_off(outages));

    step("where the time went, milliseconds");
    let mut table = table(&["phase", "ms"]);
    for (phase, millis) in migration::phases(&migration::succeeded(&sandbox, &store.pod.name, LIMIT)?)? {
        table.add_row([phase, format!("{millis:.1}")]);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}\n\n`make lab-down` removes the cluster.");
    sandbox.passed()
}

fn comparison(before: &Identity, from: &str, after: &Identity, to: &str) -> Table {
    let mut table = table(&["", "before", "after"]);
    table.add_row(["node", from, to]);
    table.add_row(["run_id", &before.run_id, &after.run_id]);
    for (name, before, after) in [
        ("uptime, s", before.uptime, after.uptime),
        ("commands processed", before.commands, after.commands),
        ("keys", before.keys, after.keys),
    ] {
        table.add_row([name.to_owned(), before.to_string(), after.to_string()]);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    table
}

fn step(what: &str) {
    println!("==> {what}");
}
