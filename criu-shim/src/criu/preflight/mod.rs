//! What can be known before a freeze about whether CRIU will be able to dump these processes.
//!
//! Reads `/proc`, looks at sockets through pidfds and into the pod's namespaces by threads of their own; changes nothing. What it can't
//! see CRIU itself refuses later, inside the freeze. Neither can see Landlock rules or PR_SET_MDWE: no interface of the kernel
//! shows them from outside of the task.

mod descriptor;
mod finding;
mod ipc;
mod task;
mod unix;

pub use finding::Finding;

use std::collections::BTreeSet;
use std::path::PathBuf;
use thiserror::Error;

/// CRIU keeps pipes of one dump in tables of 1,024; a few are its own.
const MAX_PIPES: usize = 1_000;

/// Why processes could not be looked at.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// The container's init process is gone.
    #[error("process {pid} is gone")]
    Gone {
        /// Id of the process.
        pid: i32,
    },
    /// It is not known what is in the IPC namespace.
    #[error("look into the IPC namespace of process {pid}")]
    Ipc {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not known what its sockets are connected to.
    #[error("ask for the unix sockets in the network namespace of process {pid}")]
    Sockets {
        /// Id of the process.
        pid: i32,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file in `/proc` could not be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Looks at all processes of a container, of which `init` is the first. A process that ends meanwhile is left out.
///
/// # Errors
/// [`PreflightError::Gone`] when `init` has ended.
pub fn inspect(init: i32, pids: &[i32]) -> Result<Vec<Finding>, PreflightError> {
    let home = task::namespaces(init)?.ok_or(PreflightError::Gone { pid: init })?;
    let mut findings = Vec::new();
    let mut pipes = BTreeSet::new();
    for pid in pids {
        task::inspect(*pid, &home, &mut findings)?;
        descriptor::inspect(*pid, init, &mut pipes, &mut findings)?;
    }
    if pipes.len() > MAX_PIPES {
        findings.push(Finding::TooManyPipes { count: pipes.len(), limit: MAX_PIPES });
    }
    findings.extend(ipc::inspect(init)?.findings);
    Ok(findings)
}

/// Looks for what a container, of which `init` is the first process and `pids` are all, has in common with another one of its pod.
///
/// # Errors
/// [`PreflightError::Sockets`].
pub fn inspect_beside_others(init: i32, pids: &[i32]) -> Result<Vec<Finding>, PreflightError> {
    unix::inspect(init, pids)
}

/// Whether there are System V objects in the IPC namespace of process `init`, which a CRIU dumps from outside only.
///
/// # Errors
/// [`PreflightError::Ipc`].
pub fn holds_system_v(init: i32) -> Result<bool, PreflightError> {
    Ok(ipc::inspect(init)?.system_v)
}

/// Looks again, at frozen processes of which `init` is one, for what may have come since and what a dump would leave out without a
/// word: for a CRIU that is not `outside` of their IPC namespace, every System V object.
///
/// # Errors
/// [`PreflightError::Ipc`].
pub fn inspect_frozen(init: i32, outside: bool) -> Result<Vec<Finding>, PreflightError> {
    let ipc::Inside { mut findings, system_v } = ipc::inspect(init)?;
    findings.extend((system_v && !outside).then_some(Finding::SystemVSince));
    Ok(findings)
}

/// Why these findings rule a dump out, if they do: a sentence each.
pub fn refusal(findings: &[Finding]) -> Option<String> {
    let blocking: Vec<String> = findings.iter().filter(|finding| finding.blocks()).map(ToString::to_string).collect();
    (!blocking.is_empty()).then(|| blocking.join("; "))
}

/// Where CRIU should look for files with inotify watches: the top directories of the container, if a watch is on its
/// root file system; else nowhere, because it costs a scan inside the freeze.
pub fn inotify_paths(init: i32, findings: &[Finding]) -> Vec<String> {
    if !findings.iter().any(|finding| matches!(finding, Finding::InotifyOnRoot { .. })) {
        return Vec::new();
    }
    const KERNELS: [&str; 3] = ["proc", "sys", "dev"];
    let Ok(entries) = std::fs::read_dir(format!("/proc/{init}/root")) else { return Vec::new() };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let names = directories.filter_map(|entry| entry.file_name().into_string().ok());
    let mut paths: Vec<String> =
        names.filter(|name| !KERNELS.contains(&name.as_str())).map(|name| format!("/{name}")).collect();
    paths.sort();
    paths
}

/// What a read in `/proc` is worth when the process may end at any time.
fn unless_gone<T>(result: std::io::Result<T>, path: impl Into<PathBuf>) -> Result<Option<T>, PreflightError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(source) => Err(PreflightError::Read { path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    /// In an IPC namespace of its own, as in a pod.
    fn sleeper(script: &str) -> Child {
        let spawn = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWIPC).unwrap();
            Command::new("sh").arg("-c").arg(script).stdout(Stdio::null()).spawn().unwrap()
        };
        std::thread::scope(|scope| scope.spawn(spawn).join().unwrap())
    }

    #[test]
    fn an_ordinary_process_has_nothing_that_blocks() {
        let mut child = sleeper("sleep 60");
        let pid = child.id() as i32;
        let findings = inspect(pid, &[pid]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!findings.iter().any(Finding::blocks), "{findings:?}");
    }

    #[test]
    fn a_stopped_process_is_found() {
        let mut child = sleeper("kill -STOP $$; sleep 60");
        let pid = child.id() as i32;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        let found = loop {
            let found = inspect(pid, &[pid]).unwrap().contains(&Finding::Stopped { pid });
            if found || std::time::Instant::now() > deadline {
                break found;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error_only_if_it_is_the_first() {
        let mut child = sleeper("sleep 60");
        let found = inspect(child.id() as i32, &[i32::MAX]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.unwrap().is_empty());
        assert!(matches!(inspect(i32::MAX, &[]), Err(PreflightError::Gone { .. })));
    }
}
