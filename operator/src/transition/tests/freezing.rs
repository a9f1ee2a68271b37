//! Freezing to the verdict: what ends an attempt, and what does not.

use super::fixture::{Scene, failure};
use crate::transition::NodeSeen;
use tideover_crds::{FailureReason, Phase, SourceStep, TargetStep};

#[test]
fn the_phase_follows_the_reports_and_never_goes_back() {
    let scene = Scene::new().at(Phase::Freezing).reports(SourceStep::Dumped);
    scene.decide().phase(Phase::Transferring);
    let scene = scene.target(TargetStep::Staged);
    scene.decide().phase(Phase::Restoring);
    let scene = scene.target(TargetStep::Waiting).with(|scene| scene.status().phase = Phase::Restoring);
    scene.decide().phase(Phase::Restoring);
}

#[test]
fn a_failed_dump_is_aborted_and_the_reason_kept() {
    let scene = Scene::new().at(Phase::Freezing).source_fails(failure(FailureReason::DumpFailed, true));
    let told = scene.decide().phase(Phase::Freezing).does(&["abort 1 for a at 0"]);
    assert_eq!(told.status().failures, [failure(FailureReason::DumpFailed, true)]);
}

#[test]
fn an_abort_is_asked_for_again_until_the_object_tells_who_won() {
    let reason = failure(FailureReason::RestoreFailed, true);
    let scene = Scene::new().at(Phase::Restoring).target_fails(reason.clone()).failed_before(reason.clone());
    let told = scene.decide().does(&["abort 1 for a at 0"]);
    assert_eq!(told.status().failures, [reason]);
}

#[test]
fn the_clock_does_not_end_a_freeze_before_its_bound() {
    let scene = Scene::new().at(Phase::Freezing);
    scene.after(99).decide().phase(Phase::Freezing).does(&[]);
    let scene = Scene::new().at(Phase::Freezing).after(101);
    scene.decide().phase(Phase::Freezing).does(&["abort 1 for a at 0"]).failed_with(FailureReason::Timeout);
}

#[test]
fn deleting_the_migration_before_the_verdict_asks_for_the_abort() {
    let scene = Scene::new().at(Phase::Restoring).deleted();
    scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::Cancelled);
}

#[test]
fn a_pod_that_its_user_deletes_is_not_moved() {
    let scene = Scene::new().at(Phase::Freezing).with(|scene| scene.source().pod.terminating = true);
    scene.decide().does(&["abort 1 for a at 0"]).says("giving up attempt 1: the pod p is being deleted");
}

#[test]
fn the_operator_ends_nothing_that_the_target_has_taken() {
    let taken = Scene::new().at(Phase::Restoring).taken();
    taken.decide().phase(Phase::Restoring).does(&[]);
    let failed = Scene::new().at(Phase::Restoring).taken().target_fails(failure(FailureReason::RestoreFailed, true));
    failed.decide().phase(Phase::Restoring).does(&[]);
    Scene::new().at(Phase::Restoring).taken().deleted().decide().phase(Phase::Restoring).does(&[]);
}

#[test]
fn what_was_taken_is_committed_where_the_target_can_not_say_what_became_of_it() {
    // An operator that was away does not know how long ago it was taken.
    let seen = |step| Scene::new().at(Phase::Freezing).reports(step).taken().after(500);
    for (step, bound, then) in [
        (SourceStep::Converged, 300, &[][..]),
        (SourceStep::Frozen, 300, &["commit 1 for b"]),
        (SourceStep::Dumped, 300, &["commit 1 for b"]),
        (SourceStep::Sent, 100, &["commit 1 for b"]),
    ] {
        let told = seen(step).decide().does(&[]);
        let noted = || seen(step).with(|scene| scene.status().clone_from(told.status()));
        noted().after(bound - 1).decide().does(&[]);
        noted().after(bound + 1).decide().does(then);
    }
    let told = seen(SourceStep::Converged).decide().does(&[]);
    let noted = || seen(SourceStep::Converged).with(|scene| scene.status().clone_from(told.status())).after(301);
    noted().decide().says("b has taken the application, and a does not say whether it was frozen");
    let gone = noted().with(|scene| scene.observed.source_node = NodeSeen::Gone);
    gone.decide().does(&["commit 1 for b"]);
}
