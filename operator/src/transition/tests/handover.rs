//! Handover: the replacement comes up, and nothing is frozen.

use super::fixture::{Scene, pod};
use tideover_crds::{FailureReason, MigrationReason, Phase, TargetStep};

#[test]
fn the_source_leaves_its_replica_set_only_when_the_reservation_is_gone() {
    let scene = Scene::new().at(Phase::Handover);
    scene.decide().does(&["delete vu in 1 s"]);
    let scene = scene.with(|scene| scene.observed.reservation.as_mut().expect("one").terminating = true);
    scene.decide().does(&[]);
    let scene = scene.with(|scene| scene.observed.reservation = None);
    scene.decide().does(&["take out pu of hash"]);
}

#[test]
fn the_go_is_given_when_the_replacement_waits_on_the_target() {
    let scene = Scene::new().at(Phase::Handover).taken_out().with(|scene| scene.observed.reservation = None);
    scene.decide().phase(Phase::Handover).does(&[]);
    let scene = scene.replaced();
    scene.decide().phase(Phase::Handover).says("waiting for the replacement's container on b to be created");
    scene.target(TargetStep::Waiting).decide().phase(Phase::Freezing);
}

#[test]
fn the_replacement_is_recorded_by_uid() {
    let scene = Scene::new().at(Phase::Handover).taken_out().with(|scene| {
        scene.observed.reservation = None;
        scene.observed.replacements = vec![pod("q", "qu", None)];
    });
    let told = scene.decide().phase(Phase::Handover);
    assert_eq!(told.status().replacement.as_ref().map(|pod| pod.uid.as_str()), Some("qu"));
}

#[test]
fn a_replacement_that_is_deleted_before_the_freeze_ends_the_attempt() {
    let scene = Scene::new().at(Phase::Handover).taken_out().replaced().with(|scene| {
        scene.observed.reservation = None;
        scene.observed.replacements.clear();
    });
    scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::ReplacementMissing);
}

#[test]
fn a_replacement_that_would_not_be_pinned_ends_the_attempt_before_the_source_is_touched() {
    let scene = Scene::new().at(Phase::Handover).with(|scene| {
        scene.observed.reservation = None;
        scene.observed.refused = Some("admission does not pin it".into());
    });
    let told = scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::ReplacementMissing);
    told.says("giving up attempt 1: the replacement would not come up: admission does not pin it");
}

#[test]
fn uncordoning_before_the_freeze_cancels() {
    let scene = Scene::new().at(Phase::Handover).asked_by(MigrationReason::Cordon).reason_gone();
    scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::Cancelled);
}

#[test]
fn uncordoning_after_the_go_changes_nothing() {
    let scene = Scene::new().at(Phase::Freezing).asked_by(MigrationReason::Cordon).reason_gone();
    scene.decide().phase(Phase::Freezing).does(&[]);
}

#[test]
fn an_eviction_from_a_node_that_nobody_cordoned_goes_on() {
    let scene = Scene::new().at(Phase::PreCopying).asked_by(MigrationReason::Drain).reason_gone();
    scene.decide().phase(Phase::PreCopying).does(&[]);
}
