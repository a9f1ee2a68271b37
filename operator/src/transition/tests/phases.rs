//! What is decided in each phase, a sentence each.

use super::fixture::{Scene, failure, host, pod, target_report};
use crate::transition::{Action, Claim, NodeSeen, RunState};
use serde_json::json;
use tideover_crds::{
    FailureReason, HostFacts, MigrationReason, Obstacle, ObstacleReason, Owner, Phase, SourceStep, Strategy, TargetStep,
};

// Pending

#[test]
fn a_pod_is_claimed_before_anything_else() {
    Scene::new().decide().phase(Phase::Pending).does(&["claim"]);
}

#[test]
fn the_finalizer_comes_before_the_claim() {
    let scene = Scene::new().with(|scene| scene.observed.migration.metadata.finalizers = None);
    scene.decide().phase(Phase::Pending).does(&["add finalizer"]);
}

#[test]
fn a_claimed_pod_is_accepted_and_a_node_is_looked_for() {
    let told = Scene::new().with(|scene| scene.source().claim = Claim::Ours).decide();
    assert_eq!(told.status().owner, Some(Owner { node: "a".into(), attempt: 0 }));
    assert_eq!(told.status().strategy, Some(Strategy::ReplaceFirst));
    assert_eq!(told.status().controller_uid.as_deref(), Some("ru"));
    assert_eq!(told.status().pod_manifest, None);
    told.phase(Phase::Preparing).does(&["reserve m-reservation-1"]);
}

#[test]
fn the_manifest_of_a_bare_pod_is_kept_before_anything_can_be_deleted() {
    let told = Scene::new().bare().with(|scene| scene.source().claim = Claim::Ours).decide();
    assert_eq!(told.status().strategy, Some(Strategy::DeleteFirst));
    assert_eq!(told.status().pod_manifest, Some(json!({ "metadata": { "name": "p" } })));
}

#[test]
fn a_stateful_sets_pod_is_made_again_by_its_controller() {
    let told = Scene::new()
        .with(|scene| {
            scene.source().claim = Claim::Ours;
            scene.source().controller.as_mut().expect("a controller").kind = "StatefulSet".into();
        })
        .decide();
    assert_eq!(told.status().strategy, Some(Strategy::DeleteFirst));
    assert_eq!(told.status().pod_manifest, None);
}

#[test]
fn a_second_migration_of_a_pod_names_the_first() {
    let scene = Scene::new().with(|scene| scene.source().claim = Claim::Taken("first".into()));
    scene
        .decide()
        .phase(Phase::Failed)
        .failed_with(FailureReason::AlreadyMoving)
        .says("the Migration first is moving the pod p already");
}

#[test]
fn the_claim_of_a_migration_that_is_over_is_taken() {
    let scene = Scene::new().with(|scene| scene.source().claim = Claim::Stale("old".into()));
    scene.decide().does(&["claim instead of old"]);
}

#[test]
fn an_obstacle_is_told_and_nothing_is_touched() {
    let obstacle = Obstacle { reason: ObstacleReason::Terminal, message: "tty is true".into() };
    let scene = Scene::new().with(|scene| scene.source().obstacles.push(obstacle));
    let told = scene.decide().phase(Phase::Failed).failed_with(FailureReason::NotMovable).says("tty is true");
    told.does(&["remove finalizer"]);
}

#[test]
fn another_pod_of_the_same_name_is_refused() {
    let scene = Scene::new().with(|scene| scene.observed.migration.spec.pod.uid = Some("other".into()));
    scene.decide().phase(Phase::Failed).failed_with(FailureReason::NotMovable);
}

#[test]
fn where_admission_does_not_look_nothing_is_moved() {
    let scene = Scene::new().with(|scene| scene.observed.excluded = true);
    scene.decide().phase(Phase::Failed).says("the namespace ns is excluded from Tideover");
}

#[test]
fn a_pod_that_does_not_exist_is_refused() {
    Scene::new().source_gone().decide().phase(Phase::Failed).says("there is no pod p");
}

#[test]
fn the_limits_make_a_migration_wait() {
    let full = Scene::new().with(|scene| scene.observed.room.active = 5).decide();
    assert!(full.decision.requeue.is_some());
    full.phase(Phase::Pending).does(&[]).says("waiting: 5 moves are under way, the most that may be");
    let busy = Scene::new().with(|scene| scene.observed.room.outbound = 2);
    busy.decide().phase(Phase::Pending).does(&[]);
}

#[test]
fn an_uncordoned_node_cancels_what_was_not_begun() {
    let scene = Scene::new().asked_by(MigrationReason::Cordon).reason_gone();
    scene.decide().phase(Phase::Cancelled).says("the node was uncordoned");
}

// Preparing

#[test]
fn the_node_of_the_reservation_is_the_target() {
    let scene = Scene::new().at(Phase::Preparing);
    scene.decide().does(&["reserve m-reservation-1"]);
    let scene = scene.with(|scene| scene.observed.reservation = Some(pod("m-reservation-1", "vu", Some("b"))));
    let told = scene.decide();
    assert_eq!(told.status().target_node.as_deref(), Some("b"));
    told.phase(Phase::Preparing).does(&[]).says("waiting for the agent on b to listen");
}

#[test]
fn the_schedulers_reason_is_shown() {
    let scene = Scene::new().at(Phase::Preparing).with(|scene| {
        let mut reservation = pod("m-reservation-1", "vu", None);
        reservation.unschedulable = Some("0/3 nodes are available".into());
        scene.observed.reservation = Some(reservation);
    });
    scene.decide().says("no node has room yet: 0/3 nodes are available");
    let told = scene.after(151).decide().failed_with(FailureReason::NoTarget);
    told.does(&["abort 1 for a at 0"]);
}

#[test]
fn both_agents_are_ready_and_copying_begins() {
    let scene = Scene::new().at(Phase::Preparing).reserved();
    scene.reports(SourceStep::Ready).target(TargetStep::Listening).decide().phase(Phase::PreCopying).does(&[]);
}

#[test]
fn a_report_of_another_attempt_is_void() {
    let scene = Scene::new().at(Phase::Preparing).reserved().reports(SourceStep::Ready);
    let scene = scene.with(|scene| scene.status().target = Some(target_report(2, TargetStep::Listening)));
    scene.decide().phase(Phase::Preparing);
}

#[test]
fn a_target_whose_cpu_lacks_a_feature_is_given_up() {
    let scene = Scene::new().at(Phase::Preparing).reserved().reports(SourceStep::Ready).target(TargetStep::Listening);
    let scene = scene.with(|scene| {
        let lesser = HostFacts { cpu_features: "sse2".into(), ..host() };
        scene.status().target.as_mut().expect("a report").host = Some(lesser);
    });
    scene
        .decide()
        .does(&["abort 1 for a at 0"])
        .failed_with(FailureReason::IncompatibleHost)
        .says("giving up attempt 1: b can't run the process image: its CPU lacks avx");
}

#[test]
fn a_refused_reservation_ends_the_attempt_with_the_reason() {
    let scene = Scene::new().at(Phase::Preparing).with(|scene| scene.observed.refused = Some("over quota".into()));
    scene.decide().does(&["abort 1 for a at 0"]).says("giving up attempt 1: the reservation was refused: over quota");
}

#[test]
fn a_reservation_that_was_deleted_ends_the_attempt() {
    let scene = Scene::new().at(Phase::PreCopying).with(|scene| scene.observed.reservation = None);
    scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::NoTarget);
}

#[test]
fn an_agent_that_is_silent_is_named() {
    let scene = Scene::new().at(Phase::Preparing).reserved().reports(SourceStep::Ready).after(151);
    scene
        .decide()
        .does(&["abort 1 for a at 0"])
        .failed_with(FailureReason::AgentUnreachable)
        .says("giving up attempt 1: the agent on b did not answer within 150 s");
}

// PreCopying

#[test]
fn a_deployments_pod_is_handed_over_once_copying_has_converged() {
    let scene = Scene::new().at(Phase::PreCopying).reports(SourceStep::Converged);
    scene.decide().phase(Phase::Handover).does(&["delete vu in 1 s"]);
}

#[test]
fn a_bare_pod_is_frozen_once_copying_has_converged() {
    let scene = Scene::new().at(Phase::PreCopying).bare().reports(SourceStep::Converged);
    scene.decide().phase(Phase::Freezing).does(&[]);
}

// Handover

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

// Freezing to the verdict

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

// After the commit

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

// RollingBack

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

// BackingOff

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
fn uncordoning_while_backing_off_cancels() {
    let scene = undone().asked_by(MigrationReason::Cordon).reason_gone();
    let scene = scene.with(|scene| scene.status().phase = Phase::BackingOff);
    scene.decide().phase(Phase::Cancelled);
}
