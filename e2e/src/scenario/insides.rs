//! What the kernel knows of the processes of a pod: what a dump, or an attempt at one, could leave behind in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::sandbox::Pod;

/// Lines of `/proc/PID/status` that say what a process is allowed, and who holds it. Source: proc_pid_status(5).
const STATUS: [&str; 10] = [
    "TracerPid",
    "Threads",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapEff",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed_list",
];
/// Flags of mappings that a userfaultfd watches: for missing pages, for writes, for minor faults. Source: proc_pid_smaps(5).
const WATCHED: [&str; 3] = ["um", "uw", "ui"];

/// Of each process of a pod, by its number: facts by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insides(BTreeMap<i32, BTreeMap<String, String>>);

impl Insides {
    /// Looks at all of them, on this host. Sockets are left out: a ticker has another one for each tick.
    ///
    /// # Errors
    /// When it has no process, or one can't be looked at.
    pub fn of(pod: &Pod) -> Result<Self> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir("/proc").context("list processes")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|text| text.parse::<i32>().ok()) else { continue };
            // Depending on its driver, kubelet names the cgroup by the UID or by the UID with other dashes.
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default().replace('_', "-");
            if groups.contains(&pod.uid) {
                all.insert(pid, facts(pid)?);
            }
        }
        ensure!(!all.is_empty(), "no process of {} is on this host", pod.name);
        Ok(Self(all))
    }

    /// What is not the same in `other`, for people.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let pids: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let mut all = Vec::new();
        for pid in pids {
            let (Some(one), Some(two)) = (self.0.get(pid), other.0.get(pid)) else {
                all.push(format!("process {pid} is not in both"));
                continue;
            };
            let names: BTreeSet<_> = one.keys().chain(two.keys()).collect();
            let differing = names.into_iter().filter(|name| one.get(*name) != two.get(*name));
            all.extend(differing.map(|name| format!("{name} of {pid}: {:?}, then {:?}", one.get(name), two.get(name))));
        }
        all
    }
}

fn facts(pid: i32) -> Result<BTreeMap<String, String>> {
    let read = |name: &str| {
        fs::read_to_string(format!("/proc/{pid}/{name}")).with_context(|| format!("read {name} of process {pid}"))
    };
    let mut facts = BTreeMap::new();
    for line in read("status")?.lines() {
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| STATUS.contains(name)) {
            facts.insert(name.to_owned(), value.trim().to_owned());
        }
    }
    facts.insert("limits".to_owned(), read("limits")?);
    for line in read("maps")?.lines() {
        let (range, what) = line.split_once(' ').unwrap_or((line, ""));
        facts.insert(format!("mapping {range}"), what.to_owned());
    }
    facts.insert("watched mappings".to_owned(), watched(&read("smaps")?).to_string());
    for (number, target) in descriptors(pid)? {
        facts.insert(format!("descriptor {number}"), target);
    }
    Ok(facts)
}

fn watched(smaps: &str) -> usize {
    let flags = smaps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    flags.filter(|flags| flags.split_whitespace().any(|flag| WATCHED.contains(&flag))).count()
}

fn descriptors(pid: i32) -> Result<BTreeMap<String, String>> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("list the descriptors of process {pid}"))? {
        let entry = entry.context("list descriptors")?;
        // One that is closed while it is looked at was none that stays.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if !target.starts_with("socket:") {
            all.insert(entry.file_name().to_string_lossy().into_owned(), target);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insides(facts: &[(&str, &str)]) -> Insides {
        let facts = facts.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Insides(BTreeMap::from([(7, facts.collect())]))
    }

    #[test]
    fn what_was_left_behind_is_named() {
        let before = insides(&[("TracerPid", "0"), ("descriptor 1", "pipe:[5]")]);
        assert_eq!(before.differences(&before), Vec::<String>::new());
        let after = insides(&[("TracerPid", "9"), ("descriptor 1", "pipe:[5]"), ("descriptor 4", "userfaultfd")]);
        let named = before.differences(&after);
        assert!(
            named.len() == 2 && named[0].contains("TracerPid of 7") && named[1].contains("descriptor 4"),
            "{named:?}"
        );
        assert_eq!(before.differences(&Insides(BTreeMap::new())), ["process 7 is not in both"]);
    }

    #[test]
    fn a_mapping_is_watched_where_a_userfaultfd_has_it() {
        assert_eq!(watched("VmFlags: rd wr mr mw me ac \nSize: 4 kB\nVmFlags: rd wr uw \nVmFlags: rd um \n"), 2);
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let own = facts(std::process::id().try_into().expect("a pid")).expect("facts");
        assert!(own.contains_key("TracerPid") && own.keys().any(|name| name.starts_with("mapping ")), "{own:?}");
    }
}
