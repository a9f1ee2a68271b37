//! Preparing and PreCopying: the application runs, and nothing was touched.

use super::fixture::{Scene, host, pod, target_report};
use tideover_crds::{FailureReason, HostFacts, Phase, SourceStep, TargetStep};

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
fn agents_of_two_versions_are_told_apart_before_anything_is_connected() {
    for (theirs, told) in [(2, "1 and 2"), (0, "1 and 0")] {
        let scene =
            Scene::new().at(Phase::Preparing).reserved().reports(SourceStep::Ready).target(TargetStep::Listening);
        let scene = scene.with(|scene| {
            // Of a version that says nothing else in the same way.
            let other = HostFacts { protocol: theirs, architecture: "x".into(), ..host() };
            scene.status().target.as_mut().expect("a report").host = Some(other);
        });
        scene.decide().does(&["abort 1 for a at 0"]).failed_with(FailureReason::AgentVersions).says(&format!(
            "giving up attempt 1: the agents of a and b speak versions {told} of their protocol: one of them is being upgraded"
        ));
    }
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

#[test]
fn a_deployments_pod_is_handed_over_once_copying_has_converged() {
    let scene = Scene::new().at(Phase::PreCopying).reports(SourceStep::Converged);
    scene.decide().phase(Phase::Handover).does(&["delete vu in 1 s"]);
}
