//! RollingBack and BackingOff: undone, and once more.

use super::fixture::{Scene, failure};
use crate::transition::{Action, Claim, NodeSeen};
use std::time::Duration;
use tideover_crds::{FailureReason, MigrationReason, Phase, SourceStep, TargetStep};

#[test]
fn rolling_back_puts_the_label_back_before_the_replacement_goes() {
    let scene = Scene::new().at(Phase::Restoring).aborted().failed_before(failure(FailureReason::RestoreFailed, true));
    scene
        .decide()
        .phase(Phase::RollingBack)
        .does(&["put back pu into hash", "delete qu in 0 s"])
        .says("rolling back attempt 1: it was RestoreFailed");
}

#[test]
fn an_abort_by_the_agent_itself_is_told_with_its_reason() {
    let scene = Scene::new().at(Phase::Freezing).aborted().source_fails(failure(FailureReason::TransferFailed, true));
    scene.decide().phase(Phase::RollingBack).failed_with(FailureReason::TransferFailed);
}

fn undone() -> Scene {
    Scene::new().at(Phase::RollingBack).aborted().with(|scene| {
        scene.source().template_hash = Some("hash".into());
        scene.source().original_template_hash = None;
        scene.observed.replacements.clear();
    })
}

fn frozen(scene: &mut Scene) {
    let mut time = scene.status().phases[0].clone();
    time.phase = Phase::Freezing;
    scene.status().phases.push(time);
}

#[test]
fn a_source_that_may_be_frozen_is_waited_for_without_a_bound() {
    let scene = undone().with(frozen).failed_before(failure(FailureReason::Timeout, true));
    let scene = scene.target(TargetStep::Destroyed).reports(SourceStep::Frozen).after(100_000);
    scene.decide().phase(Phase::RollingBack);
    scene.reports(SourceStep::Thawed).decide().phase(Phase::BackingOff);
}

#[test]
fn a_target_that_does_not_answer_is_waited_for_with_a_bound() {
    let scene = undone().failed_before(failure(FailureReason::TransferFailed, true)).reports(SourceStep::Thawed);
    scene.decide().phase(Phase::RollingBack);
    let told = scene.after(21).decide().phase(Phase::BackingOff);
    assert_eq!(told.status().avoided_nodes, ["b"]);
}

#[test]
fn an_incompatible_node_is_out_of_the_question() {
    let scene = undone().failed_before(failure(FailureReason::IncompatibleHost, true));
    let told = scene.reports(SourceStep::Thawed).target(TargetStep::Destroyed).decide().phase(Phase::BackingOff);
    assert_eq!(told.status().incompatible_nodes, ["b"]);
}

#[test]
fn a_source_that_writes_too_fast_is_not_held_against_the_target() {
    let scene = undone().failed_before(failure(FailureReason::NotConverging, true));
    let told = scene.reports(SourceStep::Thawed).target(TargetStep::Destroyed).decide().phase(Phase::BackingOff);
    assert!(told.status().avoided_nodes.is_empty() && told.status().incompatible_nodes.is_empty());
}

#[test]
fn what_can_not_end_differently_fails_at_once() {
    let scene = undone().failed_before(failure(FailureReason::NotDumpable, false));
    let scene = scene.reports(SourceStep::Thawed).target(TargetStep::Destroyed);
    scene.decide().phase(Phase::Failed).says("it was NotDumpable").does(&["release pu"]);
}

#[test]
fn a_cancelled_move_ends_cancelled() {
    let scene = undone().failed_before(failure(FailureReason::Cancelled, false));
    let scene = scene.reports(SourceStep::Thawed).target(TargetStep::Destroyed);
    scene.decide().phase(Phase::Cancelled);
}

#[test]
fn a_deleted_migration_is_let_go_when_everything_is_undone() {
    let scene = Scene::new().at(Phase::Cancelled).aborted().deleted().with(|scene| {
        scene.observed.reservation = None;
        scene.observed.replacements.clear();
    });
    scene.decide().does(&["release pu"]);
    scene.with(|scene| scene.source().claim = Claim::Free).decide().does(&["remove finalizer"]);
}

#[test]
fn the_next_attempt_waits_for_its_time_and_starts_clean() {
    let scene = undone().with(|scene| {
        scene.status().phase = Phase::BackingOff;
        scene.status().phases.last_mut().expect("a time").phase = Phase::BackingOff;
        scene.status().avoided_nodes = vec!["b".into()];
        scene.status().incompatible_nodes = vec!["c".into()];
        scene.observed.reservation = None;
    });
    let scene = scene.failed_before(failure(FailureReason::RestoreFailed, true));
    scene.decide().phase(Phase::BackingOff).does(&[]);
    let told = scene.after(6).decide().phase(Phase::Preparing).does(&["reserve m-reservation-2"]);
    assert_eq!(told.status().attempt, 2);
    assert_eq!((&told.status().target_node, &told.status().replacement), (&None, &None));
    let wish = told.decision.actions.iter().find_map(|action| match action {
        Action::CreateReservation(wish) => Some(wish.clone()),
        _ => None,
    });
    let wish = wish.expect("a wish");
    assert_eq!(wish.never_on, ["a", "c"]);
    assert_eq!(wish.rather_not_on, ["b"]);
}

#[test]
fn the_last_attempt_has_no_next() {
    let scene = undone().with(|scene| {
        scene.status().policy.as_mut().expect("a policy").max_attempts = 1;
        scene.observed.source_node = NodeSeen::Present { schedulable: false };
    });
    let scene = scene.failed_before(failure(FailureReason::RestoreFailed, true));
    let scene = scene.reports(SourceStep::Thawed).target(TargetStep::Destroyed);
    scene.decide().phase(Phase::Failed).says("gave up after 1 attempt: it was RestoreFailed");
}

#[test]
fn attempts_that_meet_a_roll_out_do_not_count_for_a_while() {
    let met = |attempts: u32, most: u32| {
        let scene = undone().with(|scene| {
            let status = scene.status();
            status.policy.as_mut().expect("a policy").max_attempts = most;
            status.failures = vec![failure(FailureReason::AgentVersions, true); attempts as usize];
            (status.attempt, status.phases) = (attempts, Vec::new());
            let owner = status.owner.as_mut().expect("an owner");
            owner.attempt = attempts;
            scene.observed.source_node = NodeSeen::Present { schedulable: false };
        });
        scene.reports(SourceStep::Thawed).target(TargetStep::Destroyed)
    };
    met(1, 1).decide().phase(Phase::BackingOff);
    met(20, 1).decide().phase(Phase::BackingOff);
    met(21, 1).decide().phase(Phase::Failed).says("gave up after 21 attempts: it was AgentVersions");
    let ordinary = met(3, 1).with(|scene| {
        *scene.status().failures.last_mut().expect("one") = failure(FailureReason::RestoreFailed, true);
    });
    ordinary.decide().phase(Phase::Failed).says("gave up after 3 attempts: it was RestoreFailed");
}

#[test]
fn the_pause_in_a_roll_out_does_not_grow_beyond_a_minute() {
    let pause = |before, last| {
        let scene = undone().with(|scene| {
            let status = scene.status();
            (status.attempt, status.phase) = (8, Phase::BackingOff);
            let began = status.phases.last_mut().expect("a time");
            (began.attempt, began.phase) = (8, Phase::BackingOff);
            status.owner.as_mut().expect("an owner").attempt = 8;
            status.failures = vec![failure(before, true); 7];
            status.failures.push(failure(last, true));
        });
        scene.decide().decision.requeue
    };
    let (versions, restore) = (FailureReason::AgentVersions, FailureReason::RestoreFailed);
    assert_eq!(pause(versions, versions), Some(Duration::from_secs(60)));
    assert_eq!(pause(restore, restore), Some(Duration::from_secs(640)));
    assert_eq!(pause(versions, restore), Some(Duration::from_secs(5)), "as after a first attempt");
}

#[test]
fn uncordoning_while_backing_off_cancels() {
    let scene = undone().asked_by(MigrationReason::Cordon).reason_gone();
    let scene = scene.with(|scene| scene.status().phase = Phase::BackingOff);
    scene.decide().phase(Phase::Cancelled);
}
