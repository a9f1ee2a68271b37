//! From the pod in a Migration to its containers on this node: their ids, first processes, bundles and freezers.

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
    /// One that is to move does not run.
    #[error("the container {container} of the pod {name} does not run")]
    NotRunning {
        /// Name of the pod.
        name: String,
        /// Name of the container.
        container: String,
    },
    /// One runs that is not to move.
    #[error("the container {container} of the pod {name} runs beside those that move")]
    RunsBeside {
        /// Name of the pod.
        name: String,
        /// Name of the container.
        container: String,
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
            Self::OtherPod { .. } => true,
            Self::State { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            Self::Freezer(error) => matches!(error, FreezerError::Gone { .. } | FreezerError::ProcessGone { .. }),
            Self::NotRunning { .. } | Self::RunsBeside { .. } | Self::ForeignId(_) | Self::Parse { .. } => false,
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

/// A container as the API server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name in the pod.
    pub name: String,
    /// Its id.
    pub id: String,
}

/// The containers of `pod` that run, of whatever kind.
///
/// # Errors
/// Where it is another pod, or a container is not containerd's.
pub fn running(pod: &Pod, uid: &str) -> Result<Vec<Named>, ContainerError> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let found = pod.metadata.uid.clone().unwrap_or_default();
    if found != uid {
        return Err(ContainerError::OtherPod { name, found, expected: uid.to_owned() });
    }
    let statuses = pod.status.iter().flat_map(|status| {
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses]
    });
    statuses
        .flat_map(|statuses| statuses.iter().flatten())
        .filter(|status| status.state.as_ref().is_some_and(|state| state.running.is_some()))
        .filter_map(|status| Some((status.name.clone(), status.container_id.as_deref()?)))
        .map(|(name, id)| match plain_id(id) {
            Some(id) => Ok(Named { name, id: id.to_owned() }),
            None => Err(ContainerError::ForeignId(id.to_owned())),
        })
        .collect()
}

/// The containers of `pod` named `containers`, in that order.
///
/// # Errors
/// As [`running`], and where one of them does not run, or another one does.
pub fn moving(pod: &Pod, uid: &str, containers: &[String]) -> Result<Vec<Named>, ContainerError> {
    let mut running = running(pod, uid)?;
    let name = || pod.metadata.name.clone().unwrap_or_default();
    let mut moving = Vec::new();
    for container in containers {
        let at = running.iter().position(|one| one.name == *container);
        let at = at.ok_or_else(|| ContainerError::NotRunning { name: name(), container: container.clone() })?;
        moving.push(running.swap_remove(at));
    }
    match running.pop() {
        Some(other) => Err(ContainerError::RunsBeside { name: name(), container: other.name }),
        None => Ok(moving),
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
        assert!(state(std::io::ErrorKind::NotFound).is_absence());
        assert!(ContainerError::Freezer(FreezerError::ProcessGone { pid: 1 }).is_absence());
        assert!(!state(std::io::ErrorKind::PermissionDenied).is_absence());
        let beside = ContainerError::RunsBeside { name: "p".into(), container: "c".into() };
        assert!(!beside.is_absence());
        assert!(!ContainerError::Freezer(FreezerError::NoFreezer).is_absence());
        assert!(!ContainerError::ForeignId("cri-o://a".into()).is_absence());
    }

    /// A pod with containers of these names, ids and states: whether they run.
    fn pod(uid: &str, sidecars: &[(&str, &str, bool)], containers: &[(&str, &str, bool)]) -> Pod {
        let statuses = |containers: &[(&str, &str, bool)]| -> Vec<serde_json::Value> {
            let status = |(name, id, running): &(&str, &str, bool)| {
                let state = if *running { serde_json::json!({ "running": {} }) } else { serde_json::json!({}) };
                serde_json::json!({ "name": name, "containerID": id, "state": state, "ready": true, "image": "",
                                    "imageID": "", "restartCount": 0 })
            };
            containers.iter().map(status).collect()
        };
        serde_json::from_value(serde_json::json!({
            "metadata": { "name": "p", "uid": uid },
            "status": {
                "initContainerStatuses": statuses(sidecars),
                "containerStatuses": statuses(containers),
            },
        }))
        .expect("pod")
    }

    fn ids(pod: &Pod, containers: &[&str]) -> Result<Vec<String>, ContainerError> {
        let containers: Vec<String> = containers.iter().map(|name| (*name).to_owned()).collect();
        Ok(moving(pod, "u", &containers)?.into_iter().map(|one| one.id).collect())
    }

    #[test]
    fn the_containers_are_those_that_run_in_exactly_this_pod_in_the_order_in_which_they_are_named() {
        let sidecars = [("setup", "containerd://1", false), ("proxy", "containerd://2", true)];
        let containers = [("log", "containerd://4", true), ("app", "containerd://3", true)];
        let good = pod("u", &sidecars, &containers);
        assert_eq!(ids(&good, &["proxy", "app", "log"]).expect("found"), ["2", "3", "4"]);
        assert!(matches!(running(&good, "v"), Err(ContainerError::OtherPod { .. })));
        for (named, missing) in [(vec!["proxy", "setup"], "setup"), (vec!["app", "no"], "no")] {
            let refused = ids(&good, &named).expect_err("it does not run");
            assert!(matches!(refused, ContainerError::NotRunning { container, .. } if container == missing));
        }
        let beside = ids(&good, &["app", "log"]).expect_err("it would be left behind");
        assert!(matches!(beside, ContainerError::RunsBeside { container, .. } if container == "proxy"));
    }

    #[test]
    fn a_pod_of_which_nothing_runs_is_no_error_and_a_foreign_runtime_is() {
        assert_eq!(running(&pod("u", &[], &[("app", "containerd://a", false)]), "u").expect("a pod"), []);
        for id in ["cri-o://abc", "containerd://../..", "containerd://"] {
            let foreign = running(&pod("u", &[], &[("app", id, true)]), "u");
            assert!(matches!(foreign, Err(ContainerError::ForeignId(_))));
        }
    }
}
