//! Tests of the project's crates that need a real kernel, run on this one.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader};
use std::process::Command;

/// Where they are on a node.
const CRIU: &str = "/opt/tideover/criu/criu";
const DUMP_PRELOAD: &str = "/opt/tideover/lib/libdump_preload.so";

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
            "memory::marks::",
            "memory::shared::",
            "memory::tests::attaching::",
            "memory::tests::comparing::",
            "memory::tests::kinds::",
            "memory::tests::rounds::",
            "memory::tests::soft_dirty::",
        ],
    )
}

/// By an engine each.
pub fn a_whole_move_by_write_protection() -> Result<()> {
    whole_move("a_container_goes_on_as_another_by_write_protection")
}

pub fn a_whole_move_by_soft_dirty_marks() -> Result<()> {
    whole_move("a_container_goes_on_as_another_by_soft_dirty_marks")
}

pub fn a_whole_move_by_comparing() -> Result<()> {
    whole_move("a_container_goes_on_as_another_by_comparing")
}

fn whole_move(name: &str) -> Result<()> {
    run("criu_shim", &["--ignored", "--nocapture", name])
}

pub fn a_dump_leaves_out_memory_that_was_copied() -> Result<()> {
    run("memoryless", &["--ignored", "--exact", "a_dump_leaves_out_what_was_copied_and_nothing_else"])
}

pub fn a_dump_leaves_out_shared_memory() -> Result<()> {
    let name = "a_dump_leaves_shared_memory_out_and_every_page_of_it_has_crossed";
    run("shared_memory", &["--ignored", "--exact", name])
}

pub fn what_criu_holds_stays_frozen_where_it_dies() -> Result<()> {
    let name = "what_is_told_to_freeze_stays_as_it_is_where_criu_dies_and_what_was_not_is_known";
    run("hold", &["--ignored", "--exact", name])
}

/// Runs those tests of a program of Rust's test harness that `arguments`, as that takes them, choose. What it says
/// is on the console as it says it, so that one that never ends is the last there.
fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let (reader, writer) = std::io::pipe().context("pipe")?;
    let mut command = Command::new(format!("/tests/{program}"));
    command.arg("--test-threads=1").args(arguments).stdout(writer.try_clone().context("pipe")?).stderr(writer);
    command.env("TIDEOVER_CRIU", CRIU).env("TIDEOVER_DUMP_PRELOAD", DUMP_PRELOAD);
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
    // A filter that meets nothing passes too. What a test itself says may stand between its name and its result.
    ensure!(!said.contains("test result: ok. 0 passed"), "{program} has run nothing:\n{said}");
    Ok(())
}
