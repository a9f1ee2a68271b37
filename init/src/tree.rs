//! Which processes are the application's.
//!
//! They are init's descendants, because whatever loses its parent gets init for one. But `kubectl exec` and ephemeral
//! containers put processes beside them into the same PID namespace: those have no parent there, and are left alone. What
//! such a process leaves behind becomes init's child too; it is the application's only if it is in the container's cgroup, so
//! that what a debugging container leaves is not.

use std::collections::BTreeSet;
use std::fs;

/// Most parents that are followed up.
const MAX_DEPTH: usize = 4096;

/// A process as `/proc/<pid>/stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    alive: bool,
}

/// The tree below init.
#[derive(Debug)]
pub(crate) struct Tree {
    own: i32,
    /// `/proc/self/cgroup` of init; empty where it can't be read, and then no process is told apart by it.
    cgroup: Vec<u8>,
}

impl Tree {
    /// The tree below this process.
    pub(crate) fn own() -> Self {
        Self { own: std::process::id().cast_signed(), cgroup: fs::read("/proc/self/cgroup").unwrap_or_default() }
    }

    /// Every living process of the application.
    ///
    /// # Errors
    /// Where `/proc` can't be listed.
    pub(crate) fn processes(&self) -> std::io::Result<Vec<i32>> {
        let mut all: Vec<Process> = fs::read_dir("/proc")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter_map(process)
            .collect();
        all.sort_unstable_by_key(|process| process.parent);
        Ok(below(self.own, &all, |child| self.is_in_cgroup(child)))
    }

    /// Whether `pid` is a living process of the application, or one that has ended and was not reaped.
    pub(crate) fn contains(&self, pid: i32) -> bool {
        let mut at = pid;
        for _ in 0..MAX_DEPTH {
            match process(at).map(|process| process.parent) {
                Some(parent) if parent == self.own => return self.is_in_cgroup(at),
                Some(parent) if parent > 0 => at = parent,
                _ => return false,
            }
        }
        false
    }

    /// Whether `pid` has ended and will not be reaped by init.
    pub(crate) fn is_lost(&self, pid: i32) -> bool {
        process(pid).is_none_or(|process| !process.alive && process.parent != self.own)
    }

    fn is_in_cgroup(&self, pid: i32) -> bool {
        // What can't be read has just ended, and then it makes no difference.
        self.cgroup.is_empty()
            || fs::read(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroup| same_or_below(&cgroup, &self.cgroup))
    }
}

fn process(pid: i32) -> Option<Process> {
    parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Source: proc_pid_stat(5). The name in parentheses may contain anything.
fn parse(pid: i32, stat: &[u8]) -> Option<Process> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 2..)?).ok()?.split(' ');
    let state = fields.next()?;
    Some(Process { pid, parent: fields.next()?.parse().ok()?, alive: !matches!(state, "Z" | "X" | "x") })
}

/// The living processes below `root` in `all`, which is sorted by parent. Of the children of `root` only those for which
/// `ours` holds, and what is below them.
fn below(root: i32, all: &[Process], ours: impl Fn(i32) -> bool) -> Vec<i32> {
    let children = |parent: i32| {
        let from = all.partition_point(|process| process.parent < parent);
        all[from..].iter().take_while(move |process| process.parent == parent)
    };
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([root]);
    // A process that has ended has no children any more, but it may be shown with some that it had a moment ago.
    let mut next: Vec<Process> = children(root).filter(|process| process.alive && ours(process.pid)).copied().collect();
    while let Some(process) = next.pop() {
        if seen.insert(process.pid) {
            if process.alive {
                found.push(process.pid);
            }
            next.extend(children(process.pid).copied());
        }
    }
    found
}

/// Whether each line of `cgroup` names the group of the same line of `own`, or one below.
fn same_or_below(cgroup: &[u8], own: &[u8]) -> bool {
    let mut theirs = cgroup.split(|byte| *byte == b'\n');
    own.split(|byte| *byte == b'\n').all(|own| {
        theirs.next().is_some_and(|theirs| {
            theirs.strip_prefix(own).is_some_and(|rest| rest.is_empty() || own.ends_with(b"/") || rest[0] == b'/')
                && !theirs.windows(4).any(|part| part == b"/../")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, alive: true }
    }

    #[test]
    fn descendants_are_found_at_any_depth_and_strangers_are_not() {
        let dead = Process { alive: false, ..process(5, 1) };
        let mut all =
            vec![process(1, 0), process(2, 1), process(3, 2), process(4, 3), dead, process(9, 0), process(10, 9)];
        all.push(process(20, 1));
        all.push(process(21, 20));
        all.sort_unstable_by_key(|process| process.parent);
        let mut found = below(1, &all, |child| child != 20);
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4]);
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let all = [process(2, 1), process(1, 2)];
        assert_eq!(below(1, &all, |_| true), [2]);
    }

    #[test]
    fn a_name_may_contain_anything() {
        assert_eq!(parse(7, b"7 (a) b (c) S 3 7 7 0 -1"), Some(process(7, 3)));
        assert_eq!(parse(7, b"7 (x) Z 1 7"), Some(Process { alive: false, ..process(7, 1) }));
        assert_eq!(parse(7, b"7 (x"), None);
        assert_eq!(parse(7, b"7 (x)"), None);
    }

    #[test]
    fn another_containers_cgroup_is_a_strangers() {
        assert!(same_or_below(b"0::/\n", b"0::/\n"));
        assert!(same_or_below(b"0::/own/sub\n", b"0::/\n"));
        assert!(!same_or_below(b"0::/../other\n", b"0::/\n"));
        let own = b"4:memory:/kube/c1\n3:cpu:/kube/c1\n";
        assert!(same_or_below(own, own));
        assert!(same_or_below(b"4:memory:/kube/c1/x\n3:cpu:/kube/c1\n", own));
        assert!(!same_or_below(b"4:memory:/kube/c12\n3:cpu:/kube/c1\n", own));
        assert!(!same_or_below(b"", own));
    }

    #[test]
    fn this_process_finds_its_child() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id().cast_signed();
        let tree = Tree::own();
        assert!(tree.processes().unwrap().contains(&pid));
        assert!(tree.contains(pid) && !tree.contains(1) && !tree.is_lost(pid));
        child.kill().unwrap();
        while super::process(pid).is_some_and(|process| process.alive) {
            std::thread::yield_now();
        }
        assert!(!tree.processes().unwrap().contains(&pid) && !tree.is_lost(pid), "its end is this process' to learn");
        child.wait().unwrap();
        assert!(tree.is_lost(pid));
    }
}
