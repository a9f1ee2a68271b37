//! The decision in the making: the status as it is going to be, and what was decided so far.

use super::decision::{Action, Announcement, Decision, PodRole, RehearsalWish, ReservationWish};
use super::observed::{Observed, PodSeen, SourceSeen};
use crate::condition::{self, Says};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use std::time::Duration;
use tideover_crds::{Migration, MigrationStatus, ObjectRef, Phase, PhaseTime, names};

/// One run of the state machine.
pub(super) struct Step<'a> {
    pub(super) observed: &'a Observed,
    pub(super) now: Timestamp,
    pub(super) status: MigrationStatus,
    actions: Vec<Action>,
    requeue: Option<Duration>,
}

impl<'a> Step<'a> {
    pub(super) fn new(observed: &'a Observed, now: Timestamp) -> Self {
        let status = observed.migration.status.clone().unwrap_or_default();
        Self { observed, now, status, actions: Vec::new(), requeue: None }
    }

    pub(super) fn into_decision(mut self) -> Decision {
        let before = self.observed.migration.status.as_ref();
        let changed = before != Some(&self.status) && !(before.is_none() && self.status == MigrationStatus::default());
        if changed {
            self.status.observed_generation = self.observed.migration.metadata.generation;
        }
        // What moves the pod goes before what tells people: some of it is inside the freeze.
        self.actions.sort_by_key(|action| matches!(action, Action::Announce(_)));
        Decision { status: changed.then_some(self.status), actions: self.actions, requeue: self.requeue }
    }

    pub(super) fn migration(&self) -> &'a Migration {
        &self.observed.migration
    }

    pub(super) fn name(&self) -> &'a str {
        self.observed.migration.metadata.name.as_deref().unwrap_or_default()
    }

    /// The pod that this Migration was accepted for, as long as that very pod exists.
    pub(super) fn source(&self) -> Option<&'a SourceSeen> {
        let accepted = self.status.source_pod.as_ref()?;
        self.observed.source.as_ref().filter(|source| source.pod.uid == accepted.uid)
    }

    pub(super) fn source_node(&self) -> String {
        self.status.source_pod.as_ref().and_then(|pod| pod.node.clone()).unwrap_or_default()
    }

    pub(super) fn target_node(&self) -> String {
        self.status.target_node.clone().unwrap_or_default()
    }

    pub(super) fn target_is_gone(&self) -> bool {
        self.observed.target_node.is_some_and(|node| node.is_gone())
    }

    /// The replacement that was recorded, as long as that very pod exists.
    pub(super) fn replacement(&self) -> Option<&'a PodSeen> {
        let recorded = self.status.replacement.as_ref()?;
        self.observed.replacements.iter().find(|pod| pod.uid == recorded.uid)
    }

    /// Decides to do something; a phase that is entered and then looked at once more decides it once.
    pub(super) fn act(&mut self, action: Action) {
        if !self.actions.contains(&action) {
            self.actions.push(action);
        }
    }

    pub(super) fn delete(&mut self, role: PodRole, pod: &PodSeen, grace_seconds: u32) {
        let asked = if grace_seconds == 0 { pod.force_deleted } else { pod.terminating };
        if !asked {
            self.act(Action::DeletePod { role, name: pod.name.clone(), uid: pod.uid.clone(), grace_seconds });
        }
    }

    /// Moves on to `phase`, and says in one sentence what is waited for now.
    pub(super) fn enter(&mut self, phase: Phase, message: impl Into<String>) {
        if self.status.phase != phase {
            self.status.phase = phase;
            let at = MicroTime(self.now);
            self.status.phases.push(PhaseTime { phase, attempt: self.status.attempt, at });
        }
        self.say(message);
    }

    /// Says in one sentence what is waited for.
    pub(super) fn say(&mut self, message: impl Into<String>) {
        self.status.message = Some(message.into());
    }

    pub(super) fn announce(&mut self, warning: bool, reason: &str) {
        self.announce_on(warning, reason, None);
    }

    /// The same, and among the Events of the pod that has the application now as well.
    pub(super) fn announce_with_pod(&mut self, warning: bool, reason: &str) {
        self.announce_on(warning, reason, self.status.replacement.clone());
    }

    fn announce_on(&mut self, warning: bool, reason: &str, pod: Option<ObjectRef>) {
        let note = self.status.message.clone().unwrap_or_default();
        self.act(Action::Announce(Announcement { warning, reason: reason.to_owned(), note, pod }));
    }

    pub(super) fn condition(&mut self, type_: &str, holds: bool, reason: &str) {
        let message = self.status.message.clone().unwrap_or_default();
        let says = Says { holds, reason, message: &message };
        let generation = self.observed.migration.metadata.generation;
        condition::set(&mut self.status.conditions, type_, &says, generation, self.now);
    }

    /// Ends the move in a terminal phase.
    pub(super) fn end(&mut self, phase: Phase, message: impl Into<String>) {
        self.enter(phase, message);
        let reason = format!("{phase:?}");
        self.condition(super::ended::COMPLETED, true, &reason);
        self.announce(phase == Phase::Failed, &reason);
    }

    /// Looks again after `pause` at the latest.
    pub(super) fn wake_in(&mut self, pause: Duration) {
        self.requeue = Some(self.requeue.map_or(pause, |earlier| earlier.min(pause)));
    }

    /// How long ago `phase` of the current attempt began.
    pub(super) fn since(&self, phase: Phase) -> Option<Duration> {
        let entry = self
            .status
            .phases
            .iter()
            .rev()
            .find(|entry| entry.phase == phase && entry.attempt == self.status.attempt)?;
        // A clock that was set back makes the time shorter, never negative.
        Some(Duration::try_from(self.now.duration_since(entry.at.0)).unwrap_or_default())
    }

    /// The reservation pod that this attempt wants.
    pub(super) fn reservation_wish(&self) -> ReservationWish {
        let only_on = self.migration().spec.target_node.clone();
        let mut never_on = vec![self.source_node()];
        never_on.extend(self.status.incompatible_nodes.iter().cloned());
        ReservationWish {
            name: reservation_name(self.name(), self.status.attempt),
            rather_not_on: if only_on.is_some() { Vec::new() } else { self.status.avoided_nodes.clone() },
            only_on,
            never_on,
        }
    }

    /// The rehearsal pod that this attempt wants.
    pub(super) fn rehearsal_wish(&self) -> RehearsalWish {
        RehearsalWish {
            name: rehearsal_name(self.name(), self.status.attempt),
            source_uid: self.status.source_pod.as_ref().map(|pod| pod.uid.clone()).unwrap_or_default(),
            node: self.target_node(),
        }
    }

    /// Deletes what was made beside the source: the reservation and the rehearsal.
    pub(super) fn clear_away(&mut self) {
        if let Some(pod) = &self.observed.rehearsal {
            self.delete(PodRole::Rehearsal, pod, 0);
        }
        if let Some(pod) = &self.observed.reservation {
            self.delete(PodRole::Reservation, pod, 0);
        }
    }

    pub(super) fn has_finalizer(&self) -> bool {
        self.migration().metadata.finalizers.iter().flatten().any(|name| name == names::FINALIZER)
    }

    pub(super) fn is_deleted(&self) -> bool {
        self.migration().metadata.deletion_timestamp.is_some()
    }
}

/// Name of the reservation pod of one attempt.
pub(crate) fn reservation_name(migration: &str, attempt: u32) -> String {
    name_beside(migration, &format!("-reservation-{attempt}"))
}

/// Name of the rehearsal pod of one attempt.
pub(crate) fn rehearsal_name(migration: &str, attempt: u32) -> String {
    name_beside(migration, &format!("-rehearsal-{attempt}"))
}

/// Names of pods end at 253 characters.
fn name_beside(migration: &str, suffix: &str) -> String {
    let keep = migration.len().min(253 - suffix.len());
    format!("{}{suffix}", migration[..keep].trim_end_matches(['-', '.']))
}
