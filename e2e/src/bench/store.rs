//! redis-server with much in it, and a client that asks it all the time.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::scenario::wait::until_true;
use crate::scenario::{Collector, Sandbox, manifests};

/// Bytes of a value.
const VALUE: usize = 4096;
const LIMIT: Duration = Duration::from_secs(300);

/// What is in the store.
#[derive(Debug)]
pub struct Filled<'a> {
    sandbox: &'a Sandbox,
    keys: String,
    value: String,
    /// The node that the clients stay away from.
    node: String,
}

impl<'a> Filled<'a> {
    /// Starts the store (app `store`) with values of `mib` MiB in all, and the client, whose answers go to `collector`.
    ///
    /// # Errors
    /// When one of them does not come up.
    pub fn start(sandbox: &'a Sandbox, mib: usize, collector: &Collector) -> Result<Self> {
        sandbox.apply(&manifests::store())?;
        let node = sandbox.ready_pod("store")?.node;
        let keys = format!("--keys={}", (mib << 20) / VALUE);
        let filled = Self { sandbox, keys, value: format!("--value-bytes={VALUE}"), node };
        filled.to_the_end("filler", "fill")?;
        let report = format!("--report={}", collector.address());
        let args = ["load", "store:6379", &filled.keys, &filled.value, &report];
        sandbox.apply(&manifests::probe("load", &filled.node, &args))?;
        sandbox.ready_pod("load")?;
        Ok(filled)
    }

    /// Reads everything back.
    ///
    /// # Errors
    /// When something is missing or wrong.
    pub fn verify(&self) -> Result<()> {
        self.to_the_end("verifier", "verify")
    }

    /// Runs a command of the probe in a pod `name`.
    fn to_the_end(&self, name: &str, command: &str) -> Result<()> {
        let args = [command, "store:6379", &self.keys, &self.value];
        self.sandbox.apply(&manifests::probe(name, &self.node, &args))?;
        let mut phase = String::new();
        until_true(format!("the pod {name} to end"), LIMIT, || {
            let pod = self.sandbox.get(&["pod", name])?.unwrap_or_default();
            phase = pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
            Ok(phase == "Succeeded" || phase == "Failed")
        })?;
        ensure!(phase == "Succeeded", "{name}: {}", self.sandbox.log(name)?.trim());
        Ok(())
    }
}
