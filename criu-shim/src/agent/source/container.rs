//! From the pod in a Migration to the container on this node: its id, first process, bundle and freezer.

use crate::agent::host::NodeRoot;
use crate::freezer::{Freezer, FreezerError};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Where runc keeps its state for containerd's CRI, and where containerd keeps bundles.
const RUNC_STATE: &str = "/run/containerd/runc/k8s.io";
const BUNDLES: &str = "/run/containerd/io.containerd.runtime.v2.task/k8s.io";
/// Largest state file of runc that is read, bytes. Real ones have some ten thousand.
const MAX_STATE: u64 = 4 << 20;

/// Why the container can't be found.
#[derive(Debug, Error)]
pub enum ContainerError {
    /// Another pod of the same name.
    #[error("the pod {name} has UID {found}, not {expected}")]
    OtherPod {
        /// Name of the pod.
        name: String,
        /// UID that it has.
        found: String,
        /// UID that was looked for.
        expected: String,
    },
    /// Not exactly one container that runs.
    #[error("the pod {name} has {running} running containers, one is needed")]
    NotOneRunning {
        /// Name of the pod.
        name: String,
        /// How many run.
        running: usize,
    },
    /// Not containerd.
    #[error("container id {0:?} is not one of containerd's")]
    ForeignId(String),
    /// runc does not know it (any more).
    #[error("read runc's state of the container, {path:?}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// runc's state is not what was expected.
    #[error("parse runc's state of the container, {path:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// No freezer.
    #[error("find the container's freezer")]
    Freezer(#[from] FreezerError),
}

impl ContainerError {
    /// Whether it means that no container of exactly this pod runs; any other error leaves that open.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::OtherPod { .. } | Self::NotOneRunning { running: 0, .. } => true,
            Self::State { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Freezer(error) => matches!(error, FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }),
            Self::NotOneRunning { .. } | Self::ForeignId(_) | Self::Parse { .. } => false,
        }
    }
}

/// A running container.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its first process, as the node counts.
    pub pid: i32,
    /// Its bundle, as a path on the node.
    pub bundle: PathBuf,
    /// Its freezer.
    pub freezer: Freezer,
}

/// The id of the one container of `pod` that runs.
///
/// # Errors
/// Where it is another pod, or not exactly one container runs.
pub fn container_id(pod: &Pod, uid: &str) -> Result<String, ContainerError> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let found = pod.metadata.uid.clone().unwrap_or_default();
    if found != uid {
        return Err(ContainerError::OtherPod { name, found, expected: uid.to_owned() });
    }
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    let mut running: Vec<&str> = statuses
        .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
        .filter_map(|status| status.container_id.as_deref())
        .collect();
    match (running.pop(), running.len()) {
        (Some(id), 0) => plain_id(id).map(str::to_owned).ok_or_else(|| ContainerError::ForeignId(id.to_owned())),
        (last, others) => Err(ContainerError::NotOneRunning { name, running: others + usize::from(last.is_some()) }),
    }
}

fn plain_id(id: &str) -> Option<&str> {
    let id = id.strip_prefix("containerd://")?;
    (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

/// Finds the container `id` on the node. Blocking.
///
/// # Errors
/// Where runc or the kernel does not know it.
pub fn find(node: &NodeRoot, id: &str) -> Result<Container, ContainerError> {
    let path = node.path(&Path::new(RUNC_STATE).join(id).join("state.json"));
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_STATE).read_to_end(&mut text))
        .map_err(|source| ContainerError::State { path: path.clone(), source })?;
    let state: RuncState = serde_json::from_slice(&text).map_err(|source| ContainerError::Parse { path, source })?;
    let freezer = Freezer::of_process(state.init_process_pid, node.root())?;
    Ok(Container { id: id.to_owned(), pid: state.init_process_pid, bundle: Path::new(BUNDLES).join(id), freezer })
}

/// The part of runc's `state.json` (libcontainer `State`) that is needed.
#[derive(Deserialize)]
struct RuncState {
    init_process_pid: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_that_nothing_runs_counts_as_absence() {
        let state = |kind: std::io::ErrorKind| ContainerError::State { path: "/x".into(), source: kind.into() };
        let count = |running| ContainerError::NotOneRunning { name: "p".into(), running };
        assert!(state(std::io::ErrorKind::NotFound).is_absence());
        assert!(count(0).is_absence());
        assert!(ContainerError::Freezer(FreezerError::ProcessGone { pid: 1 }).is_absence());
        assert!(!state(std::io::ErrorKind::PermissionDenied).is_absence());
        assert!(!count(2).is_absence());
        assert!(!ContainerError::Freezer(FreezerError::NoFreezer).is_absence());
        assert!(!ContainerError::ForeignId("cri-o://a".into()).is_absence());
    }

    fn pod(uid: &str, statuses: &[(&str, bool)]) -> Pod {
        let statuses: Vec<_> = statuses
            .iter()
            .map(|(id, running)| {
                let state = if *running { serde_json::json!({ "running": {} }) } else { serde_json::json!({}) };
                serde_json::json!({ "name": "c", "containerID": id, "state": state, "ready": true, "image": "",
                                    "imageID": "", "restartCount": 0 })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": "p", "uid": uid },
            "status": { "containerStatuses": statuses },
        }))
        .expect("pod")
    }

    #[test]
    fn the_container_is_the_one_that_runs_in_exactly_this_pod() {
        let good = pod("u", &[("containerd://abc123", true)]);
        assert_eq!(container_id(&good, "u").expect("found"), "abc123");
        assert!(matches!(container_id(&good, "v"), Err(ContainerError::OtherPod { .. })));
        let two = pod("u", &[("containerd://a", true), ("containerd://b", true)]);
        assert!(matches!(container_id(&two, "u"), Err(ContainerError::NotOneRunning { running: 2, .. })));
        let none = pod("u", &[("containerd://a", false)]);
        assert!(matches!(container_id(&none, "u"), Err(ContainerError::NotOneRunning { running: 0, .. })));
        for id in ["cri-o://abc", "containerd://../..", "containerd://"] {
            assert!(matches!(container_id(&pod("u", &[(id, true)]), "u"), Err(ContainerError::ForeignId(_))));
        }
    }
}
