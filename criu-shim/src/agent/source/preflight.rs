//! Looks whether the pod can be dumped, as far as that can be known without touching it.

use crate::agent::context::{Context, Key, answer};
use crate::agent::failure::{permanent, retryable};
use crate::agent::source::container::{self, Container, Named};
use crate::causes::chain;
use crate::criu::capability;
use crate::criu::preflight::{self, Finding, PreflightError};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use tideover_crds::{Failure, FailureReason, ObjectRef};

/// Room that must be left on the disk beyond the memory of the processes, bytes.
const SPARE: u64 = 64 << 20;

/// The pod, and one container in it that moves.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The object as the API server has it.
    pub pod: Pod,
    /// Name of the container.
    pub name: String,
    /// The container.
    pub container: Container,
    /// What a person should know, a sentence each.
    pub notes: Vec<String>,
    /// Where CRIU must look for files with inotify watches.
    pub inotify_paths: Vec<String>,
    /// Memory of the processes, bytes.
    pub memory_bytes: u64,
    /// Other containers of the pod move with it.
    pub several: bool,
}

impl Inspected {
    /// What is said of the container: it is named where several move.
    pub fn says(&self, what: String) -> String {
        of_container(&self.name, self.several, what)
    }

    /// A failure of something that was done for the container.
    pub fn fails(&self, failure: Failure) -> Failure {
        failure_of(&self.name, self.several, failure)
    }
}

/// The container is named where it is this side that speaks, of its processes. What the target says is of the pod, and names a
/// container by itself.
fn failure_of(name: &str, several: bool, failure: Failure) -> Failure {
    match failure.reason {
        FailureReason::NotDumpable | FailureReason::DumpFailed => {
            Failure { message: of_container(name, several, failure.message), ..failure }
        }
        _ => failure,
    }
}

fn of_container(name: &str, several: bool, what: String) -> String {
    if several { format!("container {name}: {what}") } else { what }
}

/// Finds the containers of `pod` with these names and looks at everything that is known to stand in the way of a dump. Returns them
/// in the order of their names in `containers`.
///
/// # Errors
/// With the failure to report. Nothing was touched.
pub async fn inspect(
    context: &Arc<Context>,
    key: &Key,
    pod: &ObjectRef,
    containers: &[String],
) -> Result<Vec<Inspected>, Failure> {
    let object = answer(context.pods(&key.namespace).get(&pod.name))
        .await
        .map_err(|error| retryable(FailureReason::NotMovable, format!("the pod can't be read: {}", chain(&error))))?;
    let named = container::moving(&object, &pod.uid, containers)
        .map_err(|error| retryable(FailureReason::NotMovable, chain(&error)))?;
    let context = context.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let several = named.len() > 1;
        let looked = named.into_iter().map(|named| look(&context, &object, named, several));
        let mut looked: Vec<Inspected> = looked.collect::<Result<_, _>>()?;
        if let Some(first) = looked.first_mut().filter(|_| capability::missing_sys_resource()) {
            // Of the node, and not of any container.
            first.notes.push(capability::NOTE.to_owned());
        }
        has_room(&context, looked.iter().map(|one| one.memory_bytes).sum()).map(|()| looked)
    });
    looked.await.unwrap_or_else(|error| Err(retryable(FailureReason::NotDumpable, chain(&error))))
}

/// Looks at one container, which moves alone or as one of `several`.
fn look(context: &Context, pod: &Pod, Named { name, id }: Named, several: bool) -> Result<Inspected, Failure> {
    let inspected = inspect_one(context, pod, &name, &id, several);
    let mut inspected = inspected.map_err(|failure| failure_of(&name, several, failure))?;
    inspected.notes = inspected.notes.iter().map(|note| inspected.says(note.clone())).collect();
    Ok(inspected)
}

fn inspect_one(context: &Context, pod: &Pod, name: &str, id: &str, several: bool) -> Result<Inspected, Failure> {
    let container =
        container::find(&context.node, id).map_err(|error| retryable(FailureReason::NotDumpable, chain(&error)))?;
    let pids = container.freezer.pids().map_err(|error| retryable(FailureReason::NotDumpable, chain(&error)))?;
    let failed = |error: PreflightError| retryable(FailureReason::NotDumpable, chain(&error));
    let mut findings = preflight::inspect(container.pid, &pids).map_err(failed)?;
    if several {
        findings.extend(preflight::inspect_beside_others(container.pid, &pids).map_err(failed)?);
    }
    if let Some(failure) = not_dumpable(&findings) {
        return Err(failure);
    }
    if pids.iter().any(|pid| lacks_memory(*pid)) {
        // CRIU would take what has not come yet for zeroes.
        let message = "memory of its restore is still being brought";
        return Err(retryable(FailureReason::NotDumpable, message));
    }
    let memory_bytes = memory_bytes(&pids);
    let notes: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let inotify_paths = preflight::inotify_paths(container.pid, &findings);
    let (pod, name) = (pod.clone(), name.to_owned());
    Ok(Inspected { pod, name, container, notes, inotify_paths, memory_bytes, several })
}

/// The failure that these findings are, if they rule a dump out.
pub(super) fn not_dumpable(findings: &[Finding]) -> Option<Failure> {
    let refusal = preflight::refusal(findings)?;
    let passes = findings.iter().filter(|finding| finding.blocks()).all(Finding::is_passing);
    let fails = if passes { retryable } else { permanent };
    Some(fails(FailureReason::NotDumpable, refusal))
}

/// Whether there is room for the images of processes with this much memory, bytes.
fn has_room(context: &Context, memory_bytes: u64) -> Result<(), Failure> {
    let (needed, free) = (memory_bytes + SPARE, free_bytes(&context.settings.state));
    if free < needed {
        let message = format!("the images need {needed} bytes on the source's disk, {free} are free");
        return Err(retryable(FailureReason::NotDumpable, message));
    }
    Ok(())
}

/// Whether a userfaultfd brings what a process touches and does not have. A process that has ended lacks nothing.
fn lacks_memory(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/smaps")).is_ok_and(|smaps| are_brought(&smaps))
}

/// The same, by `/proc/PID/smaps`. Source: proc(5) and Documentation/filesystems/proc.rst, `um` among the VmFlags.
fn are_brought(smaps: &str) -> bool {
    let flags = smaps.lines().filter_map(|line| line.strip_prefix("VmFlags:"));
    flags.flat_map(str::split_whitespace).any(|flag| flag == "um")
}

/// Memory of the processes that an image holds, bytes: resident and swapped out. A process that has ended counts nothing.
fn memory_bytes(pids: &[i32]) -> u64 {
    pids.iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .map(|status| bytes_in(&status))
        .sum()
}

/// What one `/proc/PID/status` says. A kernel thread, and a kernel without swap, has no such line.
fn bytes_in(status: &str) -> u64 {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let kib = |name: &str| line(name)?.trim_end_matches("kB").trim().parse::<u64>().ok();
    ["VmRSS:", "VmSwap:"].into_iter().filter_map(kib).sum::<u64>() << 10
}

/// Free bytes on the file system of `path`; 0 where it can't be told.
pub fn free_bytes(path: &std::path::Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_still_to_come_is_told_from_memory_that_is_followed() {
        let smaps =
            |flags: &str| format!("00400000-00452000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd wr mr {flags}\n");
        assert!(are_brought(&(smaps("ac") + &smaps("um ac"))));
        assert!(!are_brought(&(smaps("uw ac") + &smaps("sd"))));
        assert!(!lacks_memory(std::process::id().cast_signed()));
    }

    #[test]
    fn what_may_be_gone_with_another_attempt_is_tried_again_unless_something_else_is_not() {
        let outside = Finding::OutsideSocket { pid: 1, fd: 3 };
        let stopped = Finding::Stopped { pid: 1 };
        let retried = |findings: &[Finding]| not_dumpable(findings).map(|failure| failure.retryable);
        assert_eq!(retried(&[]), None);
        assert_eq!(retried(std::slice::from_ref(&outside)), Some(true));
        assert_eq!(retried(&[outside, stopped]), Some(false));
    }

    #[test]
    fn a_failure_names_its_container_once_and_only_where_several_move() {
        let failure = |reason, several| failure_of("app", several, retryable(reason, "why")).message;
        assert_eq!(failure(FailureReason::DumpFailed, true), "container app: why");
        assert_eq!(failure(FailureReason::DumpFailed, false), "why");
        assert_eq!(failure(FailureReason::RestoreFailed, true), "why", "that is the target's");
    }

    #[test]
    fn what_is_swapped_out_counts() {
        assert_eq!(bytes_in("Name:\tx\nVmRSS:\t      12 kB\nVmSwap:\t       3 kB\n"), 15 << 10);
        assert_eq!(bytes_in("Name:\tx\nVmRSS:\t      12 kB\n"), 12 << 10);
        assert_eq!(bytes_in("Name:\tx\n"), 0);
    }
}
