//! The processes of one container whose memory is followed while they run.

use super::alike::Alike;
use super::sent::SentPages;
use super::shared::{Shared, SharedMemory};
use crate::agent::transfer::message::Part;
use crate::causes::chain;
use crate::criu::{ObjectId, ProcessId, Telling, WithholdError, ranges};
use crate::freezer::{Freezer, FreezerError};
use crate::memory::{AttachError, Attached, Engine, Injector, Range, Sent, TrackError};
use std::path::Path;
use std::sync::{Arc, Mutex};
use thiserror::Error;
use tideover_crds::MemoryEngine;

/// Why the memory of a container can't be followed: it is copied in the freeze then.
#[derive(Debug, Error)]
pub enum Unfollowed {
    /// Its processes are not known.
    #[error("list the container's processes")]
    Processes(#[source] FreezerError),
    /// There is no key for what is remembered of them.
    #[error("draw a key for digests of memory")]
    Key(#[source] std::io::Error),
    /// One of them refuses.
    #[error("follow the memory of process {pid}")]
    Attach {
        /// The process, as this node's `/proc` names it.
        pid: i32,
        /// Why.
        #[source]
        source: AttachError,
    },
}

/// What one process has written.
#[derive(Clone, Debug)]
pub struct Written {
    /// The process, as this node's `/proc` names it.
    pub pid: i32,
    /// The process, as CRIU's images name it.
    pub image_pid: i32,
    /// Its pages.
    pub ranges: Vec<Range>,
    /// Where it must be noted what was read of them, if anywhere.
    pub noted: Option<Arc<Mutex<Sent>>>,
    /// What they held when they were sent last.
    pub sent: SentPages,
}

impl Written {
    /// Name of the part that carries it in round `round`.
    pub fn part(&self, round: u32) -> Part {
        Part::Memory { pid: self.image_pid, round }
    }
}

/// What is left to do once the processes are frozen.
#[derive(Debug, Default)]
pub struct LastLook {
    /// What must still be sent.
    pub written: Vec<Written>,
    /// What there is of what the dump leaves out of the processes' own memory, all of which the target has then.
    pub copied: Vec<Copied>,
    /// Shared memory that the dump leaves out. What differs in it is still to be found.
    pub shared: Vec<Shared>,
}

/// What the target has of one process, once the last of it is sent.
#[derive(Clone, Debug)]
pub struct Copied {
    /// The process, as CRIU's images name it.
    pub image_pid: i32,
    /// Every page of these that there is.
    pub ranges: Vec<std::ops::Range<u64>>,
}

#[derive(Debug)]
struct Process {
    id: ProcessId,
    image_pid: i32,
    engine: Engine,
    /// Why it is not a better one, a sentence each.
    instead: Vec<String>,
    sent: SentPages,
}

/// Gives a process, by its id, an engine, which has done inside of the process what must be.
pub(in crate::agent::source) type Choose = fn(i32, &Injector) -> Result<Attached, AttachError>;

/// The processes, each with its engine. Dropped, nothing is left of that in them; it takes 19 ms for 1 GiB, so not while
/// they are frozen.
#[derive(Debug)]
pub struct Followed {
    freezer: Freezer,
    /// How a process gets its engine.
    choose: Choose,
    processes: Vec<Process>,
    /// What their pages have in common.
    alike: Alike,
    /// Those that can't be followed.
    refused: Vec<ProcessId>,
    /// What belongs to none of them.
    pub shared: SharedMemory,
    /// Last, because to drop it waits for its process.
    injector: Injector,
}

impl Followed {
    /// Begins to follow every process of the container. Blocking.
    ///
    /// # Errors
    /// Where one can't be followed; none is then.
    pub fn attach(freezer: Freezer, injector: Injector) -> Result<Self, Unfollowed> {
        Self::attach_by(freezer, injector, Engine::attach)
    }

    /// As [`Followed::attach`], with the engines that `choose` gives.
    pub(in crate::agent::source) fn attach_by(
        freezer: Freezer,
        injector: Injector,
        choose: Choose,
    ) -> Result<Self, Unfollowed> {
        let (alike, shared) = (Alike::new().map_err(Unfollowed::Key)?, SharedMemory::default());
        let mut followed =
            Self { freezer, injector, choose, processes: Vec::new(), alike, refused: Vec::new(), shared };
        for pid in followed.freezer.pids().map_err(Unfollowed::Processes)? {
            let process = followed.begin(pid).map_err(|source| Unfollowed::Attach { pid, source })?;
            followed.processes.extend(process);
        }
        Ok(followed)
    }

    fn begin(&self, pid: i32) -> Result<Option<Process>, AttachError> {
        Process::attach(pid, self.choose, &self.injector, &self.alike)
    }

    /// How many processes are followed.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    /// Bytes that the last look reads and compares, in one thread's time.
    pub fn compared_bytes(&self) -> u64 {
        let processes: u64 = self.processes.iter().map(|process| process.engine.compared_bytes()).sum();
        processes + self.shared.bytes()
    }

    /// What was written since this was asked last, and whether all of it was looked at. Processes that have come since are
    /// followed too, if they can be. What has ended is forgotten, and so is what can't be followed any more: it is dumped
    /// whole. Blocking.
    ///
    /// # Errors
    /// Where the processes are not known.
    pub fn written(&mut self) -> Result<(Vec<Written>, bool), Unfollowed> {
        for pid in self.freezer.pids().map_err(Unfollowed::Processes)? {
            let Some(id) = ProcessId::now(pid) else { continue };
            if self.refused.contains(&id) || self.processes.iter().any(|process| process.id == id) {
                continue;
            }
            match self.begin(pid) {
                Ok(process) => self.processes.extend(process),
                // Not again in every round: each try stops it for a moment.
                Err(_) => self.refused.push(id),
            }
        }
        let (mut written, mut looked) = (Vec::new(), true);
        let refused = &mut self.refused;
        self.processes.retain_mut(|process| match process.take_written() {
            Ok(Some(ranges)) => {
                written.extend((!ranges.is_empty()).then(|| process.written(ranges)));
                true
            }
            Ok(None) => {
                looked = false;
                true
            }
            // It executes another program: that one may be followed from the next round on.
            Err(TrackError::Replaced { .. } | TrackError::Gone { .. }) => false,
            Err(_) => {
                refused.push(process.id);
                false
            }
        });
        Ok((written, looked))
    }

    /// The engine that promises least of those in use.
    pub fn engine(&self) -> MemoryEngine {
        let engines = || self.processes.iter().map(|process| &process.engine);
        if engines().any(|engine| matches!(engine, Engine::ReadAndCompare(_))) {
            MemoryEngine::ReadAndCompare
        } else if engines().any(|engine| matches!(engine, Engine::SoftDirty(_))) {
            MemoryEngine::SoftDirty
        } else {
            MemoryEngine::WriteProtect
        }
    }

    /// Why processes have another engine than the best one, a sentence each.
    pub fn fallbacks(&self) -> Vec<String> {
        self.processes.iter().filter_map(Process::fallback).collect()
    }

    /// From now on every round looks at everything: the freeze is near.
    pub fn wake(&mut self) {
        self.shared.wake();
        self.processes.iter_mut().for_each(|process| process.engine.wake());
    }

    /// The shared memory of the processes, if it is to be compared now. Blocking.
    ///
    /// # Errors
    /// Where the processes are not known.
    pub fn shared(&mut self) -> Result<Option<Vec<Shared>>, Unfollowed> {
        let pids = self.freezer.pids().map_err(Unfollowed::Processes)?;
        Ok(self.shared.look(&pids))
    }

    /// The last look, at processes that are frozen. One that can't be looked at is dumped whole. Blocking.
    ///
    /// `begin` is called, with the shared memory that it leaves out, when a dump may begin: it changes nothing of what is
    /// looked at from then on. It is told of each process what it leaves out of it as soon as that is known.
    ///
    /// # Errors
    /// Where it could not be told. It is of no use then.
    pub fn last_look(
        &mut self,
        begin: impl FnOnce(Vec<ObjectId>),
        telling: &mut Telling,
    ) -> Result<LastLook, WithholdError> {
        let mut look = LastLook { shared: self.shared.last_look(), ..LastLook::default() };
        let alive = self.processes.iter_mut().filter(|process| process.id.is_alive());
        // In a dump, a thread has the stack pointer of CRIU's parasite.
        let mut alive: Vec<_> = alive.map(|process| (stack_pages(process.id.pid), process)).collect();
        // As CRIU comes to them, about: parents have the lower ids, mostly.
        alive.sort_by_key(|(_, process)| process.id.pid);
        begin(look.shared.iter().map(|shared| shared.id).collect());
        // Who lets CRIU go on was woken on this processor, and would wait until all is looked at even where another has nothing to do.
        std::thread::yield_now();
        for (stacks, process) in alive {
            let (pid, image_pid) = (process.id.pid, process.image_pid);
            let seen = process.engine.last_look().unwrap_or_default();
            look.written.push(process.written(seen.written));
            let Some(touched) = stacks.and_then(|stacks| touched_pages(pid, stacks)) else { continue };
            let withheld = telling.process(pid, ranges::without(&addresses(&seen.covered), &touched))?;
            let ranges = ranges::intersection(&addresses(&seen.present), &withheld);
            look.copied.push(Copied { image_pid, ranges });
        }
        Ok(look)
    }
}

impl Process {
    /// None where it has ended meanwhile.
    fn attach(pid: i32, choose: Choose, injector: &Injector, alike: &Alike) -> Result<Option<Self>, AttachError> {
        let Some((id, image_pid)) = ProcessId::now(pid).zip(innermost_pid(pid)) else { return Ok(None) };
        match choose(pid, injector) {
            Ok(Attached { engine, instead }) => {
                let mut instead: Vec<String> = instead.iter().map(|refusal| chain(refusal)).collect();
                // What stands in the way of both stands in the way of the first.
                instead.dedup();
                Ok(Some(Self { id, image_pid, engine, instead, sent: alike.process() }))
            }
            Err(_) if !id.is_alive() || has_ended(pid) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Process {
    /// What was written. A process that begins to do what its engine does not see is compared from then on.
    fn take_written(&mut self) -> Result<Option<Vec<Range>>, TrackError> {
        match self.engine.take_written() {
            Err(error @ (TrackError::Obstacle { .. } | TrackError::Cleared { .. })) => {
                if self.engine.compare_from_now_on(self.id.pid).is_err() {
                    return Err(error);
                }
                self.instead.push(chain(&error));
                self.engine.take_written()
            }
            taken => taken,
        }
    }

    /// Why its engine is not the best one.
    fn fallback(&self) -> Option<String> {
        let how = match self.engine {
            Engine::WriteProtect(_) => return None,
            Engine::SoftDirty(_) => "compared where it is marked as written",
            Engine::ReadAndCompare(_) => "read and compared",
        };
        Some(format!("the memory of process {} is {how}: {}", self.id.pid, self.instead.join("; ")))
    }

    fn written(&self, ranges: Vec<Range>) -> Written {
        let (noted, sent) = (self.engine.sent(), self.sent.clone());
        Written { pid: self.id.pid, image_pid: self.image_pid, ranges, noted, sent }
    }
}

fn addresses(ranges: &[Range]) -> Vec<std::ops::Range<u64>> {
    ranges.iter().map(|range| range.start..range.end).collect()
}

/// Pages that may not be taken from a look beside a dump, nor come after the restore: where CRIU puts its own system calls for a
/// moment, the beginning of an executable mapping (`get_exec_start` of `criu/parasite-syscall.c`), and where a thread's stack
/// pointer is, at which it writes in the restore before it asks for pages: `pages`. None where that can't be told. In a dump there is
/// one more such mapping, CRIU's own.
fn touched_pages(pid: i32, mut pages: Vec<std::ops::Range<u64>>) -> Option<Vec<std::ops::Range<u64>>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ')?;
        if rest.as_bytes().get(2) == Some(&b'x') {
            let page = u64::from_str_radix(range.split_once('-')?.0, 16).ok()?;
            pages.push(page..page + ranges::PAGE);
        }
    }
    pages.sort_unstable_by_key(|page| page.start);
    pages.dedup();
    Some(pages)
}

/// The pages at which the threads of a process, which does not run, have their stack pointers. None where that can't be
/// told. Source: proc(5), `/proc/PID/syscall`: the last but one field is the stack pointer.
fn stack_pages(pid: i32) -> Option<Vec<std::ops::Range<u64>>> {
    let mut pages = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        let line = std::fs::read_to_string(thread.ok()?.path().join("syscall")).ok()?;
        let pointer = line.split_whitespace().rev().nth(1)?.strip_prefix("0x")?;
        let page = u64::from_str_radix(pointer, 16).ok()? & !(ranges::PAGE - 1);
        pages.push(page..page + ranges::PAGE);
    }
    pages.sort_unstable_by_key(|page| page.start);
    pages.dedup();
    Some(pages)
}

/// Whether nothing but its exit status is left of a process. Source: proc(5), the state after the command in brackets.
fn has_ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X'))
}

/// The id that a process has in its own PID namespace.
fn innermost_pid(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).ok()?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    ids.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_executable_memory_and_the_stack_are_touched() {
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
        let pid = child.id() as i32;
        // Until it waits for input, everything is loaded, and it stays in one call. While it runs, the kernel tells no stack pointer.
        let waits_in = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).expect("it lives");
        let (begun, mut before) = (std::time::Instant::now(), String::new());
        while before != waits_in() || before.starts_with("running") || !maps(pid).contains("/libc.so") {
            assert!(begun.elapsed().as_secs() < 60, "it does not wait: {before}");
            before = waits_in();
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let stacks = stack_pages(pid).expect("a process that waits");
        let touched = touched_pages(pid, stacks.clone()).expect("a process that waits");
        let executable: Vec<u64> = (maps(pid).lines())
            .filter(|line| line.split_whitespace().nth(1).is_some_and(|rights| rights.contains('x')))
            .map(|line| u64::from_str_radix(line.split('-').next().expect("a start"), 16).expect("an address"))
            .collect();
        child.kill().and_then(|()| child.wait()).expect("end it");
        assert!(executable.len() > 2, "cat, libc, ld.so, vdso");
        assert!(executable.iter().all(|start| touched.iter().any(|page| page.start == *start)), "{touched:x?}");
        assert!(!stacks.is_empty() && stacks.iter().all(|page| touched.contains(page)));
    }

    fn maps(pid: i32) -> String {
        std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("maps")
    }
}
