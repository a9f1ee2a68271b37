//! What the two agents do: each follows the owner field, and only their own side of the object is theirs.

use super::super::fixture::{failure, source_report, target_report};
use super::{Process, SourceDoes, TargetDoes, World};
use jiff::{SignedDuration, Timestamp};
use tideover_crds::migration::Verdict;
use tideover_crds::{FailureReason, Owner, Phase, SourceReport, SourceStep, Strategy, TargetReport, TargetStep};

/// How long a target's agent makes use of what it has taken without another look at the object.
const FRESH: SignedDuration = SignedDuration::from_secs(5);

impl World {
    pub(super) fn source_does(&mut self, does: SourceDoes) {
        let mut status = self.status();
        if status.attempt == 0 {
            return;
        }
        match does {
            SourceDoes::Reports(step, fails) => {
                // It says that it is frozen only when it is.
                let frozen = (SourceStep::Frozen..SourceStep::Thawed).contains(&step);
                if frozen && self.source != Process::Frozen(status.attempt) {
                    return;
                }
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
                    && matches!(status.verdict(), Verdict::Open | Verdict::Taken)
                    && self.source == Process::Running
                {
                    self.source = Process::Frozen(status.attempt);
                }
            }
            SourceDoes::Says => {
                if let Process::Frozen(attempt) = self.source
                    && self.ended != Some(attempt)
                {
                    self.said = Some(attempt);
                }
            }
            SourceDoes::Aborts => {
                let attempt = match self.source {
                    Process::Frozen(attempt) => attempt,
                    Process::Running => status.attempt,
                    _ => return,
                };
                let unsaid = self.said != Some(attempt);
                let owner = status.owner.clone().expect("an owner");
                let frozen = self.source != Process::Running;
                let may = match status.verdict() {
                    Verdict::Open => frozen,
                    Verdict::Taken => unsaid,
                    _ => false,
                };
                if may {
                    self.ended = Some(attempt);
                    self.swap(&owner, Owner::new("a", attempt));
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
            TargetDoes::Takes => {
                let first = status.strategy == Some(Strategy::ReplaceFirst);
                let attempt = status.attempt;
                if first && status.phase >= Phase::Freezing && status.verdict() == Verdict::Open {
                    let owner = status.owner.clone().expect("an owner");
                    self.swap(&owner, Owner::tentative("b", attempt));
                    self.claim = Some((attempt, self.now()));
                }
            }
            TargetDoes::Runs => {
                // What was not sent to the last can't have been rebuilt.
                let (now, said) = (self.scene.now, self.said);
                let fresh =
                    |claim: &mut (u32, Timestamp)| said == Some(claim.0) && now.duration_since(claim.1) <= FRESH;
                if self.claim.take_if(fresh).is_some() {
                    self.target_runs = true;
                    self.target_ran = true;
                    status.target = Some(target_report(status.attempt, TargetStep::Resumed));
                    self.store(&status);
                }
            }
            TargetDoes::GivesBack => {
                // An agent that comes after the one that has taken it knows that nothing was released of what was not sent to the last.
                let unsaid = self.said != Some(status.attempt) && status.verdict() == Verdict::Taken;
                let attempt =
                    self.claim.take().map(|(attempt, _)| attempt).or_else(|| unsaid.then_some(status.attempt));
                if let Some(attempt) = attempt {
                    self.swap(&Owner::tentative("b", attempt), Owner::new("a", attempt));
                }
            }
            TargetDoes::Restarts => self.claim = None,
            TargetDoes::Commits => {
                let owner = status.owner.clone().expect("an owner");
                match (status.verdict(), self.source) {
                    // What was told to run, or what an agent before this one has taken.
                    (Verdict::Taken, _) if self.claim.is_none() && self.said == Some(status.attempt) => {
                        self.swap(&owner, Owner::new("b", owner.attempt));
                    }
                    (Verdict::Open, Process::Frozen(attempt))
                        if attempt == status.attempt && status.strategy == Some(Strategy::DeleteFirst) =>
                    {
                        self.swap(&owner, Owner::new("b", attempt));
                    }
                    _ => {}
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
