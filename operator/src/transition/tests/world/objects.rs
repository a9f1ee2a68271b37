//! What the actions do to pods and nodes, and what pods and nodes do by themselves.

use super::super::fixture::{Scene, pod};
use super::{Process, World};
use crate::transition::{Action, Claim, NodeSeen, PodRole, PodSeen, RunState};
use tideover_crds::migration::Verdict;
use tideover_crds::{Owner, Phase, Strategy, TargetStep};

impl World {
    pub(super) fn act(&mut self, action: &Action) {
        let status = self.status();
        let observed = &mut self.scene.observed;
        match action {
            Action::ClaimPod { uid, .. } => {
                if let Some(source) = observed.source.as_mut().filter(|source| source.pod.uid == *uid) {
                    source.claim = Claim::Ours;
                }
            }
            Action::ReleasePod { uid, .. } => {
                if let Some(source) = observed.source.as_mut().filter(|source| source.pod.uid == *uid) {
                    source.claim = Claim::Free;
                }
            }
            Action::CreateReservation(wish) => {
                if observed.reservation.is_none() {
                    self.pods_made += 1;
                    observed.reservation = Some(pod(&wish.name, &format!("v{}", self.pods_made), None));
                }
            }
            Action::CreateRehearsal(wish) => {
                assert_eq!(wish.source_uid, "pu");
                if observed.rehearsal.is_none() {
                    self.pods_made += 1;
                    let made = pod(&wish.name, &format!("h{}", self.pods_made), Some(&wish.node));
                    observed.rehearsal = Some(PodSeen { state: RunState::Pending, ..made });
                }
            }
            Action::TakeOutOfReplicaSet { uid, .. } => {
                if let Some(source) = observed.source.as_mut().filter(|source| source.pod.uid == *uid) {
                    source.template_hash = Some("hash-moving".into());
                    source.original_template_hash = Some("hash".into());
                }
            }
            Action::PutBackIntoReplicaSet { uid, .. } => {
                if let Some(source) = observed.source.as_mut().filter(|source| source.pod.uid == *uid) {
                    source.template_hash = Some("hash".into());
                    source.original_template_hash = None;
                }
            }
            Action::TakeOutOfJob { uid, .. } => {
                assert_eq!(status.verdict(), Verdict::Committed, "its Job makes another before the commit");
                if let Some(source) = observed.source.as_mut().filter(|source| source.pod.uid == *uid) {
                    source.in_job = false;
                }
            }
            Action::CreateReplacement { .. } => {
                assert_eq!(status.verdict(), Verdict::Committed, "replaced before the commit");
                // However late: the name of a pod that exists is taken.
                if observed.source.is_none() {
                    self.make_replacement();
                }
            }
            Action::CreateCold { .. } => {
                assert!(status.is_given_up() && status.strategy == Some(Strategy::DeleteFirst), "a cold copy");
                // The name of a pod that exists is taken.
                if observed.source.is_none() && observed.replacements.is_empty() {
                    self.scene = std::mem::replace(&mut self.scene, Scene::new()).name_taken("cold");
                    self.cold_runs = true;
                }
            }
            Action::Abort { seen, node, attempt } => {
                self.swap(seen, Owner::new(node, *attempt));
            }
            Action::Keep { seen } => self.swap(seen, Owner::new(&seen.node, seen.attempt)),
            Action::DeletePod { role, uid, .. } => self.delete(*role, uid),
            Action::AddFinalizer | Action::RemoveFinalizer | Action::Announce(_) => {}
        }
    }

    fn delete(&mut self, role: PodRole, uid: &str) {
        let status = self.status();
        let observed = &mut self.scene.observed;
        match role {
            PodRole::Source => {
                assert_eq!(status.verdict(), Verdict::Committed, "the source is deleted before the commit");
                let resumed = status.target_now().is_some_and(|report| report.step == TargetStep::Resumed);
                // Another pod that came later does not bring the recorded one back.
                let recorded = status.replacement.as_ref();
                let lost = recorded.is_some_and(|pod| observed.replacements.iter().all(|there| there.uid != pod.uid));
                let first = status.strategy == Some(Strategy::DeleteFirst);
                // A report is the agent's word; the model's agents may take theirs back.
                let in_time = first || resumed || lost || self.target_ran || status.is_given_up();
                assert!(in_time, "the source is deleted before the target runs");
                if observed.source.as_ref().is_some_and(|source| source.pod.uid == uid) {
                    observed.source = None;
                    self.source = Process::Gone;
                }
            }
            PodRole::Reservation => {
                observed.reservation.take_if(|pod| pod.uid == uid);
            }
            PodRole::Rehearsal => {
                observed.rehearsal.take_if(|pod| pod.uid == uid);
            }
            PodRole::Replacement => {
                let there = observed.replacements.iter().any(|pod| pod.uid == uid);
                assert!(!(there && self.target_runs) || status.is_given_up(), "a running replacement is deleted");
                // kubelet ends what runs in a pod before its object goes.
                self.target_runs &= !there;
                observed.replacements.retain(|pod| pod.uid != uid);
            }
        }
    }

    pub(super) fn replacement_comes(&mut self) {
        let status = self.status();
        let out = match &self.scene.observed.source {
            None => true,
            Some(source) => source.original_template_hash.is_some(),
        };
        let delete_first = status.strategy == Some(Strategy::DeleteFirst);
        let wanted = delete_first && status.verdict() == Verdict::Committed && !status.is_given_up();
        if out && (status.phase == Phase::Handover || wanted) {
            self.make_replacement();
        }
    }

    /// Unless there is one.
    fn make_replacement(&mut self) {
        if self.scene.observed.replacements.is_empty() {
            self.pods_made += 1;
            let mut made = pod("q", &format!("q{}", self.pods_made), Some("b"));
            made.state = RunState::Pending;
            self.scene.observed.replacements.push(made);
        }
    }

    /// As the agent decides it: only for a move that is committed and over, and only in a container that does not run.
    pub(super) fn replacement_starts_cold(&mut self) {
        let status = self.status();
        let over = status.verdict() == Verdict::Committed && status.phase == Phase::Failed;
        if over && !self.target_runs && !self.target_is_gone() && !self.scene.observed.replacements.is_empty() {
            self.cold_runs = true;
        }
    }

    pub(super) fn target_is_gone(&self) -> bool {
        self.scene.observed.target_node.is_some_and(NodeSeen::is_gone)
    }
}
