//! The cpu time of the container on the source: how much it uses, and its limits while it is moved. And, for both sides, putting
//! limits back however often that takes.

use crate::agent::context::Context;
use crate::agent::host::NodeRoot;
use crate::agent::journal::{Entry, Journal, JournalError, Side};
use crate::agent::source::container::Container;
use crate::causes::chain;
use crate::criu::ProcessId;
use crate::freezer::Freezer;
use crate::throttle::{Bandwidth, Busy, CpuLimits, ThrottleError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::{error, info, warn};

/// Pause before a limit that could not be put back is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The container's cpu time. Dropping it puts back the limits that were found.
#[derive(Debug, Default)]
pub struct SourceCpu {
    /// Its limits.
    pub limits: CpuLimits,
    /// When its cpu time was looked at first, and what it was.
    first: Option<(Instant, Duration)>,
    /// Cpus that it kept busy before it was slowed down.
    used: Option<f64>,
    /// How busy the node's processors were until then.
    busy: Busy,
}

impl SourceCpu {
    /// Looks at the container's. Where that can't be done, it is moved with the limits that it has.
    pub async fn look(context: &Arc<Context>, container: &Container) -> Self {
        let (pid, root) = (container.pid, context.node.root().to_owned());
        let look = move || CpuLimits::of_process(pid, &root).map(|limits| (limits, Busy::now()));
        let why = match tokio::task::spawn_blocking(look).await {
            Ok(Ok((limits, busy))) => {
                let first = limits.usage().ok().map(|usage| (Instant::now(), usage));
                return Self { limits, first, used: None, busy };
            }
            Ok(Err(error)) => chain(&error),
            Err(error) => chain(&error),
        };
        warn!(container = container.id, why, "the container's cpu limits stay as they are");
        Self::default()
    }

    /// Plans to leave the container `percent` of what it used before it was slowed down first. `now` is the time.
    ///
    /// # Errors
    /// Where that is not known, or its limit can't be read.
    pub fn plan_share(&mut self, percent: u32, now: Instant) -> Result<Bandwidth, ThrottleError> {
        let used = match self.used {
            Some(used) => used,
            None => {
                let (at, before) = self.first.ok_or(ThrottleError::NoAccount)?;
                let time = now.saturating_duration_since(at).as_secs_f64().max(1e-3);
                self.limits.usage()?.saturating_sub(before).as_secs_f64() / time
            }
        };
        self.used = Some(used);
        self.limits.plan_share(used, percent)
    }

    /// Plans that the container has all cpu time while `criu` dumps it, because CRIU's code in its processes runs under its limits;
    /// where it has many processes, on one processor, which is returned. Those that are `taken` by other containers are chosen last.
    pub async fn plan_dump(&mut self, criu: ProcessId, freezer: Freezer, taken: Vec<usize>) -> Option<usize> {
        let (mut limits, before) = (std::mem::take(&mut self.limits), self.busy.clone());
        let planning = tokio::task::spawn_blocking(move || {
            if let Err(error) = limits.plan_lift() {
                warn!(error = %chain(&error), "the container is dumped under the cpu limits that it has");
            }
            let busy = Busy::now().since(&before);
            let one = limits.plan_one_processor(criu.pid, &freezer, &busy, &taken).unwrap_or_else(|error| {
                warn!(error = %chain(&error), "the container is dumped on all processors that it has");
                None
            });
            (limits, one)
        });
        // A thread that panicked has dropped the limits, and so put them back.
        let (limits, one) = planning.await.unwrap_or_else(|error| {
            warn!(%error, "the container is dumped under the cpu limits that it has");
            (CpuLimits::default(), None)
        });
        self.limits = limits;
        one
    }

    /// Does what was planned.
    ///
    /// # Errors
    /// Where a limit can't be written.
    pub async fn carry_out(&mut self) -> Result<(), ThrottleError> {
        let mut limits = std::mem::take(&mut self.limits);
        let carried_out = tokio::task::spawn_blocking(move || (limits.carry_out(), limits)).await;
        // A thread that panicked has dropped the limits, and so put them back.
        let (carried_out, limits) = carried_out.map_err(ThrottleError::Ended)?;
        self.limits = limits;
        carried_out
    }
}

/// Returns once the limits are as they were found, or their container is gone. That may be a while: the kernel refuses a limit
/// that does not fit into that of the pod's cgroup, say, which somebody may be about to change. What the journal has of them
/// must stay there as long as this takes.
pub async fn restored(mut limits: CpuLimits) {
    let mut told = false;
    loop {
        let restoring = tokio::task::spawn_blocking(move || (limits.restore(), limits)).await;
        // A thread that panicked has dropped the limits, and so put them back.
        let Ok((restored, back)) = restoring else { return };
        match restored {
            Ok(()) if told => return info!("the cpu limit is as it was found"),
            Ok(()) => return,
            Err(error) if !told => {
                error!(error = %chain(&error), "a cpu limit is not as it was found, and is tried until it is");
                told = true;
            }
            Err(_) => {}
        }
        limits = back;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Gives containers their cpu time back that an agent before this one has slowed down. Returns what else the journal has, and
/// what could not be put back at once. Blocking.
///
/// # Errors
/// Where the journal can't be changed.
pub fn put_back(entries: Vec<Entry>, journal: &Journal, node: &NodeRoot) -> Result<Vec<Entry>, JournalError> {
    let mut others = Vec::new();
    for entry in entries {
        let Side::Slowed(slowed) = &entry.side else {
            others.push(entry);
            continue;
        };
        match CpuLimits::adopt(&slowed.cpu, node.root()).restore() {
            Ok(()) => journal.remove(&entry.uid)?,
            Err(error) => {
                warn!(migration = entry.name, error = %chain(&error), "a container stays slowed down");
                others.push(entry);
            }
        }
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::journal::SlowedEntry;
    use crate::agent::journal::TargetEntry;
    use crate::throttle::fixture::{FOUND, Pod};
    use crate::throttle::{CpuRecord, LimitRecord};
    use std::path::Path;

    #[test]
    fn a_container_that_was_slowed_down_by_an_agent_that_was_killed_gets_its_cpu_time_back() {
        let Some(pod) = Pod::idle() else { return };
        let directory = tempfile::tempdir().expect("dir");
        let journal = Journal::open(directory.path()).expect("journal");
        let mut limits = pod.limits();
        limits.plan_share(0.1, 30).expect("plan");
        let slowed = Side::Slowed(SlowedEntry { cpu: limits.records() });
        journal.write(&Entry::new("n", "move", "uid-1", 1, slowed)).expect("write");
        journal.write(&Entry::new("n", "other", "uid-2", 1, Side::Target(TargetEntry::default()))).expect("write");
        limits.carry_out().expect("slow down");
        assert_eq!(pod.quotas(), ["3000", "20000"]);
        // As SIGKILL would.
        std::mem::forget(limits);

        let node = NodeRoot::at(Path::new("/"));
        let others = put_back(journal.entries().expect("entries"), &journal, &node).expect("put back");
        assert_eq!(pod.quotas(), FOUND);
        assert_eq!(others.len(), 1, "what is not about that is left to others");
        assert_eq!(journal.entries().expect("entries"), others);
    }

    /// A cgroup of v1's in `root` with this quota, or with one that can't be read.
    fn cgroup(root: &Path, quota: Option<&str>) {
        let cgroup = root.join("pod");
        std::fs::create_dir_all(&cgroup).expect("a directory");
        let path = cgroup.join("cpu.cfs_quota_us");
        std::fs::remove_dir(&path).ok();
        match quota {
            Some(quota) => std::fs::write(&path, quota).expect("a quota"),
            None => {
                std::fs::remove_file(&path).expect("no quota");
                std::fs::create_dir(&path).expect("what is no file");
            }
        }
        std::fs::write(cgroup.join("cpu.cfs_period_us"), "100000\n").expect("a period");
    }

    fn slowed_to(quota: u64) -> Vec<CpuRecord> {
        let bandwidth = |quota| Bandwidth { quota: Some(quota), period: 100_000 };
        let (found, set) = (bandwidth(10_000), vec![bandwidth(quota)]);
        vec![CpuRecord::Limit(LimitRecord { cgroup: "/pod".into(), found, set })]
    }

    #[tokio::test]
    async fn a_limit_that_is_refused_is_tried_until_it_is_as_it_was_found() {
        let root = tempfile::tempdir().expect("dir");
        cgroup(root.path(), Some("3000"));
        let limits = CpuLimits::adopt(&slowed_to(3_000), root.path());
        cgroup(root.path(), None);
        let mut restoring = tokio::spawn(restored(limits));
        assert!(tokio::time::timeout(2 * AGAIN, &mut restoring).await.is_err(), "it is not as it was found");
        cgroup(root.path(), Some("3000"));
        restoring.await.expect("put back");
        let quota = std::fs::read_to_string(root.path().join("pod/cpu.cfs_quota_us")).expect("a quota");
        assert_eq!(quota.trim(), "10000");
    }

    #[tokio::test]
    async fn a_limit_of_a_container_that_is_gone_is_tried_no_more() {
        let root = tempfile::tempdir().expect("dir");
        cgroup(root.path(), Some("3000"));
        let limits = CpuLimits::adopt(&slowed_to(3_000), root.path());
        cgroup(root.path(), None);
        let restoring = tokio::spawn(restored(limits));
        std::fs::remove_dir_all(root.path().join("pod")).expect("gone");
        restoring.await.expect("given up");
    }

    #[test]
    fn what_can_not_be_put_back_at_the_start_stays_in_the_journal_and_with_its_move() {
        let root = tempfile::tempdir().expect("dir");
        let journal = Journal::open(&root.path().join("journal")).expect("journal");
        cgroup(root.path(), Some("3000"));
        let slowed = Side::Slowed(SlowedEntry { cpu: slowed_to(3_000) });
        journal.write(&Entry::new("n", "move", "uid-1", 1, slowed)).expect("write");
        let node = NodeRoot::at(root.path());
        cgroup(root.path(), Some("3000"));
        std::fs::remove_file(root.path().join("pod/cpu.cfs_period_us")).expect("no period");
        std::fs::create_dir(root.path().join("pod/cpu.cfs_period_us")).expect("what is no file");
        let left = put_back(journal.entries().expect("entries"), &journal, &node).expect("put back");
        assert_eq!(left, journal.entries().expect("entries"));
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn a_share_is_of_what_was_used_before_the_first_step() {
        let Some(pod) = Pod::start(&["sh", "-c", "while :; do :; done"]) else { return };
        let limits = pod.limits();
        let first = limits.usage().ok().map(|usage| (Instant::now(), usage));
        let mut cpu = SourceCpu { limits, first, ..SourceCpu::default() };
        let begun = Instant::now();
        while cpu.limits.usage().expect("usage") < Duration::from_millis(50) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it does not run");
            std::thread::sleep(Duration::from_millis(10));
        }
        let share = cpu.plan_share(50, Instant::now()).expect("plan").quota.expect("a limit");
        // It may take a tenth of a cpu: half of that, or less where the machine is busy.
        assert!((1_000..10_000).contains(&share), "{share}");
        let used = cpu.used;
        cpu.plan_share(20, Instant::now()).expect("plan");
        assert_eq!(cpu.used, used, "not of what it is left with");
    }

    #[test]
    fn a_container_whose_cpu_time_is_not_known_is_not_slowed_down() {
        let mut cpu = SourceCpu::default();
        assert!(matches!(cpu.plan_share(50, Instant::now()), Err(ThrottleError::NoAccount)));
    }
}
