//! kubectl, as a person would use it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// kubectl with a cluster's administrator credentials.
#[derive(Debug, Clone)]
pub struct Kube {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kube {
    /// `program` is kubectl itself.
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// A command to be started by the caller.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        command
    }

    /// Runs to the end and returns everything, success or not.
    ///
    /// # Errors
    /// When kubectl can't be started.
    pub fn try_run(&self, args: &[&str]) -> Result<Output> {
        self.command(args).stdin(Stdio::null()).output().with_context(|| format!("start kubectl {}", args.join(" ")))
    }

    /// Runs and returns standard output.
    ///
    /// # Errors
    /// When kubectl fails, with what it said.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.try_run(args)?;
        if !output.status.success() {
            bail!("kubectl {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One object, or a list of them.
    ///
    /// # Errors
    /// When kubectl fails for another reason than that the object does not exist.
    pub fn get(&self, args: &[&str]) -> Result<Option<Value>> {
        let all: Vec<&str> =
            ["get", "--output=json", "--ignore-not-found"].into_iter().chain(args.iter().copied()).collect();
        let text = self.run(&all)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).with_context(|| format!("kubectl {} printed no JSON", all.join(" ")))
    }

    /// `kubectl apply` of `manifests`, a YAML stream.
    ///
    /// # Errors
    /// When the API server refuses it, with its sentence.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.with_input(&["apply", "--filename=-"], manifests)
    }

    /// `kubectl create` of `manifests`, a YAML stream.
    ///
    /// # Errors
    /// As [`Kube::apply`].
    pub fn create(&self, manifests: &str) -> Result<String> {
        self.with_input(&["create", "--filename=-"], manifests)
    }

    fn with_input(&self, args: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start kubectl")?;
        child.stdin.take().context("kubectl has no input")?.write_all(input.as_bytes()).context("write to kubectl")?;
        let output = child.wait_with_output().context("wait for kubectl")?;
        if !output.status.success() {
            bail!("kubectl {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
