//! A little world that stands in for the cluster, for the properties.
//!
//! The operator's decisions are taken on what was observed at some moment and carried out later, in part, twice, or by
//! another operator; agents follow the owner field and report what they like.

mod agents;
mod objects;

use super::fixture::Scene;
use crate::migration::status_patch;
use crate::transition::{Action, Decision, NodeSeen, Observed, RunState, transition};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, MigrationStatus, Owner, Phase, SourceStep, Strategy, TargetStep};

#[derive(Clone, Debug)]
pub(super) enum Event {
    /// The operator observes and decides.
    Decide,
    /// One of the decisions in flight is carried out, its first actions only; it stays in flight.
    CarryOut {
        which: usize,
        actions: usize,
    },
    /// The operator is restarted: what was in flight is lost.
    Restart,
    Source(SourceDoes),
    Target(TargetDoes),
    ReservationBinds,
    RehearsalEnds,
    RehearsalGoes,
    ReplacementComes,
    ReplacementGoes,
    ReplacementIsDeleted,
    /// kubelet asks for the replacement's container, and the Migration says that nobody restores it any more.
    ReplacementStartsCold,
    TargetNodeGoes,
    UserDeletesMigration,
    UserDeletesPod,
    ReasonGoes,
    Seconds(i64),
    /// One round of everything that goes well, so that many sequences get far.
    GoodRound,
}

#[derive(Clone, Debug)]
pub(super) enum SourceDoes {
    Reports(SourceStep, bool),
    /// Freezes for a cut, or thaws after one: no verdict is needed for that.
    Cuts,
    Freezes,
    /// Has sent the last of the state.
    Says,
    /// Ends the attempt, which it may even where the target has taken it as long as that was not sent.
    Aborts,
    Thaws,
    Retires,
}

#[derive(Clone, Debug)]
pub(super) enum TargetDoes {
    Reports(TargetStep, bool),
    /// Takes the attempt at the go.
    Takes,
    /// Lets the processes run that it has taken, and has not committed yet.
    Runs,
    /// Gives back what it has taken, because the restore has failed.
    GivesBack,
    /// Commits, what it has taken or what is all there.
    Commits,
    Resumes,
    /// The agent is restarted: it does not know any more what it has taken.
    Restarts,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Process {
    Running,
    FrozenForCut,
    Frozen(u32),
    Gone,
}

pub(super) struct World {
    stored: Value,
    scene: Scene,
    in_flight: Vec<(Observed, Decision)>,
    source: Process,
    pub(super) target_runs: bool,
    /// The attempt of which the source has sent the last.
    said: Option<u32>,
    /// The attempt that the source has ended: it sends nothing any more.
    ended: Option<u32>,
    /// The attempt that the target's agent has taken and not let run, and when.
    claim: Option<(u32, Timestamp)>,
    /// Whether it ever did.
    target_ran: bool,
    /// A copy runs that was started without any state.
    pub(super) cold_runs: bool,
    pods_made: usize,
}

impl World {
    pub(super) fn new(bare: bool) -> Self {
        let scene = if bare { Scene::new().bare() } else { Scene::new() };
        // Of the two kinds of pods that are deleted first, the model's is both: what a Job would do too early is seen.
        let scene = scene.with(|scene| scene.source().in_job = bare);
        let stored = serde_json::to_value(&scene.observed.migration).expect("JSON");
        Self {
            stored,
            scene,
            in_flight: Vec::new(),
            source: Process::Running,
            target_runs: false,
            said: None,
            ended: None,
            claim: None,
            target_ran: false,
            cold_runs: false,
            pods_made: 0,
        }
    }

    fn migration(&self) -> Migration {
        serde_json::from_value(self.stored.clone()).expect("a Migration")
    }

    pub(super) fn status(&self) -> MigrationStatus {
        self.migration().status.unwrap_or_default()
    }

    fn now(&self) -> Timestamp {
        self.scene.now
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::Decide => self.decide(),
            Event::CarryOut { which, actions } => self.carry_out(which, actions),
            Event::Restart => self.in_flight.clear(),
            Event::Source(does) => self.source_does(does),
            Event::Target(does) => self.target_does(does),
            Event::ReservationBinds => {
                if let Some(reservation) = &mut self.scene.observed.reservation {
                    reservation.node = Some("b".into());
                    self.scene.observed.target_node = Some(NodeSeen::Present { schedulable: true });
                }
            }
            Event::RehearsalEnds => {
                if let Some(pod) = &mut self.scene.observed.rehearsal {
                    pod.state = RunState::Ended;
                }
            }
            Event::RehearsalGoes => self.scene.observed.rehearsal = None,
            Event::ReplacementComes => self.replacement_comes(),
            Event::ReplacementGoes => {
                self.scene.observed.replacements.clear();
                self.target_runs = false;
            }
            Event::ReplacementIsDeleted => {
                self.scene.observed.replacements.iter_mut().for_each(|pod| pod.terminating = true);
            }
            Event::ReplacementStartsCold => self.replacement_starts_cold(),
            Event::TargetNodeGoes => {
                if self.status().target_node.is_some() {
                    self.scene.observed.target_node = Some(NodeSeen::Gone);
                    self.target_runs = false;
                }
            }
            Event::UserDeletesMigration => {
                self.stored["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            }
            Event::UserDeletesPod => {
                if self.source == Process::Running {
                    self.scene.observed.source = None;
                    self.source = Process::Gone;
                }
            }
            Event::ReasonGoes => {
                self.scene.observed.reason_stands = false;
            }
            Event::GoodRound => a_good_round(self),
            Event::Seconds(seconds) => self.scene.now += SignedDuration::from_secs(seconds),
        }
    }

    fn decide(&mut self) {
        self.scene.observed.migration = self.migration();
        let observed = self.scene.observed.clone();
        let decision = transition(&observed, self.now());
        let before = observed.migration.status.clone().unwrap_or_default();
        let after = decision.status.clone().unwrap_or_else(|| before.clone());
        if before.owner.is_some() {
            assert_eq!(after.owner, before.owner, "only a compare-and-swap changes the owner");
        } else if let Some(owner) = &after.owner {
            assert_eq!(owner.attempt, 0, "accepting decides nothing");
        }
        if before.phase.is_terminal() {
            assert_eq!(after.phase, before.phase, "terminal stays terminal");
        }
        if before.verdict() == Verdict::Committed && !before.phase.is_terminal() {
            let lost = after.phase == Phase::Failed && after.is_given_up();
            assert!(after.is_given_up() || !before.is_given_up(), "given up once and for all");
            let forward = matches!(after.phase, Phase::Committing | Phase::Succeeded);
            assert!(forward || lost, "{:?} after the commit", after.phase);
            let back = |action: &Action| matches!(action, Action::Abort { .. } | Action::PutBackIntoReplicaSet { .. });
            assert!(!decision.actions.iter().any(back), "{:?}", decision.actions);
        }
        if before.phase == Phase::Rehearsing && after.phase == Phase::Freezing {
            let shown = before.target_now().is_some_and(|report| report.step == TargetStep::Rehearsed);
            assert!(shown && observed.rehearsal.is_none(), "the go before the rehearsal is over");
        }
        if before.phase < Phase::Rehearsing && before.strategy == Some(Strategy::DeleteFirst) {
            assert!(after.phase != Phase::Freezing, "the go without a rehearsal");
        }
        if matches!(after.phase, Phase::RollingBack | Phase::BackingOff) {
            assert_eq!(after.verdict(), Verdict::Aborted, "nothing is undone before the abort is won");
        }
        assert!(after.failures.len() <= after.attempt.max(1) as usize, "one failure an attempt");
        self.in_flight.push((observed, decision));
    }

    fn carry_out(&mut self, which: usize, actions: usize) {
        if self.in_flight.is_empty() {
            return;
        }
        let (observed, decision) = self.in_flight[which % self.in_flight.len()].clone();
        if let Some(status) = &decision.status {
            let was_terminal = self.status().phase.is_terminal();
            let patch = status_patch(&observed.migration, status).expect("a patch");
            let mut stored = self.stored.clone();
            if json_patch::patch(&mut stored, &patch).is_err() {
                return;
            }
            self.stored = stored;
            self.new_version();
            assert!(!was_terminal || self.status().phase.is_terminal(), "terminal stays terminal");
        }
        for action in decision.actions.iter().take(actions) {
            self.act(action);
        }
    }

    fn new_version(&mut self) {
        let version: u64 =
            self.stored["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0);
        self.stored["metadata"]["resourceVersion"] = (version + 1).to_string().into();
    }

    /// The compare-and-swap: it takes place only if the owner and the attempt are what was seen.
    fn swap(&mut self, seen: &Owner, want: Owner) {
        let mut status = self.status();
        if status.owner.as_ref() == Some(seen) && status.attempt == want.attempt {
            let taken = seen.tentative && seen.attempt == want.attempt;
            assert!(taken || seen.attempt < want.attempt, "an attempt is decided once");
            assert!(!(taken && self.target_ran && want.node == "a"), "given back although it has run");
            status.owner = Some(want);
            self.store(&status);
        }
    }

    fn store(&mut self, status: &MigrationStatus) {
        self.stored["status"] = serde_json::to_value(status).expect("JSON");
        self.new_version();
    }

    pub(super) fn check(&self) {
        let source_runs = self.source == Process::Running && self.scene.observed.source.is_some();
        let copies = [source_runs, self.target_runs, self.cold_runs].into_iter().filter(|runs| *runs).count();
        assert!(copies < 2, "source: {source_runs}, target: {}, cold: {}", self.target_runs, self.cold_runs);
        let committed = self.status().verdict() == Verdict::Committed;
        assert!(!(committed && source_runs), "the source runs after the commit");
        let status = self.status();
        let taken = status.verdict() == Verdict::Taken && self.said == Some(status.attempt);
        assert!(!(taken && source_runs), "the source runs although the target may");
    }
}

/// One round of everything that goes well.
pub(super) fn a_good_round(world: &mut World) {
    let reports = |step| Event::Source(SourceDoes::Reports(step, false));
    let target = |step| Event::Target(TargetDoes::Reports(step, false));
    let status = world.status();
    let mut round = vec![Event::Decide, Event::CarryOut { which: 0, actions: 9 }, Event::Restart];
    round.push(Event::ReservationBinds);
    round.extend(match status.phase {
        Phase::Preparing => vec![reports(SourceStep::Ready), target(TargetStep::Listening)],
        Phase::PreCopying => vec![reports(SourceStep::Converged)],
        Phase::Rehearsing => {
            let cut = Event::Source(SourceDoes::Cuts);
            vec![cut.clone(), cut, target(TargetStep::Rehearsed), Event::RehearsalEnds]
        }
        Phase::Handover => vec![Event::ReplacementComes, target(TargetStep::Waiting)],
        Phase::Freezing | Phase::Transferring | Phase::Restoring => {
            let does = [SourceDoes::Freezes, SourceDoes::Says].map(Event::Source);
            let mut all = vec![Event::Target(TargetDoes::Takes)];
            all.extend(does);
            all.extend([
                target(TargetStep::Staged),
                Event::Target(TargetDoes::Runs),
                Event::Target(TargetDoes::Commits),
            ]);
            all
        }
        Phase::Committing => vec![Event::Target(TargetDoes::Resumes), Event::Source(SourceDoes::Retires)],
        _ => Vec::new(),
    });
    for event in round {
        world.happen(event);
        world.check();
    }
}
