//! What is decided about the rehearsal, a sentence each.

use super::fixture::{Scene, failure};
use crate::transition::RunState;
use tideover_crds::{FailureReason, MigrationReason, Phase, SourceStep, TargetStep};

fn rehearsing() -> Scene {
    Scene::new().at(Phase::Rehearsing).bare().reports(SourceStep::Converged)
}

#[test]
fn a_bare_pod_is_rehearsed_once_copying_has_converged() {
    let scene = Scene::new().at(Phase::PreCopying).bare().reports(SourceStep::Converged);
    let told = scene.decide().phase(Phase::Rehearsing).does(&["rehearse m-rehearsal-1 on b"]);
    told.says("rehearsing the restore on b");
}

#[test]
fn what_an_early_copy_must_not_touch_is_frozen_without_a_rehearsal_and_told() {
    let scene = Scene::new().at(Phase::PreCopying).bare().reports(SourceStep::Converged);
    let scene = scene.with(|scene| scene.source().rehearsal_obstacle = Some("it has a claim".into()));
    let told = scene.decide().phase(Phase::Freezing).does(&[]);
    told.says("the pod is frozen and its last state is dumped; without a rehearsal: it has a claim");
}

#[test]
fn the_rehearsal_is_recorded_by_uid() {
    let scene = rehearsing().rehearsed_in(RunState::Pending).with(|scene| scene.status().rehearsal = None);
    let told = scene.decide().phase(Phase::Rehearsing).does(&[]);
    assert_eq!(told.status().rehearsal.as_ref().map(|pod| pod.uid.as_str()), Some("hu"));
}

#[test]
fn the_go_is_given_when_nothing_of_a_good_rehearsal_is_left() {
    let scene = rehearsing().rehearsed_in(RunState::Pending);
    scene.decide().phase(Phase::Rehearsing).does(&[]);
    // kubelet may say that the container has ended before the agent says how.
    let scene = scene.with(|scene| scene.observed.rehearsal.as_mut().expect("one").state = RunState::Ended);
    scene.decide().phase(Phase::Rehearsing).does(&[]);
    let scene = scene.target(TargetStep::Rehearsed);
    let told = scene.decide().phase(Phase::Rehearsing).does(&["delete hu in 0 s"]);
    told.says("the restore on b was rehearsed; the rehearsal's pod goes");
    let scene = scene.with(|scene| scene.observed.rehearsal.as_mut().expect("one").force_deleted = true);
    scene.decide().phase(Phase::Rehearsing).does(&[]);
    let scene = scene.with(|scene| scene.observed.rehearsal = None);
    scene.decide().phase(Phase::Freezing).does(&[]);
}

#[test]
fn a_rehearsal_that_fails_ends_the_attempt_with_the_reason_and_the_source_stays() {
    let scene = rehearsing().rehearsed_in(RunState::Ended).target_fails(failure(FailureReason::RestoreFailed, true));
    scene.decide().phase(Phase::Rehearsing).does(&["abort 1 for a at 0"]).failed_with(FailureReason::RestoreFailed);
    let undone = scene.aborted().reports(SourceStep::Thawed).target(TargetStep::Destroyed).decide();
    undone.phase(Phase::RollingBack).does(&["delete hu in 0 s", "delete vu in 0 s"]);
}

#[test]
fn a_rehearsal_that_does_not_come_up_ends_the_attempt_with_a_sentence() {
    let check = |scene: Scene, message: &str| {
        let told = scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::ReplacementMissing);
        told.says(&format!("giving up attempt 1: {message}"));
    };
    check(rehearsing().rehearsed_in(RunState::TurnedAway), "b turned the rehearsal away");
    let deleted = rehearsing().rehearsed_in(RunState::Pending).with(|scene| scene.observed.rehearsal = None);
    check(deleted, "the rehearsal was deleted");
}

#[test]
fn a_pod_whose_rehearsal_is_refused_moves_without_one() {
    let refused = rehearsing().with(|scene| scene.observed.refused = Some("over quota".into()));
    let told = refused.decide().phase(Phase::Freezing).does(&[]);
    told.says("the pod is frozen and its last state is dumped; without a rehearsal: it was refused: over quota");
}

#[test]
fn a_rehearsal_that_takes_too_long_ends_the_attempt() {
    let told = rehearsing().rehearsed_in(RunState::Pending).after(151).decide().failed_with(FailureReason::Timeout);
    told.says("giving up attempt 1: the restore on b was not rehearsed within 150 s");
}

#[test]
fn a_reservation_that_goes_during_the_rehearsal_ends_the_attempt() {
    let scene = rehearsing().rehearsed_in(RunState::Pending).with(|scene| scene.observed.reservation = None);
    scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::NoTarget);
}

#[test]
fn uncordoning_during_the_rehearsal_cancels() {
    let scene = rehearsing().asked_by(MigrationReason::Cordon).reason_gone();
    scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::Cancelled);
}

#[test]
fn a_source_that_may_be_frozen_for_a_cut_is_waited_for() {
    let scene = rehearsing().aborted().with(|scene| {
        scene.status().failures.push(failure(FailureReason::RestoreFailed, true));
        scene.observed.reservation = None;
        scene.status().target = None;
    });
    scene.decide().phase(Phase::RollingBack).does(&[]);
    let later = scene.after(60);
    later.decide().phase(Phase::RollingBack);
    later.reports(SourceStep::Thawed).decide().phase(Phase::BackingOff);
}

#[test]
fn a_rehearsal_is_cleared_away_when_all_is_over() {
    for phase in [Phase::Succeeded, Phase::Failed, Phase::Cancelled] {
        let scene = rehearsing().rehearsed_in(RunState::Ended).with(|scene| scene.status().phase = phase);
        scene.decide().phase(phase).does(&["delete hu in 0 s", "delete vu in 0 s", "release pu"]);
    }
}
