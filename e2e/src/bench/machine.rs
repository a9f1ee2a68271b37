//! On what something was measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::scenario::Cluster;

/// A run and the machine that it was made on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// As it was typed.
    pub command: String,
    /// The work tree's commit, with `+` where it was changed.
    pub commit: String,
    /// Name and value, in the order in which they are told.
    pub machine: Vec<(String, String)>,
    /// Which engines copied the memory of each case.
    pub engines: BTreeMap<String, BTreeSet<String>>,
    /// Why there are no figures of a case, for each of which there are none.
    pub failed: BTreeMap<String, String>,
}

/// The command line of `program` with these `arguments`, as a person types it.
pub fn command_line(program: &str, arguments: impl Iterator<Item = String>) -> String {
    let quoted = |word: String| if word.contains([' ', '*', '$']) { format!("'{word}'") } else { word };
    let words: Vec<String> = arguments.map(quoted).collect();
    format!("cargo run --package tideover-e2e --bin {program} -- {}", words.join(" "))
        .trim_end_matches(" -- ")
        .to_owned()
}

/// The machine, and the versions of what runs on its nodes.
///
/// # Errors
/// When something does not say what it is.
pub fn facts(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let mut facts = host()?;
    facts.push(("nodes".to_owned(), format!("{}, on this one machine", cluster.workers().len())));
    let nodes = cluster.kube().get(&["nodes"])?.context("no nodes")?;
    let info = &nodes["items"][0]["status"]["nodeInfo"];
    for (name, field) in
        [("kernel", "kernelVersion"), ("kubelet", "kubeletVersion"), ("container runtime", "containerRuntimeVersion")]
    {
        let value = info[field].as_str().with_context(|| format!("a node does not tell its {field}"))?;
        facts.push((name.to_owned(), value.to_owned()));
    }
    let node = cluster.node(&cluster.workers()[0])?;
    for program in ["runc", "criu"] {
        let said = command::read(&mut node.command([program, "--version"]))?;
        facts.push((program.to_owned(), version(&said)));
    }
    Ok(facts)
}

/// The machine alone.
///
/// # Errors
/// When /proc does not say what it is.
pub fn host() -> Result<Vec<(String, String)>> {
    let cpu = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let memory = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    Ok(of_host(&cpu, &memory))
}

/// The commit of the work tree.
///
/// # Errors
/// When it is not one of git's.
pub fn commit() -> Result<String> {
    let commit = git(&["rev-parse", "--short", "HEAD"])?;
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(if changed { format!("{commit}+") } else { commit })
}

fn git(words: &[&str]) -> Result<String> {
    let mut command = command::program("git", words);
    Ok(command::read(command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))))?)
}

/// By the contents of `/proc/cpuinfo` and `/proc/meminfo`.
fn of_host(cpu: &str, memory: &str) -> Vec<(String, String)> {
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
    // An ARM kernel has no line with the model's name.
    let model = cpu.lines().find(|line| line.starts_with("model name")).and_then(value);
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    vec![
        ("processor".to_owned(), model.unwrap_or_else(|| std::env::consts::ARCH.to_owned())),
        ("cores".to_owned(), cores.to_string()),
        ("memory".to_owned(), format!("{:.1} GiB", kib.unwrap_or(0.0) / f64::from(1 << 20))),
    ]
}

/// The first word of the first line that begins with a digit.
fn version(said: &str) -> String {
    let first = said.lines().next().unwrap_or_default();
    let number = first.split_whitespace().find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()));
    number.unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_told_in_three_lines() {
        let cpu = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\nmodel name\t: Some CPU @ 2 GHz\n";
        let facts = of_host(cpu, "MemFree: 1 kB\nMemTotal:       25165824 kB\n");
        let values: Vec<_> = facts.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["Some CPU @ 2 GHz", "2", "24.0 GiB"]);
    }

    #[test]
    fn a_command_can_be_typed_again() {
        let line = command_line("bench", ["measure", "--cases", "64 MiB, 1 %/s"].into_iter().map(str::to_owned));
        assert_eq!(line, "cargo run --package tideover-e2e --bin bench -- measure --cases '64 MiB, 1 %/s'");
        assert_eq!(command_line("other", std::iter::empty()), "cargo run --package tideover-e2e --bin other");
    }

    #[test]
    fn a_version_is_found_in_what_programs_say() {
        assert_eq!(version("runc version 1.3.6+ds1\ncommit: x"), "1.3.6+ds1");
        assert_eq!(version("Version: 4.2.1\n"), "4.2.1");
    }
}
