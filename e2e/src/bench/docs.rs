//! `docs/benchmarks.md` and its picture. What they are made of lies beside them, so that anybody can make them again and see that no
//! number in them was written by hand.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::machine::Run;
use super::{plot, report};
use crate::scenario::figures::{self, Figure};

/// Names of the files.
const MEASURED: &str = "benchmarks.json";
const DOCUMENT: &str = "benchmarks.md";
const PICTURE: &str = "benchmarks.svg";

/// What a document is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// How, and on what.
    pub run: Run,
    /// What.
    pub figures: Vec<Figure>,
}

/// `docs` of the work tree.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// Keeps `measured` in `directory` and writes the documents anew.
///
/// # Errors
/// When there is nothing to draw, or a file can't be written.
pub fn keep(directory: &Path, measured: &Measured) -> Result<()> {
    let path = directory.join(MEASURED);
    let text = serde_json::to_string_pretty(measured)? + "\n";
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    write(directory)
}

/// Writes the documents of what is kept in `directory`.
///
/// # Errors
/// As [`keep`], and when nothing is kept.
pub fn write(directory: &Path) -> Result<()> {
    for (path, text) in documents(directory)? {
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Compares the documents in `directory` with what is kept there. Where nothing is kept, there must be none.
///
/// # Errors
/// When they are not made of it.
pub fn check(directory: &Path) -> Result<()> {
    if !directory.join(MEASURED).exists() {
        for name in [DOCUMENT, PICTURE] {
            ensure!(!directory.join(name).exists(), "docs/{name} is made of docs/{MEASURED}, which is not there");
        }
        return Ok(());
    }
    for (path, text) in documents(directory)? {
        let found = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        ensure!(found == text, "{} is not what `bench docs` makes of docs/{MEASURED}", path.display());
    }
    Ok(())
}

fn documents(directory: &Path) -> Result<[(PathBuf, String); 2]> {
    let Measured { run, figures } = figures::load(&directory.join(MEASURED))?;
    let picture = plot::svg(&plot::series(&figures))?;
    let document = report::document(&figures, &run, PICTURE);
    Ok([(directory.join(PICTURE), picture), (directory.join(DOCUMENT), document)])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn measured() -> Measured {
        let run = Run {
            command: "bench measure".to_owned(),
            commit: "abc".to_owned(),
            machine: Vec::new(),
            engines: BTreeMap::new(),
            failed: BTreeMap::new(),
        };
        let figure = Figure::of("64 MiB, 1 %/s", "freeze", "ms", &[24.1, 0.1 + 0.2]).expect("values");
        Measured { run, figures: vec![figure] }
    }

    #[test]
    fn a_number_that_was_written_by_hand_is_found() {
        let directory = tempfile::tempdir().expect("dir");
        keep(directory.path(), &measured()).expect("kept");
        check(directory.path()).expect("just made");
        let path = directory.path().join(DOCUMENT);
        let text = fs::read_to_string(&path).expect("a document");
        assert!(text.contains("24.1"), "{text}");
        fs::write(&path, text.replace("24.1", "14.1")).expect("write");
        check(directory.path()).expect_err("not what was measured");
    }

    #[test]
    fn a_document_of_nothing_is_found() {
        let directory = tempfile::tempdir().expect("dir");
        check(directory.path()).expect("nothing was measured, and nothing is told");
        fs::write(directory.path().join(DOCUMENT), "24 ms").expect("write");
        check(directory.path()).expect_err("of nothing");
    }
}
