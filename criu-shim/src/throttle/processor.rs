//! One processor for a container of many processes while CRIU dumps it, and for that CRIU.
//!
//! CRIU works on one task after the other, and some twenty times a process it has the task do something and waits for it. On two
//! processors each of these turns wakes an idle one; on the same processor it is a change of context. Decision 6 has what that comes to.

use super::ThrottleError;
use crate::freezer::{Freezer, FreezerError};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// From so many processes on it is worth it. A program of one shows no difference.
const MANY: usize = 8;

/// What is known of the affinity of a container's tasks: enough to give them all processors again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AffinityRecord {
    /// Directory of the container's freezer, as a path on the node.
    pub cgroup: PathBuf,
    /// The processor that they were, or are about to be, left.
    pub one: usize,
}

/// Keeps the tasks of a container on one processor, and gives them the others back.
#[derive(Debug)]
pub(super) struct OneProcessor {
    freezer: Freezer,
    one: usize,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// To be left the one: those that have all of these, as most have.
    Planned(CpuSet),
    /// Tasks may have been left it.
    Bound,
}

impl OneProcessor {
    /// For the container of `freezer`. None where it has few processes, or one processor, or where a task has been given the chosen one
    /// alone, because that could not be told from what is done here. `busy` says how busy which processor was; those that are
    /// `taken` by others are taken last.
    pub(super) fn plan(freezer: &Freezer, busy: &Busy, taken: &[usize]) -> Result<Option<Self>, ThrottleError> {
        let processes = freezer.pids().map_err(ThrottleError::Processes)?;
        if processes.len() < MANY {
            return Ok(None);
        }
        let order = |processor| (taken.iter().filter(|taken| **taken == processor).count(), busy.of(processor));
        let affinities = affinities(&processes).map_err(ThrottleError::Affinity)?;
        let chosen = choose(affinities.into_iter().map(|(_, affinity)| affinity), order);
        Ok(chosen.map(|(all, one)| Self { freezer: freezer.clone(), one, stage: Stage::Planned(all) }))
    }

    /// Takes over from somebody before this. None where the cgroup is gone.
    pub(super) fn adopt(record: &AffinityRecord, node_root: &Path) -> Option<Self> {
        // What else can be wrong with it is that it is a whole node's, and such a one is never written down.
        let freezer = Freezer::at(&record.cgroup, node_root).ok()?;
        Some(Self { freezer, one: record.one, stage: Stage::Bound })
    }

    pub(super) fn record(&self) -> AffinityRecord {
        AffinityRecord { cgroup: self.freezer.path_in_node().to_owned(), one: self.one }
    }

    /// The chosen one.
    pub(super) fn one(&self) -> usize {
        self.one
    }

    /// Leaves `criu`, and then the tasks of the container that have all its processors, the one: they are frozen. A task with an
    /// affinity of its own keeps it; nothing is done where one has been given the chosen processor alone since the plan.
    pub(super) fn carry_out(&mut self, criu: i32) -> Result<(), ThrottleError> {
        let Stage::Planned(all) = self.stage else { return Ok(()) };
        let affinities = self.affinities()?;
        self.bind(criu, &all, &affinities).map_err(ThrottleError::Affinity)
    }

    fn bind(&mut self, criu: i32, all: &CpuSet, affinities: &[(Pid, CpuSet)]) -> io::Result<()> {
        let one = set(&[self.one]);
        let having = || affinities.iter().filter(|(_, affinity)| affinity == all).map(|(task, _)| *task);
        let Some(first) = having().next().filter(|_| !affinities.iter().any(|(_, affinity)| *affinity == one)) else {
            return Ok(());
        };
        // Whether these are what the cgroup allows, or fewer, which somebody has chosen for them: only the first can be given back so
        // that they follow the cgroup, also when it changes later. A kill between the two calls costs that task its choice.
        give(first, &everything())?;
        if affinity(first)? != Some(*all) {
            return Ok(give(first, all)?);
        }
        // First: where it may not run there, nothing else is worth changing.
        sched_setaffinity(Pid::from_raw(criu), &one)?;
        self.stage = Stage::Bound;
        each(having(), |task| give(task, &one))
    }

    /// What all tasks have; nothing where the container has ended.
    fn affinities(&self) -> Result<Vec<(Pid, CpuSet)>, ThrottleError> {
        match self.freezer.pids() {
            Ok(processes) => affinities(&processes).map_err(ThrottleError::Affinity),
            Err(FreezerError::Gone { .. }) => Ok(Vec::new()),
            Err(error) => Err(ThrottleError::Processes(error)),
        }
    }

    /// Whether tasks may have been left the one.
    pub(super) fn is_bound(&self) -> bool {
        matches!(self.stage, Stage::Bound)
    }

    /// Gives every task that has the one processor all that the cgroup allows. The others get them also where it fails for one. What a
    /// task that runs makes meanwhile may be left out: it has what that task had when it began to make it.
    pub(super) fn restore(&self) -> Result<(), ThrottleError> {
        if !self.is_bound() {
            return Ok(());
        }
        let affinities = self.affinities()?;
        let restored = if affinities.iter().any(|(_, affinity)| affinity.is_set(self.one).unwrap_or(false)) {
            let one = set(&[self.one]);
            let bound = affinities.into_iter().filter(|(_, affinity)| *affinity == one);
            each(bound, |(task, _)| give(task, &everything()))
        } else {
            // The cgroup has it no more, and the kernel shows what is left to them. It remembers the one, and would go back to it.
            each(affinities.into_iter(), |(task, shown)| widen(task, &shown))
        };
        restored.map_err(ThrottleError::Affinity)
    }
}

/// How busy processors were for a while.
#[derive(Clone, Debug, Default)]
pub struct Busy(Vec<(usize, u64)>);

impl Busy {
    /// Time that each processor had for work since boot, in the kernel's ticks; of none, where that can't be told.
    pub fn now() -> Self {
        Self(busy_ticks(&std::fs::read_to_string("/proc/stat").unwrap_or_default()))
    }

    /// How busy they were from `before` until this.
    pub fn since(&self, before: &Self) -> Self {
        Self(
            self.0.iter().map(|(processor, ticks)| (*processor, ticks.saturating_sub(before.of(*processor)))).collect(),
        )
    }

    fn of(&self, processor: usize) -> u64 {
        self.0.iter().find(|(number, _)| *number == processor).map_or(0, |(_, ticks)| *ticks)
    }
}

/// Source: proc(5), `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn busy_ticks(stat: &str) -> Vec<(usize, u64)> {
    let line = |line: &str| {
        let (number, times) = line.strip_prefix("cpu")?.split_once(' ')?;
        let times: Vec<u64> = times.split_whitespace().take(8).map_while(|time| time.parse().ok()).collect();
        let idle: u64 = times.iter().skip(3).take(2).sum();
        Some((number.parse().ok()?, times.iter().sum::<u64>() - idle))
    };
    stat.lines().filter_map(line).collect()
}

/// The processors that most tasks have, and the first of them in `order`. Pure. None where there is one only, or where a task has the
/// chosen one alone.
fn choose<K: Ord>(affinities: impl Iterator<Item = CpuSet>, order: impl Fn(usize) -> K) -> Option<(CpuSet, usize)> {
    let mut tasks = HashMap::<CpuSet, usize>::new();
    affinities.for_each(|set| *tasks.entry(set).or_default() += 1);
    let (most, _) = tasks.iter().max_by_key(|(_, count)| **count)?;
    let processors = || (0..CpuSet::count()).filter(|number| most.is_set(*number).unwrap_or(false));
    let one = processors().min_by_key(|processor| order(*processor))?;
    (processors().count() > 1 && !tasks.contains_key(&set(&[one]))).then_some((*most, one))
}

fn set(processors: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    for processor in processors {
        // Beyond what a set can hold there is none that could have been found.
        set.set(*processor).ok();
    }
    set
}

fn everything() -> CpuSet {
    set(&(0..CpuSet::count()).collect::<Vec<_>>())
}

/// None where the task has ended.
fn affinity(task: Pid) -> Result<Option<CpuSet>, Errno> {
    match sched_getaffinity(task) {
        Err(Errno::ESRCH) => Ok(None),
        affinity => affinity.map(Some),
    }
}

fn give(task: Pid, set: &CpuSet) -> Result<(), Errno> {
    match sched_setaffinity(task, set) {
        // It has ended.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Gives a task all that its cgroup allows, unless that is not what it was shown to have.
fn widen(task: Pid, shown: &CpuSet) -> Result<(), Errno> {
    give(task, &everything())?;
    match affinity(task)? {
        Some(now) if now != *shown => give(task, shown),
        _ => Ok(()),
    }
}

/// All of them, also where it fails for one.
///
/// # Errors
/// The first.
fn each<T>(all: impl Iterator<Item = T>, change: impl Fn(T) -> Result<(), Errno>) -> io::Result<()> {
    let changed: Vec<_> = all.map(change).collect();
    Ok(changed.into_iter().collect::<Result<(), _>>()?)
}

/// Of all threads of `processes`. What ends meanwhile is left out.
fn affinities(processes: &[i32]) -> io::Result<Vec<(Pid, CpuSet)>> {
    let mut all = Vec::new();
    for process in processes {
        for thread in entries(Path::new(&format!("/proc/{process}/task")))? {
            let number = thread.file_name().to_str().and_then(|name| name.parse().ok());
            let task = Pid::from_raw(number.ok_or(ErrorKind::InvalidData)?);
            all.extend(affinity(task)?.map(|affinity| (task, affinity)));
        }
    }
    Ok(all)
}

fn entries(directory: &Path) -> io::Result<Vec<std::fs::DirEntry>> {
    let entries = there(std::fs::read_dir(directory))?.into_iter().flatten();
    Ok(entries.map(there).collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// None of what is gone, or goes while it is read.
fn there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(there) => Ok(Some(there)),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ESRCH) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_is_neither_idle_nor_waiting_for_a_disk() {
        let stat = "cpu  9 9 9 9\ncpu0 1 2 3 400 50 6 7 8 90 90\ncpu12 10 0 0 5 5 0 0 0 0 0\nintr 5\n";
        assert_eq!(busy_ticks(stat), [(0, 27), (12, 10)]);
    }

    #[test]
    fn the_least_busy_processor_of_most_tasks_is_chosen() {
        let mut affinities = vec![set(&[0, 1, 2]); 4];
        affinities.push(set(&[3]));
        let chosen = choose(affinities.into_iter(), |processor| [5, 2, 4, 0][processor]);
        assert_eq!(chosen, Some((set(&[0, 1, 2]), 1)));
    }

    #[test]
    fn what_has_ended_has_no_affinity() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert!(affinities(&[own, i32::MAX]).expect("affinities").iter().any(|(task, _)| *task == Pid::this()));
        assert_eq!(affinities(&[i32::MAX]).expect("none"), []);
    }

    #[test]
    fn what_could_not_be_put_back_or_would_not_pay_is_left() {
        let many = || std::iter::repeat_n(set(&[0, 1]), 4);
        assert_eq!(choose(std::iter::repeat_n(set(&[4]), 4), |_| 0), None, "one processor");
        assert_eq!(choose(many().chain([set(&[0])]), |_| 0), None, "one has it alone");
        assert!(choose(many().chain([set(&[1])]), |_| 0).is_some(), "another alone");
        assert_eq!(choose(std::iter::empty(), |_| 0), None);
    }
}
