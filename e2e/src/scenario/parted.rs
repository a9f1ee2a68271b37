//! Two nodes that can't reach each other, while everybody else reaches both.

use anyhow::Result;

use super::cluster::Cluster;
use crate::lab::Node;

/// They are parted until this is dropped.
#[derive(Debug)]
pub struct Parted {
    pair: [Node; 2],
}

impl Parted {
    /// Parts the nodes `one` and `other`.
    ///
    /// # Errors
    /// When there is none of that name, or `ip` fails.
    pub fn new(cluster: &Cluster, one: &str, other: &str) -> Result<Self> {
        let pair = [cluster.node(one)?, cluster.node(other)?];
        let parted = Self { pair };
        let [one, other] = &parted.pair;
        one.part_from(other)?;
        Ok(parted)
    }
}

impl Drop for Parted {
    fn drop(&mut self) {
        let [one, other] = &self.pair;
        if let Err(error) = one.join_with(other) {
            eprintln!("{} and {} stay parted: {error:#}", one.name(), other.name());
        }
    }
}
