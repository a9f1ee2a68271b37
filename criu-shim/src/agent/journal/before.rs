//! Entries of version 1: what an agent has left that knew of one container a pod only. They are read, and never written.

use super::{CheckpointEntry, FrozenEntry, LaneEntry, RestoreEntry, SlowedEntry};
use crate::criu::ProcessId;
use crate::throttle::CpuRecord;
use serde::Deserialize;
use std::path::PathBuf;

/// Version of these entries.
pub(super) const VERSION: u32 = 1;

/// As [`super::Entry`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    namespace: String,
    name: String,
    uid: String,
    attempt: u32,
    side: Side,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Side {
    Source(SourceEntry),
    Target(TargetEntry),
    Slowed(SlowedEntry),
    Checkpoint(CheckpointEntry),
}

/// A pod that may be frozen, and what [`FrozenEntry`] has of its container.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SourceEntry {
    pod_namespace: String,
    pod_name: String,
    pod_uid: String,
    container_id: String,
    cgroup: PathBuf,
    criu: ProcessId,
    #[serde(default)]
    cpu: Vec<CpuRecord>,
}

/// What [`LaneEntry`] has of the container that comes, but for its name.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TargetEntry {
    restore: Option<RestoreEntry>,
    #[serde(default)]
    resumed: bool,
    #[serde(default)]
    cpu: Vec<CpuRecord>,
}

impl Entry {
    /// The same in the words of this version. A container that comes keeps its empty name: its images are in the attempt's own
    /// directory, and not in one of that name below it.
    pub(super) fn into_entry(self) -> super::Entry {
        let Self { namespace, name, uid, attempt, side } = self;
        let side = match side {
            Side::Source(SourceEntry { pod_namespace, pod_name, pod_uid, container_id, cgroup, criu, cpu }) => {
                let containers = vec![FrozenEntry { container_id, cgroup, criu, cpu }];
                super::Side::Source(super::SourceEntry { pod_namespace, pod_name, pod_uid, containers })
            }
            Side::Target(TargetEntry { restore, resumed, cpu }) => {
                let containers = vec![LaneEntry { container: String::new(), restore, resumed, cpu }];
                super::Side::Target(super::TargetEntry { containers, boot: None })
            }
            Side::Slowed(slowed) => super::Side::Slowed(slowed),
            Side::Checkpoint(checkpoint) => super::Side::Checkpoint(checkpoint),
        };
        super::Entry::new(&namespace, &name, &uid, attempt, side)
    }
}
