//! That the kernel is what the other checks are about.

use crate::system::CGROUPS;
use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: usize = 4096;

pub fn cgroup_v2_is_all_there_is() -> Result<()> {
    let own = fs::read_to_string("/proc/self/cgroup").context("/proc/self/cgroup")?;
    ensure!(own == "0::/\n", "the hierarchies of this process: {own:?}");
    let handed_down = fs::read_to_string(Path::new(CGROUPS).join("cgroup.subtree_control")).context("controllers")?;
    for controller in ["cpu", "memory", "pids"] {
        ensure!(handed_down.split_whitespace().any(|name| name == controller), "no {controller} in {handed_down:?}");
    }
    Ok(())
}

/// What CRIU tracks memory by where the kernel has it.
pub fn soft_dirty_is_tracked() -> Result<()> {
    let mut pages = vec![1_u8; 4 * PAGE];
    // The second of them is all of one page of the kernel's, whatever the first byte's address.
    let written = pages.as_ptr() as usize / PAGE + 1;
    let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
    let is_dirty = || -> Result<bool> {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (written * size_of::<u64>()) as u64).context("/proc/self/pagemap")?;
        // Source: Documentation/admin-guide/mm/soft-dirty.rst.
        Ok(u64::from_ne_bytes(entry) >> 55 & 1 == 1)
    };
    fs::write("/proc/self/clear_refs", "4").context("/proc/self/clear_refs")?;
    ensure!(!is_dirty()?, "the page counts as written after that was cleared");
    pages[PAGE..2 * PAGE].fill(2);
    ensure!(is_dirty()?, "the page does not count as written");
    ensure!(std::hint::black_box(&pages)[PAGE] == 2, "what was written is there");
    Ok(())
}
