//! Builds programs of the work tree with cargo, as they run on nodes and in virtual machines.
//!
//! Owns how cargo is called from a process that cargo may have started itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::{self, CommandError};
use crate::progress::Step;

const TARGET: &str =
    if cfg!(target_arch = "aarch64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

/// Where cargo puts things.
pub fn target_directory() -> PathBuf {
    workspace().join("target")
}

fn workspace() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// Builds `packages` optimised and static, because they run on nodes of any distribution and in images without a single
/// library. Returns the directory with their programs.
///
/// # Errors
/// With the compiler's message; all of it is in `log`.
pub fn static_programs(step: &mut Step, log: &Path, packages: &[&str]) -> Result<PathBuf, CommandError> {
    let flags = format!("target.{TARGET}.rustflags=['-C','target-feature=+crt-static']");
    let mut build = cargo("build");
    build.args(["--release", "--target", TARGET, "--config", &flags]).args(of_packages(packages));
    command::run_logged(&mut build, log, |line| step.say(line))?;
    Ok(target_directory().join(TARGET).join("release"))
}

/// Builds `packages`, which are libraries that other programs load and so can't be static. Returns the directory with them.
///
/// # Errors
/// As [`static_programs`].
pub fn libraries(step: &mut Step, log: &Path, packages: &[&str]) -> Result<PathBuf, CommandError> {
    let mut build = cargo("build");
    build.arg("--release").args(of_packages(packages));
    command::run_logged(&mut build, log, |line| step.say(line))?;
    Ok(target_directory().join("release"))
}

/// Builds the tests of `package` that `target` (`--lib`, `--test NAME`) says. Returns what cargo has said, its JSON messages
/// among that, a line each.
///
/// # Errors
/// As [`static_programs`].
pub fn tests(step: &mut Step, log: &Path, package: &str, target: &[&str]) -> Result<Vec<String>, CommandError> {
    let mut said = Vec::new();
    let mut build = cargo("test");
    build.args(["--no-run", "--message-format", "json-render-diagnostics", "-p", package]).args(target);
    command::run_logged(&mut build, log, |line| {
        if !line.starts_with('{') {
            step.say(line);
        }
        said.push(line.to_owned());
    })?;
    Ok(said)
}

fn of_packages<'a>(packages: &[&'a str]) -> impl Iterator<Item = &'a str> {
    packages.iter().flat_map(|package| ["-p", *package])
}

fn cargo(verb: &str) -> Command {
    let mut build = command::program("cargo", [verb, "--locked", "--target-dir"]);
    build.arg(target_directory()).current_dir(workspace());
    // Started by `cargo run` or `cargo test`, this process has what cargo says of *this* package. ring's build script reads
    // that, so that each way of starting the lab would compile TLS and everything above it once more.
    for (name, _) in std::env::vars_os().filter(|(name, _)| of_this_package(&name.to_string_lossy())) {
        build.env_remove(name);
    }
    build
}

/// Whether cargo sets this variable for the package that it runs or compiles, as opposed to what a person sets for cargo.
fn of_this_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"]
        .iter()
        .any(|prefix| variable.starts_with(prefix))
}
