//! After the commit: forward, or given up.

use super::fixture::{Scene, failure};
use crate::transition::{Action, NodeSeen, PodRole, PodSeen, RunState};
use tideover_crds::{Failure, FailureReason, Phase, SourceStep, TargetStep};

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
fn a_jobs_pod_leaves_its_job_before_it_is_deleted_and_not_before_the_commit() {
    let staged = Scene::new().at(Phase::Transferring).bare().target(TargetStep::Staged);
    let staged = staged.with(|scene| {
        scene.status().pod_manifest = None;
        scene.source().in_job = true;
    });
    staged.decide().does(&[]);
    let scene = staged.committed().with(|scene| scene.observed.replacements.clear());
    scene.decide().phase(Phase::Committing).does(&["take pu out of its Job", "delete pu in 0 s"]);
    let scene = scene.with(|scene| scene.source().in_job = false);
    scene.decide().does(&["delete pu in 0 s"]);
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
    let scene = Scene::new().at(Phase::Committing).bare().committed().name_taken("stranger");
    let scene = scene.with(|scene| scene.observed.replacements.clear());
    scene.decide().does(&[]).says("another pod has the name p; the state waits on b");
}

#[test]
fn a_replacement_that_the_api_server_refuses_is_told_and_tried_again() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().source_gone();
    let scene = scene.with(|scene| {
        scene.observed.replacements.clear();
        scene.observed.refused = Some("over quota".into());
    });
    scene.decide().does(&[]).says("the replacement can't be made, and the state waits on b: over quota");
    scene.with(|scene| scene.observed.refused = None).decide().does(&["replace on b"]);
}

// A restore that fails

fn failing() -> Scene {
    Scene::new()
        .at(Phase::Committing)
        .committed()
        .target(TargetStep::Committed)
        .target_fails(failure(FailureReason::RestoreFailed, true))
}

#[test]
fn a_restore_that_fails_after_the_commit_is_told_once_for_each_reason_and_kept() {
    let scene = failing();
    let told = scene.decide().phase(Phase::Committing).does(&[]).announces(&["RestoreFailing"]);
    assert_eq!(told.condition("RestoreFailing"), Some("True"));
    told.says(
        "b owns the application and can't run it yet: it was RestoreFailed; mend the cause, or give the state up and \
         let the application start cold: kubectl delete migration m",
    );
    let scene = scene.written();
    scene.decide().announces(&[]);
    let other = failure(FailureReason::TransferFailed, true);
    scene.target_fails(other).after(100_000).decide().phase(Phase::Committing).announces(&["RestoreFailing"]);
}

#[test]
fn a_restore_that_works_at_last_is_not_failing_any_more() {
    let told = failing().written().target(TargetStep::Resumed).decide();
    assert_eq!(told.condition("RestoreFailing"), Some("False"));
    told.phase(Phase::Committing).does(&["delete pu in 0 s"]);
}

#[test]
fn a_replacement_that_has_run_to_its_end_is_not_made_again() {
    // The report that it ran is still to come.
    for scene in [failing(), Scene::new().at(Phase::Committing).committed()] {
        let scene = scene.bare().source_gone();
        scene.with(|scene| scene.observed.replacements[0].state = RunState::Ended).decide().does(&[]);
    }
}

#[test]
fn a_bare_pods_state_is_kept_while_its_restore_fails() {
    failing().bare().source_gone().after(100_000).decide().phase(Phase::Committing).does(&[]);
}

// Given up

#[test]
fn a_replacement_that_is_lost_before_it_ran_is_given_up_and_the_source_does_not_come_back() {
    type Way = fn(&mut PodSeen);
    let gone = Scene::new().at(Phase::Committing).committed().with(|scene| scene.observed.replacements.clear());
    let changed = |way: Way| {
        let scene = Scene::new().at(Phase::Committing).committed();
        scene.with(|scene| way(&mut scene.observed.replacements[0]))
    };
    let ways = [
        ("was deleted", gone),
        ("is being deleted", changed(|pod| pod.terminating = true)),
        ("has ended", changed(|pod| pod.state = RunState::TurnedAway)),
    ];
    for (lost, scene) in ways {
        let told = scene.decide().phase(Phase::Committing).failed_with(FailureReason::StateLost).does(&[]);
        assert_eq!(told.condition("GivenUp"), Some("True"));
        let scene = scene.written();
        assert_eq!(scene.decide().decision.actions.first(), Some(&delete_source()), "{lost}");
        let scene = scene.source_gone().with(|scene| scene.observed.replacements.retain(|pod| pod.terminating));
        let told = scene.decide().phase(Phase::Failed).announces(&["Failed"]);
        told.says(&format!("the replacement q {lost} after the commit and before it ran: the application starts cold"));
    }
}

fn delete_source() -> Action {
    Action::DeletePod { role: PodRole::Source, name: "p".into(), uid: "pu".into(), grace_seconds: 0 }
}

#[test]
fn a_replacement_that_has_run_may_be_deleted() {
    let scene = Scene::new().at(Phase::Committing).committed().target(TargetStep::Resumed).source_gone();
    let scene = scene.reports(SourceStep::Retired).with(|scene| scene.observed.replacements.clear());
    scene.decide().phase(Phase::Succeeded);
}

#[test]
fn a_deployments_state_is_given_up_with_its_target_and_its_replacement_removed() {
    let scene = Scene::new().at(Phase::Committing).committed().target_gone().written();
    scene.decide().phase(Phase::Committing).does(&["delete pu in 0 s", "delete qu in 0 s"]);
    let scene = scene.source_gone().with(|scene| scene.observed.replacements.clear());
    let told = scene.decide().phase(Phase::Failed).failed_with(FailureReason::StateLost);
    told.says("the node b is gone, and the state with it: the application starts cold");
}

#[test]
fn a_bare_pod_whose_target_is_gone_is_made_again_free_and_cold() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().target_gone().written();
    scene.decide().phase(Phase::Committing).does(&["delete pu in 0 s", "delete qu in 0 s"]);
    let scene = scene.source_gone();
    scene.decide().phase(Phase::Committing).does(&["delete qu in 0 s"]);
    let scene = scene.with(|scene| scene.observed.replacements.clear());
    scene.decide().phase(Phase::Committing).does(&["make it again, cold"]);
    let told = scene.name_taken("cold").decide().phase(Phase::Failed).failed_with(FailureReason::StateLost);
    assert_eq!(told.status().replacement.as_ref().map(|pod| pod.uid.as_str()), Some("cold"));
    told.does(&["remove finalizer"]).says("the node b is gone, and the state with it: the application starts cold");
}

#[test]
fn a_state_that_the_target_has_lost_is_given_up_where_nobody_can_mend_it() {
    let lost = |retryable| failing().bare().target_fails(failure(FailureReason::StateLost, retryable));
    let told = lost(false).decide().phase(Phase::Committing).failed_with(FailureReason::StateLost);
    assert_eq!(told.condition("GivenUp"), Some("True"));
    assert_eq!(lost(true).decide().condition("GivenUp"), None);
    let replaced_first = failing().target_fails(failure(FailureReason::StateLost, false));
    assert_eq!(replaced_first.decide().condition("GivenUp"), None, "its replacement says what became of it");
}

#[test]
fn a_target_that_comes_back_too_late_finds_the_state_given_up() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().target_gone().source_gone().written();
    let scene = scene.target(TargetStep::Resumed).with(|scene| {
        scene.observed.target_node = Some(NodeSeen::Present { schedulable: true });
        scene.observed.replacements.clear();
    });
    scene.decide().phase(Phase::Committing).does(&["make it again, cold"]);
}

#[test]
fn a_stateful_sets_pod_is_left_to_its_controller_when_its_target_is_gone() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().target_gone().source_gone().with(|scene| {
        scene.status().pod_manifest = None;
        scene.observed.replacements.clear();
    });
    scene.written().decide().phase(Phase::Failed).does(&["remove finalizer"]).failed_with(FailureReason::StateLost);
}

#[test]
fn deleting_the_migration_right_after_the_commit_changes_nothing() {
    failing().deleted().after(30).decide().phase(Phase::Committing).does(&[]);
    let told = failing().deleted().after(31).decide().failed_with(FailureReason::StateLost);
    let told = told.does(&[]);
    assert_eq!(told.condition("GivenUp"), Some("True"));
}

#[test]
fn deleting_the_migration_of_a_restore_that_fails_starts_the_application_cold_once_the_replacement_is_gone() {
    let given_up = |scene: Scene| scene.deleted().after(31).written().source_gone();
    for scene in [given_up(failing()), given_up(failing().bare())] {
        scene.decide().phase(Phase::Committing).does(&["delete qu in 1 s"]);
    }
    let going = |scene: Scene| given_up(scene).with(|scene| scene.observed.replacements[0].terminating = true);
    // The ReplicaSet makes another pod already, and that is an ordinary one.
    let told = going(failing()).decide().phase(Phase::Failed).does(&["remove finalizer"]);
    told.says("the Migration was deleted before the application ran on b: the application starts cold");
    // The name is not free, and what may be under way in it has not ended.
    going(failing().bare()).decide().phase(Phase::Committing).does(&[]);
    let gone = given_up(failing().bare()).with(|scene| scene.observed.replacements.clear());
    gone.decide().phase(Phase::Committing).does(&["make it again, cold"]);
}

#[test]
fn a_replacement_that_has_run_is_left_alone_whatever_was_given_up() {
    for state in [RunState::Running, RunState::Ended] {
        let scene = failing().bare().deleted().after(31).written().source_gone();
        let ran = scene.with(|scene| scene.observed.replacements[0].state = state);
        ran.decide().phase(Phase::Failed).does(&["remove finalizer"]);
    }
    // kubelet is slower than the target's agent.
    let scene = failing().bare().deleted().after(31).written().source_gone();
    scene.target(TargetStep::Resumed).decide().phase(Phase::Failed).does(&["remove finalizer"]);
}

#[test]
fn deleting_the_migration_of_a_bare_pod_without_a_replacement_makes_it_again() {
    let scene = failing().bare().deleted().after(31).source_gone().written();
    let over = failing().bare().deleted().after(31).source_gone().written();
    over.with(|scene| scene.observed.replacements[0].state = RunState::TurnedAway).decide().does(&["delete qu in 0 s"]);
    let scene = scene.with(|scene| scene.observed.replacements.clear());
    scene.decide().phase(Phase::Committing).does(&["make it again, cold"]);
    let refused = scene.with(|scene| scene.observed.refused = Some("the namespace is being terminated".into()));
    refused.decide().phase(Phase::Failed);
}

#[test]
fn a_cold_pod_that_the_api_server_refuses_is_told_and_tried_again() {
    let scene = Scene::new().at(Phase::Committing).bare().committed().target_gone().source_gone().with(|scene| {
        scene.observed.replacements.clear();
        scene.observed.refused = Some("over quota".into());
    });
    let scene = scene.written();
    scene.decide().phase(Phase::Committing).does(&[]).says("the pod p can't be made again: over quota");
    scene.with(|scene| scene.observed.refused = None).decide().does(&["make it again, cold"]);
}

// Lost where it ran

fn lost() -> Failure {
    let message = "memory of the restored processes is missing, and they were ended: the page daemon is gone".into();
    Failure { reason: FailureReason::StateLost, message, retryable: false }
}

#[test]
fn a_state_that_is_lost_where_it_ran_is_told_once_and_the_move_stays_what_it_is() {
    let over = Scene::new().at(Phase::Succeeded).committed().source_gone().target(TargetStep::Resumed);
    let cleaning = Scene::new().at(Phase::Committing).committed().target(TargetStep::Resumed);
    for (phase, scene) in [(Phase::Succeeded, over), (Phase::Committing, cleaning)] {
        let told = scene.decide();
        assert_eq!(told.condition("StateLost"), None);
        let scene = scene.target_fails(lost());
        let told = scene.decide().phase(phase).announces(&["StateLost"]);
        assert_eq!(told.condition("StateLost"), Some("True"));
        let pods = told.decision.actions.iter().filter_map(|action| match action {
            Action::Announce(told) => told.pod.as_ref().map(|pod| pod.uid.as_str()),
            _ => None,
        });
        assert_eq!(pods.collect::<Vec<_>>(), ["qu"]);
        let sentence = format!("{}: the application starts cold on b", lost().message);
        let told = told.says(&sentence);
        assert_eq!(told.status().failures, [], "no attempt has failed");
        scene.written().decide().phase(phase).announces(&[]).says(&sentence);
    }
}

#[test]
fn no_other_failure_of_a_target_and_of_no_other_attempt_says_that_a_state_is_lost() {
    let over = || Scene::new().at(Phase::Succeeded).committed().source_gone().target(TargetStep::Resumed);
    let other = over().target_fails(failure(FailureReason::RestoreFailed, true));
    let earlier = over().target_fails(lost()).with(|scene| scene.status().attempt += 1);
    let not_there = Scene::new().at(Phase::Committing).committed().target(TargetStep::Committed).target_fails(lost());
    for scene in [other, earlier, not_there] {
        assert_eq!(scene.decide().condition("StateLost"), None);
    }
}
