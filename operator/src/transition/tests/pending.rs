//! Pending: what is refused, claimed and accepted.

use super::fixture::Scene;
use crate::transition::Claim;
use serde_json::json;
use tideover_crds::{FailureReason, MigrationReason, Obstacle, ObstacleReason, Owner, Phase, Strategy};

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
    assert_eq!(told.status().owner, Some(Owner::new("a", 0)));
    assert_eq!(told.status().strategy, Some(Strategy::ReplaceFirst));
    assert_eq!(told.status().controller_uid.as_deref(), Some("ru"));
    assert_eq!(told.status().containers, ["app"]);
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
    let sibling = Scene::new().with(|scene| scene.observed.room.of_controller = 1).decide();
    assert!(sibling.decision.requeue.is_some());
    sibling.phase(Phase::Pending).does(&[]);
}

#[test]
fn an_uncordoned_node_cancels_what_was_not_begun() {
    let scene = Scene::new().asked_by(MigrationReason::Cordon).reason_gone();
    scene.decide().phase(Phase::Cancelled).says("the node was uncordoned");
}

#[test]
fn a_container_that_waits_no_longer_is_not_moved() {
    let scene = Scene::new().asked_by(MigrationReason::StartLimit).reason_gone();
    scene.decide().phase(Phase::Cancelled).says("the container no longer waits to be moved");
}
