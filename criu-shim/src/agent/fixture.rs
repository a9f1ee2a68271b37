//! Migrations for tests, built by chained calls: source node `a`, source pod `old`, target node `b`, UID `u`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use tideover_crds::migration::GIVEN_UP;
use tideover_crds::{
    Migration, MigrationReason, MigrationSpec, MigrationStatus, ObjectRef, Owner, Phase, PodRef, SourceReport,
    SourceStep, Strategy, TargetReport, TargetStep,
};

/// Every phase.
pub const PHASES: [Phase; 14] = [
    Phase::Pending,
    Phase::Preparing,
    Phase::PreCopying,
    Phase::Rehearsing,
    Phase::Handover,
    Phase::Freezing,
    Phase::Transferring,
    Phase::Restoring,
    Phase::Committing,
    Phase::RollingBack,
    Phase::BackingOff,
    Phase::Succeeded,
    Phase::Failed,
    Phase::Cancelled,
];

/// A Migration under construction.
#[derive(Clone, Debug)]
pub struct Fixture(Migration);

/// The Migration `move` with nothing but its two nodes and the container `app`.
pub fn migration() -> Fixture {
    let spec = MigrationSpec {
        pod: PodRef { name: "p".into(), uid: None },
        target_node: None,
        reason: MigrationReason::Manual,
    };
    let mut migration = Migration::new("move", spec);
    migration.metadata.uid = Some("u".into());
    migration.metadata.namespace = Some("default".into());
    migration.status = Some(MigrationStatus {
        owner: Some(Owner::new("a", 0)),
        source_pod: Some(ObjectRef { name: "p".into(), uid: "old".into(), node: Some("a".into()) }),
        target_node: Some("b".into()),
        strategy: Some(Strategy::ReplaceFirst),
        containers: vec!["app".into()],
        ..MigrationStatus::default()
    });
    Fixture(migration)
}

impl Fixture {
    fn status(mut self, change: impl FnOnce(&mut MigrationStatus)) -> Self {
        change(self.0.status.get_or_insert_default());
        self
    }

    /// Current attempt.
    pub fn attempt(self, attempt: u32) -> Self {
        self.status(|status| status.attempt = attempt)
    }

    /// Phase.
    pub fn phase(self, phase: Phase) -> Self {
        self.status(|status| status.phase = phase)
    }

    /// Owner.
    pub fn owner(self, node: &str, attempt: u32) -> Self {
        self.status(|status| status.owner = Some(Owner::new(node, attempt)))
    }

    /// A target that has taken the attempt.
    pub fn taken(self, node: &str, attempt: u32) -> Self {
        self.status(|status| status.owner = Some(Owner::tentative(node, attempt)))
    }

    /// Strategy.
    pub fn strategy(self, strategy: Strategy) -> Self {
        self.status(|status| status.strategy = Some(strategy))
    }

    /// Node that the scheduler chose.
    pub fn target_node(self, node: &str) -> Self {
        self.status(|status| status.target_node = Some(node.into()))
    }

    /// Replacement pod, by UID.
    pub fn replacement(self, uid: &str) -> Self {
        self.status(|status| {
            status.replacement = Some(ObjectRef { name: "p".into(), uid: uid.into(), node: Some("b".into()) });
        })
    }

    /// Names of the containers that move.
    pub fn containers(self, names: &[&str]) -> Self {
        self.status(|status| status.containers = names.iter().map(|name| (*name).to_owned()).collect())
    }

    /// Its state was given up after the commit.
    pub fn given_up(self) -> Self {
        self.status(|status| {
            status.conditions.push(Condition {
                type_: GIVEN_UP.into(),
                status: "True".into(),
                reason: "TargetGone".into(),
                message: String::new(),
                observed_generation: None,
                last_transition_time: Time(jiff::Timestamp::UNIX_EPOCH),
            });
        })
    }

    /// Rehearsal pod, by UID.
    pub fn rehearsal(self, uid: &str) -> Self {
        self.status(|status| {
            let name = "move-rehearsal-1".into();
            status.rehearsal = Some(ObjectRef { name, uid: uid.into(), node: Some("b".into()) });
        })
    }

    /// The source's report, of the current attempt.
    pub fn source_step(self, step: SourceStep) -> Self {
        self.status(|status| {
            status.source = Some(SourceReport { step, ..SourceReport::new(status.attempt) });
        })
    }

    /// The target's report, of the current attempt, with an address.
    pub fn target_step(self, step: TargetStep) -> Self {
        let address = Some("10.0.0.2:7443".into());
        self.status(|status| {
            status.target = Some(TargetReport { step, address, ..TargetReport::new(status.attempt) });
        })
    }

    /// Somebody has deleted it; the finalizer keeps it.
    pub fn deleted(mut self) -> Self {
        let now = Time(jiff::Timestamp::UNIX_EPOCH);
        self.0.metadata.deletion_timestamp = Some(now);
        self
    }

    /// The object.
    pub fn build(&self) -> Migration {
        self.0.clone()
    }
}
