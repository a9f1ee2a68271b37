//! A pod's processes, and how much memory they have that is theirs: what a move has to bring over.

use std::fs;

use anyhow::{Context, Result, ensure};

/// Name of the program that holds a pod's namespaces. It does not move.
const PAUSE: &str = "pause";

/// Bytes of the pod with this UID that lie in memory and in no file, each page once however many processes share it.
///
/// # Errors
/// When its processes can't be found or looked at.
pub fn unique_bytes(uid: &str) -> Result<u64> {
    processes(uid)?.into_iter().try_fold(0, |bytes, pid| {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
        let rollup = rollup.with_context(|| format!("read the memory of process {pid}"))?;
        let own = unique_in(&rollup).with_context(|| format!("the kernel tells too little of process {pid}"))?;
        Ok(bytes + own)
    })
}

/// The processes of the pod with this UID, as this host names them.
///
/// # Errors
/// When there is none, or they can't be listed.
pub fn processes(uid: &str) -> Result<Vec<i32>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").context("list processes")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|text| text.parse::<i32>().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        // What has ended meanwhile is none of the pod's any more.
        let (Ok(cgroups), Ok(command)) = (read("cgroup"), read("comm")) else { continue };
        if is_of_pod(&cgroups, uid) && command.trim() != PAUSE {
            processes.push(pid);
        }
    }
    ensure!(!processes.is_empty(), "the pod {uid} has no process on this host");
    Ok(processes)
}

/// By the path that kubelet gives to a pod's cgroup, with either of its drivers.
fn is_of_pod(cgroups: &str, uid: &str) -> bool {
    cgroups.contains(&format!("pod{uid}")) || cgroups.contains(&format!("pod{}", uid.replace('-', "_")))
}

/// Bytes, shared pages by halves, thirds and so on. Source: proc(5), `/proc/PID/smaps_rollup`.
fn unique_in(rollup: &str) -> Option<u64> {
    let kib = |field: &str| {
        let rest = rollup.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((kib("Pss_Anon")? + kib("Pss_Shmem")?) << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_files_is_not_counted() {
        let rollup = "\
00400000-7ffd7000 ---p 00000000 00:00 0                          [rollup]
Rss:                3000 kB
Pss:                2500 kB
Pss_Dirty:          2000 kB
Pss_Anon:           2000 kB
Pss_File:            400 kB
Pss_Shmem:           100 kB
";
        assert_eq!(unique_in(rollup), Some(2100 << 10));
        assert_eq!(unique_in("Rss: 1 kB\n"), None);
    }

    #[test]
    fn this_very_kernel_tells_it() {
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("rollup");
        assert!(unique_in(&rollup).expect("figures") > 4096);
    }

    #[test]
    fn a_pod_is_known_by_its_uid_with_either_driver() {
        let uid = "0a-1b";
        assert!(is_of_pod("4:memory:/lab/kubepods/burstable/pod0a-1b/77\n", uid));
        assert!(is_of_pod("0::/kubepods.slice/kubepods-pod0a_1b.slice/cri-77.scope\n", uid));
        assert!(!is_of_pod("0::/kubepods/pod0a-1c/77\n", uid));
    }
}
