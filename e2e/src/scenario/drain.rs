//! `kubectl drain`, run beside the scenario.

use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::kube::Kube;
use super::wait::until;

/// A drain that is under way.
#[derive(Debug)]
pub struct Drain {
    child: Child,
}

/// How a drain ended.
#[derive(Debug)]
pub struct Drained {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// All that it said, standard error and output.
    pub said: String,
}

impl Drain {
    /// What is run: `kubectl drain` of `node`, with the flags that a node with DaemonSets, emptyDirs and pods without an
    /// owner needs, for the pods that `selector` selects.
    pub fn words(node: &str, selector: &str) -> Vec<String> {
        let flags = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=180s"];
        let mut words = vec!["drain".to_owned(), node.to_owned()];
        words.extend(flags.map(str::to_owned));
        words.push(format!("--pod-selector={selector}"));
        words
    }

    /// Starts [`Drain::words`].
    ///
    /// # Errors
    /// When kubectl can't be started.
    pub fn start(kube: &Kube, node: &str, selector: &str) -> Result<Self> {
        let words = Self::words(node, selector);
        let mut command = kube.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl drain")?;
        Ok(Self { child })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Drained> {
        until("kubectl drain to end", limit, || self.child.try_wait().context("wait for kubectl drain"))?;
        let output = self.child.wait_with_output().context("read what kubectl drain said")?;
        let said = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        Ok(Drained { code: output.status.code(), said })
    }
}
