//! A move that is followed closely, to do something at a certain moment of it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::cluster::Cluster;
use super::migration;
use super::moment::{Disks, Moment, Signs};
use super::sandbox::Sandbox;
use super::wait::LIMIT;
use super::watch::Watch;

/// Pause between two looks. The shortest moment lasts for some milliseconds.
const LOOK: Duration = Duration::from_micros(200);

/// A move, by a Migration that a person created.
#[derive(Debug)]
pub struct UnderWay<'a> {
    cluster: &'a Cluster,
    watch: &'a Watch,
    name: &'a str,
    object: Value,
    disks: Option<Disks>,
}

impl<'a> UnderWay<'a> {
    /// Creates the Migration `name` of the pod called `pod`. `watch` is one of the sandbox's namespace.
    ///
    /// # Errors
    /// When the API server refuses.
    pub fn begin(cluster: &'a Cluster, sandbox: &Sandbox, watch: &'a Watch, name: &'a str, pod: &str) -> Result<Self> {
        sandbox.create(&migration::manifest(name, pod))?;
        Ok(Self { cluster, watch, name, object: Value::Null, disks: None })
    }

    /// Returns as soon as the move is seen in `moment`, with what `then` makes of the object; looks on while that is `None`.
    /// `None`: the move has ended without having been seen so.
    ///
    /// # Errors
    /// When the move does not end, or can't be watched any more.
    pub fn seen_in<T>(&mut self, moment: Moment, mut then: impl FnMut(&Value) -> Option<T>) -> Result<Option<T>> {
        let start = Instant::now();
        loop {
            self.hear()?;
            if moment.holds(&self.signs())
                && let Some(found) = then(&self.object)
            {
                return Ok(Some(found));
            }
            if migration::has_ended(&self.object) {
                return Ok(None);
            }
            ensure!(start.elapsed() < LIMIT, "{} did not end within {} s", self.name, LIMIT.as_secs());
        }
    }

    /// What can be seen of it now. The disks are looked at; of the object it is the last state that was heard of.
    pub fn signs(&self) -> Signs {
        let disks = self.disks.as_ref().map(Disks::look).unwrap_or_default();
        Signs { disks, ..Signs::of(&self.object) }
    }

    /// Takes news of the object; without, returns after a short pause.
    fn hear(&mut self) -> Result<()> {
        if let Some(object) = self.watch.next(LOOK)?.filter(|object| object["metadata"]["name"] == *self.name) {
            if self.disks.is_none() {
                self.disks = Disks::of(self.cluster, &object)?;
            }
            self.object = object;
        }
        Ok(())
    }
}
