//! That the kernel is what the other checks are about.

use crate::system::CGROUPS;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;

pub fn cgroup_v2_is_all_there_is() -> Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    ensure!(own == "0::/\n", "the hierarchies of this process: {own:?}");
    let handed_down = fs::read_to_string(Path::new(CGROUPS).join("cgroup.subtree_control")).context("controllers")?;
    for controller in ["cpu", "memory", "pids"] {
        ensure!(handed_down.split_whitespace().any(|name| name == controller), "no {controller} in {handed_down:?}");
    }
    Ok(())
}
