//! What runs in the machine and is built from the work tree.
//!
//! Owns which programs those are; [`compile`] builds them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::compile;
use crate::progress::Step;
use crate::vm::VmError;

/// Test programs with tests that need a real kernel: package, how cargo is told, name of the target.
const TESTS: [(&str, &[&str], &str); 5] = [
    ("tideover-init", &["--test", "supervision"], "supervision"),
    ("criu-shim", &["--lib"], "criu_shim"),
    ("criu-shim", &["--test", "memoryless"], "memoryless"),
    ("criu-shim", &["--test", "shared_memory"], "shared_memory"),
    ("criu-shim", &["--test", "hold"], "hold"),
];

/// Programs of a node that cargo builds with the tests of their package, and where they are on a node, below
/// `/opt/tideover`.
const OF_A_NODE: [(&str, &str); 2] = [("criu-relay", "relay/criu"), ("criu-pages", "bin/criu-pages")];

/// The library that the tests load into CRIU: package, file, and where it is on a node.
const PRELOAD: (&str, &str, &str) = ("dump-preload", "libdump_preload.so", "lib/libdump_preload.so");

/// The programs on the host.
#[derive(Debug)]
pub struct Programs {
    /// The first process, static.
    pub guest: PathBuf,
    /// `tideover-init` as it is shipped: static, optimised.
    pub init: PathBuf,
    /// Where the tests of `tideover-init` look for it.
    pub init_as_built: PathBuf,
    /// The test programs.
    pub tests: Vec<TestProgram>,
    /// What is on a node: the file here, and its place there, below `/opt/tideover`.
    pub of_a_node: Vec<(PathBuf, &'static str)>,
}

/// A program of Rust's test harness.
#[derive(Debug)]
pub struct TestProgram {
    /// Name of the target.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// Builds all of them.
///
/// # Errors
/// With the compiler's message.
pub fn build(step: &mut Step) -> Result<Programs, VmError> {
    let logs = compile::target_directory().join("vm");
    fs::create_dir_all(&logs).map_err(|source| VmError::Directory { path: logs.clone(), source })?;
    let packages = ["tideover-init", "tideover-guest"];
    let directory = compile::static_programs(step, &logs.join("programs.log"), &packages).map_err(VmError::Programs)?;
    let mut said = Vec::new();
    for (package, target, name) in TESTS {
        let log = logs.join(format!("{name}.log"));
        said.extend(compile::tests(step, &log, package, target).map_err(VmError::Programs)?);
    }
    let built = |name: &str| executable(&said, name).ok_or_else(|| VmError::NoTestProgram { name: name.to_owned() });
    let tests = TESTS.map(|(.., name)| Ok(TestProgram { name: name.to_owned(), path: built(name)? }));
    let tests = tests.into_iter().collect::<Result<_, VmError>>()?;
    let of_a_node = OF_A_NODE.map(|(name, place)| Ok((built(name)?, place)));
    let mut of_a_node = of_a_node.into_iter().collect::<Result<Vec<_>, VmError>>()?;
    let (package, library, place) = PRELOAD;
    let libraries = compile::libraries(step, &logs.join("preload.log"), &[package]).map_err(VmError::Programs)?;
    of_a_node.push((libraries.join(library), place));
    Ok(Programs {
        guest: directory.join("guest"),
        init: directory.join("tideover-init"),
        init_as_built: compile::target_directory().join("debug").join("tideover-init"),
        tests,
        of_a_node,
    })
}

/// A message of cargo's about something that it has built. Source: "External tools" in the book of cargo.
#[derive(Debug, Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// The program of the target `name`, from cargo's messages, one a line.
fn executable(messages: &[String], name: &str) -> Option<PathBuf> {
    let artifacts = messages.iter().filter_map(|line| serde_json::from_str::<Artifact>(line).ok());
    let mut programs = artifacts.filter(|artifact| artifact.target.name == name).filter_map(|it| it.executable);
    programs.find(|path| path.starts_with(Path::new("/")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_of_a_target_is_found_among_cargos_messages() {
        let messages = [
            "   Compiling tideover-init v0.1.0",
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"tideover_init"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"tideover-init"},"executable":"/t/debug/init"}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["test"],"name":"supervision"},"executable":"/t/deps/s-1"}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ]
        .map(str::to_owned);
        assert_eq!(executable(&messages, "supervision"), Some("/t/deps/s-1".into()));
        assert_eq!(executable(&messages, "other"), None);
    }
}
