//! Pending: is this a move that can be made at all, and is it this Migration's to make?

use super::decision::Action;
use super::ended;
use super::observed::{Claim, SourceSeen};
use super::step::Step;
use std::time::Duration;
use tideover_crds::{Failure, FailureReason, MigrationReason, ObjectRef, Owner, Phase, ResolvedPolicy, Strategy};

/// `True` where the source's node was seen cordoned while the Migration was accepted.
pub(super) const SOURCE_CORDONED: &str = "SourceCordoned";

/// How often to look whether there is room for one more move.
const ROOM_PAUSE: Duration = Duration::from_secs(2);

pub(super) fn examine(step: &mut Step<'_>) {
    if step.is_deleted() {
        return step.end(Phase::Cancelled, "the Migration was deleted before anything was done");
    }
    if step.observed.excluded {
        let namespace = step.migration().metadata.namespace.as_deref().unwrap_or_default();
        let message = format!("the namespace {namespace} is excluded from Tideover");
        return refuse(step, FailureReason::NotMovable, message);
    }
    let name = step.migration().spec.pod.name.clone();
    let Some(source) = &step.observed.source else {
        return refuse(step, FailureReason::NotMovable, format!("there is no pod {name}"));
    };
    if let Some(uid) = step.migration().spec.pod.uid.as_ref().filter(|uid| **uid != source.pod.uid) {
        let message = format!("the pod {name} with UID {uid} is gone; another pod has its name now");
        return refuse(step, FailureReason::NotMovable, message);
    }
    if source.pod.terminating {
        return step.end(Phase::Cancelled, format!("the pod {name} is being deleted"));
    }
    if !step.observed.reason_stands {
        return step.end(Phase::Cancelled, reason_gone(step.migration().spec.reason));
    }
    if let Claim::Taken(first) = &source.claim {
        let message = format!("the Migration {first} is moving the pod {name} already");
        return refuse(step, FailureReason::AlreadyMoving, message);
    }
    if let Some(obstacle) = source.obstacles.first() {
        return refuse(step, FailureReason::NotMovable, obstacle.message.clone());
    }
    let Some(node) = source.pod.node.clone() else {
        return refuse(step, FailureReason::NotMovable, format!("the pod {name} is on no node yet"));
    };
    if step.migration().spec.target_node.as_ref() == Some(&node) {
        return refuse(step, FailureReason::NoTarget, format!("the pod {name} runs on {node} already"));
    }
    let room = step.observed.room;
    if room.active >= room.max_active {
        step.say(format!("waiting: {} moves are under way, the most that may be", room.active));
        return step.wake_in(ROOM_PAUSE);
    }
    if room.outbound >= room.max_outbound {
        step.say(format!("waiting: {} moves away from {node} are under way, the most that may be", room.outbound));
        return step.wake_in(ROOM_PAUSE);
    }
    if room.of_controller > 0 {
        step.say("waiting: another pod of the same controller is being moved, and its replacement could be taken for this one's");
        return step.wake_in(ROOM_PAUSE);
    }
    if !step.has_finalizer() {
        return step.act(Action::AddFinalizer);
    }
    let claim = |instead_of| Action::ClaimPod { name, uid: source.pod.uid.clone(), instead_of };
    match &source.claim {
        Claim::Ours => accept(step, source, node),
        Claim::Stale(uid) => step.act(claim(Some(uid.clone()))),
        _ => step.act(claim(None)),
    }
}

fn accept(step: &mut Step<'_>, source: &SourceSeen, node: String) {
    let (policy_name, policy) = step.observed.policy.clone().unzip();
    let strategy = strategy(source);
    let status = &mut step.status;
    status.attempt = 1;
    status.owner = Some(Owner::new(&node, 0));
    status.policy = Some(ResolvedPolicy::from_policy(policy_name, &policy.unwrap_or_default()));
    status.strategy = Some(strategy);
    status.source_pod =
        Some(ObjectRef { name: source.pod.name.clone(), uid: source.pod.uid.clone(), node: Some(node.clone()) });
    status.containers = source.containers.clone();
    status.controller_uid = source.controller.as_ref().map(|controller| controller.uid.clone());
    if strategy == Strategy::DeleteFirst && source.controller.is_none() {
        status.pod_manifest = Some(source.manifest.clone());
    }
    step.enter(Phase::Preparing, format!("looking for a node to move the pod to from {node}"));
    let cordoned = matches!(step.observed.source_node, super::NodeSeen::Present { schedulable: false });
    step.condition(SOURCE_CORDONED, cordoned, if cordoned { "Cordoned" } else { "Schedulable" });
    step.condition(ended::COMPLETED, false, "InProgress");
    step.condition(super::committed::COMMITTED, false, "Undecided");
    step.announce(false, "Moving");
}

/// A ReplicaSet tells its pods apart by the template hash, so its pod can be taken out and replaced before it goes.
/// Everything else needs the name, or makes a replacement only once the pod is gone.
fn strategy(source: &SourceSeen) -> Strategy {
    let in_replica_set = source.controller.as_ref().is_some_and(|controller| controller.kind == "ReplicaSet");
    if in_replica_set && source.template_hash.is_some() { Strategy::ReplaceFirst } else { Strategy::DeleteFirst }
}

fn refuse(step: &mut Step<'_>, reason: FailureReason, message: String) {
    step.status.failures.push(Failure { reason, message: message.clone(), retryable: false });
    step.end(Phase::Failed, message);
}

/// Why a move was called off whose reason is gone.
pub(super) fn reason_gone(reason: MigrationReason) -> &'static str {
    match reason {
        MigrationReason::Maintenance => "the NodeMaintenance that asked for the move is gone",
        MigrationReason::StartLimit => "the container no longer waits to be moved",
        _ => "the node was uncordoned",
    }
}
