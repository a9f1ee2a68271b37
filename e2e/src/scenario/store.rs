//! A real in-memory store with 200,000 keys and a client that keeps writing.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::manifests;
use super::sandbox::{Pod, Sandbox};
use super::wait::{LIMIT, until_true};

/// Keys in the store before the move.
pub const KEYS: u64 = 200_000;

/// A running store, its client, and what was known of it before the move.
#[derive(Debug)]
pub struct Store<'a> {
    sandbox: &'a Sandbox,
    /// The store's pod before the move.
    pub pod: Pod,
}

/// What `INFO` says of the identity and age of a redis process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Random at every start of the process.
    pub run_id: String,
    /// Seconds since the start of the process.
    pub uptime: u64,
    /// Commands processed since then.
    pub commands: u64,
    /// Keys.
    pub keys: u64,
}

impl<'a> Store<'a> {
    /// Starts the store, fills it, and starts the writing client (pod `writer`). The clients stay away from the store's
    /// node, so that it can be drained.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start(sandbox: &'a Sandbox) -> Result<Self> {
        sandbox.apply(&manifests::store())?;
        let pod = sandbox.ready_pod("store")?;
        sandbox.apply(&manifests::probe("filler", &pod.node, &["fill", "store:6379", &format!("--keys={KEYS}")]))?;
        until_true("the store to be filled", LIMIT, || {
            Ok(sandbox.log("filler").is_ok_and(|log| log.contains("filled")))
        })?;
        sandbox.apply(&manifests::probe("writer", &pod.node, &["write", "store:6379"]))?;
        sandbox.ready_pod("writer")?;
        let store = Self { sandbox, pod };
        store.written_past(100)?;
        Ok(store)
    }

    /// Identity and age of the process in `pod`.
    ///
    /// # Errors
    /// When redis-cli in the pod does not answer.
    pub fn identity(&self, pod: &str) -> Result<Identity> {
        let text = self.sandbox.run(&["exec", pod, "--", "redis-cli", "INFO", "everything"])?;
        let fields: BTreeMap<_, _> = text.lines().filter_map(|line| line.trim().split_once(':')).collect();
        let field = |name: &str| fields.get(name).copied().with_context(|| format!("INFO has no {name}"));
        let keys =
            field("db0")?.split(',').find_map(|part| part.strip_prefix("keys=")).context("INFO has no key count")?;
        Ok(Identity {
            run_id: field("run_id")?.to_owned(),
            uptime: field("uptime_in_seconds")?.parse()?,
            commands: field("total_commands_processed")?.parse()?,
            keys: keys.parse()?,
        })
    }

    /// The newest write that the store has acknowledged.
    ///
    /// # Errors
    /// When the client's log can't be read.
    pub fn acknowledged(&self) -> Result<u64> {
        let log = self.sandbox.run(&["logs", "writer", "--tail=200"])?;
        Ok(log.lines().rev().find_map(|line| line.strip_prefix("acknowledged ")?.parse().ok()).unwrap_or(0))
    }

    /// Waits until writes past `number` are acknowledged.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub fn written_past(&self, number: u64) -> Result<()> {
        until_true(format!("an acknowledged write past {number}"), LIMIT, || Ok(self.acknowledged()? > number))
    }

    /// Outages that the client saw, milliseconds.
    ///
    /// # Errors
    /// When the client's log can't be read.
    pub fn outages(&self) -> Result<Vec<u64>> {
        let log = self.sandbox.log("writer")?;
        Ok(log.lines().filter_map(|line| line.strip_prefix("outage ")?.split(' ').next()?.parse().ok()).collect())
    }

    /// Reads everything back: every filled key and every acknowledged write.
    ///
    /// # Errors
    /// When one is missing or wrong, with the counts.
    pub fn verify(&self) -> Result<String> {
        let acknowledged = self.acknowledged()?;
        self.sandbox.run(&["delete", "pod", "verifier", "--ignore-not-found"])?;
        let args = ["verify", "store:6379", &format!("--keys={KEYS}"), &format!("--acknowledged={acknowledged}")];
        self.sandbox.apply(&manifests::probe("verifier", &self.pod.node, &args))?;
        let mut phase = String::new();
        until_true("the store to be read back", LIMIT, || {
            let pod = self.sandbox.get(&["pod", "verifier"])?.context("the verifying pod is gone")?;
            phase = pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
            Ok(phase == "Succeeded" || phase == "Failed")
        })?;
        let log = self.sandbox.log("verifier")?;
        anyhow::ensure!(phase == "Succeeded", "{}", log.trim());
        Ok(format!("{} ({acknowledged} acknowledged)", log.trim()))
    }
}
