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
    /// `kubectl drain` of all of `node`, as a person types it where there are DaemonSets and emptyDirs; `more` flags are
    /// for what needs them: kubectl itself asks for `--force` before it ends a pod that no controller would make again.
    pub fn words<'a>(node: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        ["drain", node, "--ignore-daemonsets", "--delete-emptydir-data"]
            .into_iter()
            .chain(more.iter().copied())
            .collect()
    }

    /// Starts [`Drain::words`].
    ///
    /// # Errors
    /// When kubectl can't be started.
    pub fn of_node(kube: &Kube, node: &str, more: &[&str]) -> Result<Self> {
        let mut command = kube.command(&Self::words(node, more));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl drain")?;
        Ok(Self { child })
    }

    /// Drains only the pods that `selector` selects, whether they have a controller or not, and gives up after a while:
    /// for a scenario in which the rest of the node is to stay as it is.
    ///
    /// # Errors
    /// As [`Drain::of_node`].
    pub fn start(kube: &Kube, node: &str, selector: &str) -> Result<Self> {
        Self::of_node(kube, node, &["--force", "--timeout=180s", &format!("--pod-selector={selector}")])
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `limit`.
    pub fn finish(mut self, limit: Duration) -> Result<Drained> {
        let ended = until("kubectl drain to end", limit, || self.child.try_wait().context("wait for kubectl drain"));
        if ended.is_err() {
            self.child.kill().context("end kubectl drain")?;
        }
        let output = self.child.wait_with_output().context("read what kubectl drain said")?;
        let said = [output.stderr, output.stdout].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        ended.with_context(|| format!("it said: {said}"))?;
        Ok(Drained { code: output.status.code(), said })
    }
}
