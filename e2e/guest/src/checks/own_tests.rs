//! Tests of the project's crates that need a real kernel, run on this one.

use anyhow::{Context, Result, ensure};
use std::process::Command;

pub fn the_tests_of_init_pass() -> Result<()> {
    run("supervision", &[])
}

pub fn the_tests_of_freezer_and_cpu_limits_pass() -> Result<()> {
    run("criu_shim", &["freezer::", "throttle::", "agent::source::cpu::", "agent::source::cut::"])
}

pub fn the_tests_of_the_memory_engine_pass() -> Result<()> {
    run("criu_shim", &["memory::"])
}

/// Runs those tests of a program of Rust's test harness whose names contain one of `names`: all where there is none.
fn run(program: &str, names: &[&str]) -> Result<()> {
    let mut command = Command::new(format!("/tests/{program}"));
    let output = command.arg("--test-threads=1").args(names).output().with_context(|| program.to_owned())?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    eprintln!("{said}");
    ensure!(output.status.success(), "{program} ended with {}:\n{said}", output.status);
    // A filter that meets nothing passes too.
    ensure!(said.lines().any(|line| line.ends_with("... ok")), "{program} has run nothing:\n{said}");
    Ok(())
}
