//! A move at any point of its way, built from one line to the next.

use crate::transition::{
    Action, Claim, Controller, Decision, NodeSeen, Observed, PodSeen, Room, RunState, SourceSeen, transition,
};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tideover_crds::{
    Failure, FailureReason, HostFacts, Migration, MigrationReason, MigrationStatus, ObjectRef, Owner, Phase, PhaseTime,
    ResolvedPolicy, SourceReport, SourceStep, Strategy, TargetReport, TargetStep, names,
};

pub(super) struct Scene {
    pub(super) observed: Observed,
    pub(super) now: Timestamp,
}

pub(super) fn pod(name: &str, uid: &str, node: Option<&str>) -> PodSeen {
    PodSeen {
        name: name.into(),
        uid: uid.into(),
        node: node.map(str::to_owned),
        terminating: false,
        force_deleted: false,
        state: RunState::Running,
        unschedulable: None,
    }
}

pub(super) fn host() -> HostFacts {
    HostFacts {
        architecture: "x86_64".into(),
        cpu_features: "avx sse2".into(),
        kernel: "6.1.0".into(),
        criu: "4.2".into(),
        protocol: 1,
    }
}

pub(super) fn source_report(attempt: u32, step: SourceStep) -> SourceReport {
    SourceReport { step, host: Some(host()), ..SourceReport::new(attempt) }
}

pub(super) fn target_report(attempt: u32, step: TargetStep) -> TargetReport {
    let address = Some("10.0.0.2:7443".into());
    TargetReport { step, address, host: Some(host()), ..TargetReport::new(attempt) }
}

pub(super) fn failure(reason: FailureReason, retryable: bool) -> Failure {
    Failure { reason, message: format!("it was {reason:?}"), retryable }
}

impl Scene {
    /// A Migration that nobody has looked at yet, of a Deployment's pod on the node `a`.
    pub(super) fn new() -> Self {
        let migration: Migration = serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "Migration",
            "metadata": { "name": "m", "namespace": "ns", "uid": "mu", "resourceVersion": "1", "generation": 1,
                          "finalizers": [names::FINALIZER] },
            "spec": { "pod": { "name": "p" } },
        }))
        .expect("a Migration");
        let source = SourceSeen {
            pod: pod("p", "pu", Some("a")),
            containers: vec!["app".into()],
            obstacles: Vec::new(),
            rehearsal_obstacle: None,
            claim: Claim::Free,
            controller: Some(Controller { kind: "ReplicaSet".into(), uid: "ru".into() }),
            template_hash: Some("hash".into()),
            original_template_hash: None,
            in_job: false,
            manifest: json!({ "metadata": { "name": "p" } }),
        };
        let observed = Observed {
            migration,
            source: Some(source),
            source_node: NodeSeen::Present { schedulable: true },
            target_node: None,
            reservation: None,
            rehearsal: None,
            replacements: Vec::new(),
            policy: None,
            reason_stands: true,
            room: Room { active: 0, max_active: 5, outbound: 0, max_outbound: 2, of_controller: 0 },
            excluded: false,
            refused: None,
        };
        Self { observed, now: Timestamp::from_second(1_000_000).expect("a time") }
    }

    /// The same of a pod without a controller.
    pub(super) fn bare(mut self) -> Self {
        let source = self.source();
        source.controller = None;
        source.template_hash = None;
        if let Some(status) = &mut self.observed.migration.status {
            status.strategy = Some(Strategy::DeleteFirst);
            status.controller_uid = None;
            status.pod_manifest = Some(json!({ "metadata": { "name": "p" } }));
        }
        self
    }

    pub(super) fn source(&mut self) -> &mut SourceSeen {
        self.observed.source.as_mut().expect("a source")
    }

    pub(super) fn status(&mut self) -> &mut MigrationStatus {
        self.observed.migration.status.get_or_insert_default()
    }

    /// Accepted, in `phase` of attempt 1, which began just now; with reservation or replacement as it is then.
    pub(super) fn at(mut self, phase: Phase) -> Self {
        self.source().claim = Claim::Ours;
        let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(self.now);
        let times = [Phase::Preparing, phase].map(|phase| PhaseTime { phase, attempt: 1, at: now.clone() });
        *self.status() = MigrationStatus {
            phase,
            attempt: 1,
            owner: Some(Owner::new("a", 0)),
            policy: Some(ResolvedPolicy::from_policy(None, &Default::default())),
            strategy: Some(Strategy::ReplaceFirst),
            source_pod: Some(ObjectRef { name: "p".into(), uid: "pu".into(), node: Some("a".into()) }),
            controller_uid: Some("ru".into()),
            phases: times.to_vec(),
            ..Default::default()
        };
        if phase > Phase::Preparing {
            self = self.reserved();
            self = self.target(TargetStep::Listening).reports(SourceStep::Ready);
        }
        if phase > Phase::Handover {
            self.observed.reservation = None;
            self = self.taken_out().replaced();
        }
        self
    }

    /// The reservation is bound to the node `b`.
    pub(super) fn reserved(mut self) -> Self {
        self.observed.reservation = Some(pod("m-reservation-1", "vu", Some("b")));
        self.observed.target_node = Some(NodeSeen::Present { schedulable: true });
        self.status().target_node = Some("b".into());
        self.status().reservation =
            Some(ObjectRef { name: "m-reservation-1".into(), uid: "vu".into(), node: Some("b".into()) });
        self
    }

    /// The rehearsal is there and recorded.
    pub(super) fn rehearsed_in(mut self, state: RunState) -> Self {
        self.observed.rehearsal = Some(PodSeen { state, ..pod("m-rehearsal-1", "hu", Some("b")) });
        self.status().rehearsal =
            Some(ObjectRef { name: "m-rehearsal-1".into(), uid: "hu".into(), node: Some("b".into()) });
        self
    }

    /// The source is out of its ReplicaSet.
    pub(super) fn taken_out(mut self) -> Self {
        self.source().template_hash = Some("hash-moving".into());
        self.source().original_template_hash = Some("hash".into());
        self
    }

    /// The replacement is there and recorded.
    pub(super) fn replaced(mut self) -> Self {
        let mut replacement = pod("q", "qu", Some("b"));
        replacement.state = RunState::Pending;
        self.observed.replacements = vec![replacement];
        self.status().replacement = Some(ObjectRef { name: "q".into(), uid: "qu".into(), node: Some("b".into()) });
        self
    }

    pub(super) fn reports(mut self, step: SourceStep) -> Self {
        self.status().source = Some(source_report(1, step));
        self
    }

    pub(super) fn target(mut self, step: TargetStep) -> Self {
        self.status().target = Some(target_report(1, step));
        self
    }

    pub(super) fn source_fails(mut self, failure: Failure) -> Self {
        self.status().source.as_mut().expect("a report").failure = Some(failure);
        self
    }

    pub(super) fn target_fails(mut self, failure: Failure) -> Self {
        self.status().target.as_mut().expect("a report").failure = Some(failure);
        self
    }

    /// The target has won attempt 1.
    pub(super) fn committed(mut self) -> Self {
        self.status().owner = Some(Owner::new("b", 1));
        self
    }

    /// The target has taken attempt 1.
    pub(super) fn taken(mut self) -> Self {
        self.status().owner = Some(Owner::tentative("b", 1));
        self
    }

    /// The source has won attempt 1.
    pub(super) fn aborted(mut self) -> Self {
        self.status().owner = Some(Owner::new("a", 1));
        self
    }

    pub(super) fn failed_before(mut self, failure: Failure) -> Self {
        self.status().failures.push(failure);
        self
    }

    pub(super) fn deleted(mut self) -> Self {
        self.observed.migration.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now));
        self
    }

    pub(super) fn asked_by(mut self, reason: MigrationReason) -> Self {
        self.observed.migration.spec.reason = reason;
        self
    }

    pub(super) fn reason_gone(mut self) -> Self {
        self.observed.reason_stands = false;
        self
    }

    pub(super) fn source_gone(mut self) -> Self {
        self.observed.source = None;
        self
    }

    /// The target's Node object does not exist any more.
    pub(super) fn target_gone(mut self) -> Self {
        self.observed.target_node = Some(NodeSeen::Gone);
        self
    }

    /// What was decided is written and is what is observed next.
    pub(super) fn written(mut self) -> Self {
        if let Some(status) = self.ask().status {
            *self.status() = status;
        }
        self
    }

    /// The source's name is another pod's, with this UID.
    pub(super) fn name_taken(mut self, uid: &str) -> Self {
        let mut other = Self::new().source().clone();
        other.pod.uid = uid.into();
        self.observed.source = Some(other);
        self
    }

    pub(super) fn after(mut self, seconds: i64) -> Self {
        self.now += SignedDuration::from_secs(seconds);
        self
    }

    pub(super) fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    pub(super) fn decide(&self) -> Told {
        Told { before: self.observed.migration.status.clone().unwrap_or_default(), decision: self.ask() }
    }

    pub(super) fn ask(&self) -> Decision {
        transition(&self.observed, self.now)
    }
}

/// A decision, to be asked about.
pub(super) struct Told {
    before: MigrationStatus,
    pub(super) decision: Decision,
}

impl Told {
    pub(super) fn status(&self) -> &MigrationStatus {
        self.decision.status.as_ref().unwrap_or(&self.before)
    }

    #[track_caller]
    pub(super) fn phase(self, phase: Phase) -> Self {
        assert_eq!(self.status().phase, phase, "{:?}", self.status().message);
        self
    }

    #[track_caller]
    pub(super) fn says(self, message: &str) -> Self {
        assert_eq!(self.status().message.as_deref(), Some(message));
        self
    }

    /// The actions, by name, without Events.
    #[track_caller]
    pub(super) fn does(self, expected: &[&str]) -> Self {
        let told: Vec<String> = self.decision.actions.iter().filter_map(word).collect();
        assert_eq!(told, expected);
        self
    }

    /// The Events, by reason.
    #[track_caller]
    pub(super) fn announces(self, expected: &[&str]) -> Self {
        let events = self.decision.actions.iter().filter_map(|action| match action {
            Action::Announce(event) => Some(event.reason.as_str()),
            _ => None,
        });
        assert_eq!(events.collect::<Vec<_>>(), expected);
        self
    }

    /// Status of a condition; none where there is no such condition.
    pub(super) fn condition(&self, type_: &str) -> Option<&str> {
        let conditions = &self.status().conditions;
        conditions.iter().find(|one| one.type_ == type_).map(|one| one.status.as_str())
    }

    #[track_caller]
    pub(super) fn failed_with(self, reason: FailureReason) -> Self {
        assert_eq!(self.status().failures.last().map(|failure| failure.reason), Some(reason));
        self
    }
}

fn word(action: &Action) -> Option<String> {
    Some(match action {
        Action::AddFinalizer => "add finalizer".into(),
        Action::RemoveFinalizer => "remove finalizer".into(),
        Action::ClaimPod { instead_of: None, .. } => "claim".into(),
        Action::ClaimPod { instead_of: Some(old), .. } => format!("claim instead of {old}"),
        Action::ReleasePod { uid, .. } => format!("release {uid}"),
        Action::CreateReservation(wish) => format!("reserve {}", wish.name),
        Action::CreateRehearsal(wish) => format!("rehearse {} on {}", wish.name, wish.node),
        Action::DeletePod { uid, grace_seconds, .. } => format!("delete {uid} in {grace_seconds} s"),
        Action::TakeOutOfReplicaSet { uid, hash, .. } => format!("take out {uid} of {hash}"),
        Action::PutBackIntoReplicaSet { uid, hash, .. } => format!("put back {uid} into {hash}"),
        Action::TakeOutOfJob { uid, .. } => format!("take {uid} out of its Job"),
        Action::CreateReplacement { node, .. } => format!("replace on {node}"),
        Action::CreateCold { .. } => "make it again, cold".into(),
        Action::Abort { seen, node, attempt } => format!("abort {attempt} for {node} at {}", seen.attempt),
        Action::Keep { seen } => format!("commit {} for {}", seen.attempt, seen.node),
        Action::Announce(_) => return None,
    })
}
