//! What moves have left on the nodes.

use std::time::Duration;

use anyhow::Result;

use super::cluster::Cluster;
use super::wait::until_true;

/// Prints what is there of images and journal entries, and of the programs that look into processes, or bring them there.
const LOOK: &str = "find /var/lib/tideover/images /var/lib/tideover/journal -mindepth 1 2>/dev/null || true; \
                    ps -eo args | grep -E '[/]criu/criu|[/]relay/criu|criu[-]pages|[/]exe inject' || true";

/// Waits until nothing of a move is left on any node, but what was moved.
///
/// # Errors
/// When something is, after `limit`, with what it is.
pub fn are_gone(cluster: &Cluster, limit: Duration) -> Result<()> {
    let mut left = String::new();
    let gone = until_true("the nodes to be clean", limit, || {
        left.clear();
        for node in cluster.workers() {
            let said = cluster.node(&node)?.exec(["/bin/sh", "-c", LOOK])?.stdout;
            left.extend(String::from_utf8_lossy(&said).lines().map(|line| format!("{node}: {line}\n")));
        }
        Ok(left.is_empty())
    });
    gone.map_err(|error| error.context(format!("left are:\n{left}")))
}

/// How many processes called `name` the nodes have, in whatever container.
///
/// # Errors
/// When a node does not answer.
pub fn processes(cluster: &Cluster, name: &str) -> Result<usize> {
    let mut count = 0;
    for node in cluster.workers() {
        let said = cluster.node(&node)?.exec(["ps", "-eo", "comm"])?.stdout;
        count += String::from_utf8_lossy(&said).lines().filter(|line| line.trim() == name).count();
    }
    Ok(count)
}
