//! Tests of the project's crates that need a real kernel, run on this one.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::Command;

pub fn the_tests_of_init_pass() -> Result<()> {
    run("supervision", &[])
}

pub fn the_tests_of_freezer_and_cpu_limits_pass() -> Result<()> {
    run("criu_shim", &["freezer::", "throttle::", "agent::source::cpu::", "agent::source::cut::"])
}

/// All but those in `same`, whose processes write for minutes where the processor is emulated.
pub fn the_tests_of_the_memory_engine_pass() -> Result<()> {
    run(
        "criu_shim",
        &[
            "memory::inject::",
            "memory::shared::",
            "memory::tests::attaching::",
            "memory::tests::comparing::",
            "memory::tests::rounds::",
        ],
    )
}

/// Runs those tests of a program of Rust's test harness whose names contain one of `names`: all where there is none. What it says
/// is on the console as it says it, so that one that never ends is the last there.
fn run(program: &str, names: &[&str]) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("pipe")?;
    let mut command = Command::new(format!("/tests/{program}"));
    command.arg("--test-threads=1").args(names).stdout(writer.try_clone().context("pipe")?).stderr(writer);
    let mut child = command.spawn().with_context(|| program.to_owned())?;
    // It holds our ends of the pipe; without this the reader would never see its end.
    drop(command);
    let mut said = String::new();
    for line in BufReader::new(reader).lines() {
        let line = line.context("read what the tests say")?;
        eprintln!("{line}");
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} ended with {status}:\n{said}");
    // A filter that meets nothing passes too.
    ensure!(said.contains(" ... ok\n"), "{program} has run nothing:\n{said}");
    Ok(())
}
