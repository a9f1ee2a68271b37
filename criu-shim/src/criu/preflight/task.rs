//! Tasks: their states, tracers and namespaces.

use super::{Finding, PreflightError, unless_gone};
use std::path::{Path, PathBuf};

/// Namespaces that CRIU can't dump below the container's own. (It can nested mount, UTS and IPC namespaces.)
const KINDS: [&str; 4] = ["pid", "user", "net", "time"];

/// Names of a process' namespaces, in the order of [`KINDS`].
pub(super) type Namespaces = [PathBuf; KINDS.len()];

/// The namespaces of a process; none if it is gone.
pub(super) fn namespaces(pid: i32) -> Result<Option<Namespaces>, PreflightError> {
    let mut found = Namespaces::default();
    for (slot, kind) in found.iter_mut().zip(KINDS) {
        let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        match unless_gone(std::fs::read_link(&path), path)? {
            Some(name) => *slot = name,
            None => return Ok(None),
        }
    }
    Ok(Some(found))
}

pub(super) fn inspect(pid: i32, home: &Namespaces, findings: &mut Vec<Finding>) -> Result<(), PreflightError> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let Some(status) = status(&directory)? else { return Ok(()) };
    if status.state == Some('Z') {
        return Ok(());
    }
    if status.state == Some('T') {
        findings.push(Finding::Stopped { pid });
    }
    if let Some(kib) = status.locked_kib.filter(|kib| *kib > 0) {
        findings.push(Finding::LockedMemory { pid, kib });
    }
    if let Some(tracer) = tracer(&directory)? {
        findings.push(Finding::Traced { pid, tracer });
    }
    if let Some(own) = namespaces(pid)? {
        let nested = KINDS.iter().zip(own.iter().zip(home)).filter(|(_, (own, home))| own != home);
        findings.extend(nested.map(|(kind, _)| Finding::NestedNamespace { pid, kind }));
    }
    Ok(())
}

/// Who traces a thread of the process.
fn tracer(directory: &Path) -> Result<Option<i32>, PreflightError> {
    let tasks = directory.join("task");
    let Some(entries) = unless_gone(std::fs::read_dir(&tasks), &tasks)? else { return Ok(None) };
    for entry in entries.flatten() {
        if let Some(tracer) = status(&entry.path())?.and_then(|status| status.tracer) {
            return Ok(Some(tracer));
        }
    }
    Ok(None)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    state: Option<char>,
    tracer: Option<i32>,
    locked_kib: Option<u64>,
}

fn status(directory: &Path) -> Result<Option<Status>, PreflightError> {
    let path = directory.join("status");
    Ok(unless_gone(std::fs::read_to_string(&path), path)?.map(|text| parse(&text)))
}

/// Source: proc_pid_status(5).
fn parse(text: &str) -> Status {
    let mut status = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match key {
            "State" => status.state = value.chars().next(),
            "TracerPid" => status.tracer = value.parse().ok().filter(|tracer| *tracer != 0),
            "VmLck" => status.locked_kib = value.split(' ').next().and_then(|kib| kib.parse().ok()),
            _ => {}
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_by_its_keys() {
        let text = "Name:\tState: x\nState:\tT (stopped)\nTracerPid:\t77\nVmLck:\t      12 kB\n";
        assert_eq!(parse(text), Status { state: Some('T'), tracer: Some(77), locked_kib: Some(12) });
        assert_eq!(parse("State:\tS (sleeping)\nTracerPid:\t0\n").tracer, None);
    }
}
