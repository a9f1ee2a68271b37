//! Who makes the application's processes run system calls for the agent.

use crate::agent::host::NodeRoot;
use crate::memory::Injector;

/// The task of `tideover-agent` that does it, as its command line names it.
pub const TASK: &str = "inject";
/// Its argument: the node's file system.
pub const ROOT: &str = "root";

/// One with a process of its own, which no end of the agent or of its container reaches. It is started when there is work for it, and
/// ends with what is returned.
pub fn injector(node: &NodeRoot) -> Injector {
    let root = node.root().to_string_lossy().into_owned();
    Injector::apart("/proc/self/exe".into(), vec![TASK.to_owned(), format!("--{ROOT}"), root])
}
