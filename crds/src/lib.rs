//! The API objects of Tideover (`tideover.dev/v1alpha1`), and nothing else.
//!
//! This crate owns the shape of what people and programs write to the API server, and the names of labels and
//! annotations. It decides nothing and never does I/O: `operator` and `criu-shim` share these types and no other code.
//!
//! One writer per field: the operator writes phase, conditions, attempt and everything it chose; the source's agent
//! writes `status.source`; the target's agent writes `status.target`. `status.owner` alone has several writers, which
//! is why it is only ever written by a compare-and-swap ([`migration::Owner`]).

// Each printer column is an attribute of its own, and two of one type look alike to this lint.
#![allow(clippy::duplicated_attributes)]

pub mod checkpoint;
pub mod migration;
pub mod names;
pub mod node_maintenance;
pub mod obstacle;
pub mod pre_copy;
pub mod protected_workload;
pub mod report;
pub mod restart;
pub mod restart_report;
pub mod supervision;

pub use checkpoint::CheckpointPolicy;
pub use migration::{
    Migration, MigrationReason, MigrationSpec, MigrationStatus, ObjectRef, Owner, Phase, PhaseTime, PodRef,
    ResolvedPolicy, Strategy,
};
pub use node_maintenance::{NodeMaintenance, NodeMaintenanceSpec, NodeMaintenanceStatus, PodProgress};
pub use obstacle::{Obstacle, ObstacleReason};
pub use pre_copy::{NonConvergence, PreCopyPolicy, ResolvedPreCopy};
pub use protected_workload::{
    FailurePolicy, MaintenanceAction, MigrationPolicy, OnMaintenance, PodProtection, PodRestarts, ProtectedWorkload,
    ProtectedWorkloadSpec, ProtectedWorkloadStatus, StartLimitMove,
};
pub use report::{
    Compression, Convergence, Failure, FailureReason, HostFacts, MemoryEngine, PreCopied, Round, SourceReport,
    SourceStep, SourceTimings, TargetReport, TargetStep, TargetTimings,
};
pub use restart::RestartPolicy;
pub use restart_report::RestartReport;
pub use supervision::Supervision;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// Every CustomResourceDefinition of Tideover, in the order in which they are printed and installed.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![ProtectedWorkload::crd(), Migration::crd(), NodeMaintenance::crd()]
}
