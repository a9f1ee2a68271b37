//! After the commit: forward, or given up.

use super::fixture::{Scene, failure};
use crate::transition::{Claim, RunState};
use tideover_crds::{FailureReason, Phase, SourceStep, TargetStep};

#[test]
fn after_the_commit_the_source_stays_until_the_application_runs() {
    let scene = Scene::new().at(Phase::Restoring).target(TargetStep::Committed).committed();
    scene.decide().phase(Phase::Committing).does(&[]);
    scene.target(TargetStep::Resumed).decide().phase(Phase::Committing).does(&["delete pu in 0 s"]);
}

#[test]
fn nothing_aborts_what_is_committed() {
    let scene = Scene::new().at(Phase::Restoring).committed().deleted().reason_gone();
    let scene = scene.target_fails(failure(FailureReason::RestoreFailed, false)).after(1000);
    scene.decide().phase(Phase::Committing).does(&[]);
}

#[test]
fn an_abort_that_came_too_late_is_not_a_failure() {
    let scene = Scene::new().at(Phase::Restoring).committed().failed_before(failure(FailureReason::Timeout, true));
    assert_eq!(scene.decide().phase(Phase::Committing).status().failures, []);
}

#[test]
fn a_move_has_succeeded_when_nothing_of_the_source_is_left() {
    let scene = Scene::new().at(Phase::Committing).committed().target(TargetStep::Resumed).source_gone();
    scene.decide().phase(Phase::Committing);
    scene.reports(SourceStep::Retired).decide().phase(Phase::Succeeded).says("the pod runs on b");
}

#[test]
fn a_source_that_does_not_answer_does_not_hold_up_success_for_ever() {
    let scene = Scene::new().at(Phase::Committing).committed().target(TargetStep::Resumed).source_gone();
    scene.after(31).decide().phase(Phase::Succeeded).does(&["remove finalizer"]);
}

#[test]
fn a_lost_replacement_after_the_commit_is_told_and_the_source_does_not_come_back() {
    let scene = Scene::new().at(Phase::Committing).committed().with(|scene| scene.observed.replacements.clear());
    scene.decide().phase(Phase::Committing).does(&["delete pu in 0 s"]);
    scene.source_gone().decide().phase(Phase::Failed).failed_with(FailureReason::ReplacementMissing);
}

#[test]
fn a_bare_pod_is_deleted_and_made_again_once_it_is_committed() {
    let scene = Scene::new().at(Phase::Transferring).bare().reserved().target(TargetStep::Staged).committed();
    let scene = scene.with(|scene| scene.observed.replacements.clear());
    scene.decide().phase(Phase::Committing).does(&["delete pu in 0 s", "delete vu in 0 s", "replace on b"]);
}

#[test]
fn a_bare_pod_is_not_deleted_before_it_is_committed() {
    let scene = Scene::new().at(Phase::Transferring).bare().target(TargetStep::Staged);
    scene.decide().phase(Phase::Transferring).does(&[]);
}

#[test]
fn a_stateful_sets_replacement_is_left_to_its_controller() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().source_gone().with(|scene| {
        scene.status().pod_manifest = None;
        scene.observed.replacements.clear();
    });
    scene.decide().does(&[]).says("waiting for the controller to make the replacement for b");
}

#[test]
fn a_replacement_that_kubelet_turned_away_is_made_again() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().source_gone();
    let scene = scene.with(|scene| scene.observed.replacements[0].state = RunState::TurnedAway);
    let told = scene.decide().does(&["delete qu in 0 s"]);
    assert_eq!(told.status().replacement, None);
    scene.with(|scene| scene.observed.replacements.clear()).decide().does(&["replace on b"]);
}

#[test]
fn a_stranger_of_the_same_name_is_not_touched() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().with(|scene| {
        scene.source().pod.uid = "stranger".into();
        scene.source().claim = Claim::Free;
        scene.observed.replacements.clear();
    });
    scene.decide().does(&[]).says("another pod has the name p; the state waits on b");
}
