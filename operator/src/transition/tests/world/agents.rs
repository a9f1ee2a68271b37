//! What the two agents do: each follows the owner field, and only their own side of the object is theirs.

use super::super::fixture::{failure, source_report, target_report};
use super::{Process, SourceDoes, TargetDoes, World};
use tideover_crds::migration::Verdict;
use tideover_crds::{FailureReason, Owner, Phase, SourceReport, SourceStep, Strategy, TargetReport, TargetStep};

impl World {
    pub(super) fn source_does(&mut self, does: SourceDoes) {
        let mut status = self.status();
        if status.attempt == 0 {
            return;
        }
        match does {
            SourceDoes::Reports(step, fails) => {
                let failure = fails.then(|| failure(FailureReason::DumpFailed, true));
                status.source = Some(SourceReport { failure, ..source_report(status.attempt, step) });
                self.store(&status);
            }
            SourceDoes::Cuts => match self.source {
                Process::FrozenForCut => self.source = Process::Running,
                Process::Running if status.phase == Phase::Rehearsing && status.verdict() == Verdict::Open => {
                    self.source = Process::FrozenForCut;
                }
                _ => {}
            },
            SourceDoes::Freezes => {
                if status.phase == Phase::Freezing
                    && status.verdict() == Verdict::Open
                    && self.source == Process::Running
                {
                    self.source = Process::Frozen(status.attempt);
                }
            }
            SourceDoes::Aborts => {
                if let (Process::Frozen(attempt), Some(owner)) = (self.source, status.owner.clone())
                    && status.verdict() == Verdict::Open
                {
                    self.swap(&owner, Owner { node: "a".into(), attempt });
                }
            }
            SourceDoes::Thaws => {
                let Process::Frozen(attempt) = self.source else { return };
                let owner = status.owner.clone().expect("an owner");
                if owner.node == "a" && owner.attempt >= attempt {
                    self.source = Process::Running;
                    status.source = Some(source_report(status.attempt, SourceStep::Thawed));
                    self.store(&status);
                }
            }
            SourceDoes::Retires => {
                if status.verdict() == Verdict::Committed {
                    self.source = Process::Gone;
                    status.source = Some(source_report(status.attempt, SourceStep::Retired));
                    self.store(&status);
                }
            }
        }
    }

    pub(super) fn target_does(&mut self, does: TargetDoes) {
        let mut status = self.status();
        if status.attempt == 0 || status.target_node.is_none() || self.target_is_gone() {
            return;
        }
        match does {
            TargetDoes::Reports(step, fails) => {
                // An agent says that the application runs only once it does.
                if step >= TargetStep::Committed && step != TargetStep::Destroyed {
                    return;
                }
                let failure = fails.then(|| failure(FailureReason::RestoreFailed, true));
                status.target = Some(TargetReport { failure, ..target_report(status.attempt, step) });
                self.store(&status);
            }
            TargetDoes::Commits => {
                // What is not frozen can't have been dumped, and so can't be held.
                let Process::Frozen(attempt) = self.source else { return };
                if attempt == status.attempt && status.verdict() == Verdict::Open {
                    let owner = status.owner.clone().expect("an owner");
                    self.swap(&owner, Owner { node: "b".into(), attempt });
                }
            }
            TargetDoes::Resumes => {
                // What is restored is decided by the recorded UID alone.
                let recorded = status.replacement.as_ref().map(|pod| pod.uid.as_str());
                let is_there = self.scene.observed.replacements.iter().any(|pod| Some(pod.uid.as_str()) == recorded);
                let there = status.strategy == Some(Strategy::ReplaceFirst)
                    || (is_there && self.scene.observed.source.is_none());
                // The agent reads the object before it lets them run.
                if status.verdict() == Verdict::Committed && there && !status.is_given_up() {
                    self.target_runs = true;
                    self.target_ran = true;
                    status.target = Some(target_report(status.attempt, TargetStep::Resumed));
                    self.store(&status);
                }
            }
        }
    }
}
