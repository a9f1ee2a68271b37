//! How a container shall start: a pure decision from its identity and the Migration that has to do with its pod.

use crate::local::{ContainerType, Create};
use k8s_openapi::api::core::v1::Pod;
use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, Phase, TargetStep};

/// How a container shall start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nobody restores it.
    Cold,
    /// It can't be told yet.
    Undecided,
    /// It is restored: the task of this Migration knows how and when.
    Restore {
        /// UID of the Migration.
        uid: String,
    },
    /// It is restored and never runs: the task of this Migration knows how and when.
    Rehearse {
        /// UID of the Migration.
        uid: String,
    },
    /// It must not start.
    Refuse(String),
    /// It is stamped as a replacement and nobody will restore it any more: it must not start, for this reason, unless it
    /// has run before.
    Stray(String),
}

/// Decides for a container whose pod names a Migration that is gone.
pub fn start_without(name: &str) -> Start {
    Start::Stray(format!("the Migration {name}, which was to restore this pod, is gone"))
}

/// What becomes of a stray, given whether it has run before.
pub fn start_stray(reason: String, has_run: bool) -> Start {
    // It ran because it was allowed to: its move is long over, and this is a restart like any other.
    if has_run { Start::Cold } else { Start::Refuse(reason) }
}

/// Whether `pod` has run at some time: its last container has, which is created when those before it are. Of those kubelet also says so
/// where only their stand-ins have been there. One that could not be started has no time of its start.
pub fn has_run(pod: &Pod) -> bool {
    let last = pod.spec.as_ref().and_then(|spec| spec.containers.last());
    let Some((status, last)) = pod.status.as_ref().zip(last) else { return false };
    let containers = status.container_statuses.iter().flatten();
    containers
        .filter(|container| container.name == last.name)
        .flat_map(|container| [&container.state, &container.last_state])
        .flatten()
        .flat_map(|state| {
            let running = state.running.as_ref().and_then(|running| running.started_at.as_ref());
            let ended = state.terminated.as_ref().and_then(|ended| ended.started_at.as_ref());
            [running, ended]
        })
        .flatten()
        .any(|started| started.0 > jiff::Timestamp::UNIX_EPOCH)
}

/// Decides for a container of a rehearsal pod on `node`, given the Migration that the pod names; `None` where that is gone.
///
/// It is never [`Start::Cold`] or [`Start::Restore`]: either would be a second copy of the application.
pub fn start_rehearsal(create: &Create, migration: Option<&Migration>, node: &str) -> Start {
    let Some(migration) = migration else {
        return Start::Refuse("the Migration whose restore was to be rehearsed is gone".to_owned());
    };
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    let over = || Start::Refuse(format!("the rehearsal for the Migration {name} is over"));
    let Some(status) = &migration.status else { return over() };
    if status.verdict() != Verdict::Open || status.phase > Phase::Rehearsing {
        return over();
    }
    match &status.rehearsal {
        // The operator records the pod once it has seen it.
        None => Start::Undecided,
        Some(pod) if pod.uid != create.pod_uid || status.target_node.as_deref() != Some(node) => over(),
        Some(_) => Start::Rehearse { uid: migration.metadata.uid.clone().unwrap_or_default() },
    }
}

/// Decides for the container `create` on `node`, given one Migration that its pod is the source or the replacement of,
/// or that its annotation names.
pub fn start(create: &Create, migration: &Migration, node: &str) -> Start {
    let Some(status) = &migration.status else { return Start::Undecided };
    if create.container_type == ContainerType::Sandbox {
        return Start::Cold;
    }
    let name = migration.metadata.name.as_deref().unwrap_or_default();
    let is = |pod: &Option<tideover_crds::ObjectRef>| pod.as_ref().is_some_and(|pod| pod.uid == create.pod_uid);
    if is(&status.source_pod) {
        return match status.verdict() {
            Verdict::Committed => Start::Refuse(format!("the Migration {name} has moved this pod to another node")),
            // It may run elsewhere by now.
            Verdict::Taken => Start::Undecided,
            Verdict::Open | Verdict::Aborted => Start::Cold,
        };
    }
    if !is(&status.replacement) {
        return match status.verdict() {
            _ if create.replacement_of.as_deref() != Some(name) || status.phase == Phase::Succeeded => Start::Cold,
            // The source will not run again, whatever became of the rest.
            Verdict::Committed if status.phase.is_terminal() => Start::Cold,
            Verdict::Aborted => {
                Start::Stray(format!("the Migration {name} was rolled back: the pod runs on its source"))
            }
            _ if status.phase.is_terminal() => Start::Stray(format!("the Migration {name} is over")),
            // The operator has not said yet which pod it is, or has said another.
            Verdict::Open | Verdict::Taken | Verdict::Committed => Start::Undecided,
        };
    }
    let restored = status.target.as_ref().is_some_and(|target| target.step == TargetStep::Resumed);
    match status.verdict() {
        // It has run here since: this is a restart of the container like any other.
        Verdict::Committed if restored || status.phase.is_terminal() => Start::Cold,
        Verdict::Committed if status.owner.as_ref().is_some_and(|owner| owner.node != node) => {
            Start::Refuse(format!("the Migration {name} has committed this pod to another node"))
        }
        Verdict::Aborted => Start::Refuse(format!("the Migration {name} was rolled back: the pod runs on its source")),
        _ if status.phase.is_terminal() => Start::Refuse(format!("the Migration {name} is over")),
        // Its processes may be among those that move. Nothing starts cold beside them on a guess.
        _ if status.containers.is_empty() => Start::Refuse(format!(
            "the Migration {name} does not say which containers move: an operator of before made it"
        )),
        // An init container: its processes ended long ago on the source, and kubelet wants to see it end here before it
        // creates the one that moves.
        _ if !status.containers.contains(&create.container_name) => Start::Cold,
        Verdict::Open | Verdict::Taken | Verdict::Committed => {
            Start::Restore { uid: migration.metadata.uid.clone().unwrap_or_default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::{PHASES, migration};
    use tideover_crds::Phase;

    fn create(pod_uid: &str) -> Create {
        Create {
            container_id: "c".into(),
            bundle: "/b".into(),
            pod_namespace: "default".into(),
            pod_name: "p".into(),
            pod_uid: pod_uid.into(),
            container_name: "app".into(),
            container_type: ContainerType::Container,
            replacement_of: None,
            rehearsal_of: None,
        }
    }

    fn stamped(pod_uid: &str) -> Create {
        Create { replacement_of: Some("move".into()), ..create(pod_uid) }
    }

    #[test]
    fn the_replacement_is_restored_and_no_other_pod() {
        let open = migration().attempt(1).phase(Phase::Handover).replacement("new");
        assert_eq!(start(&create("new"), &open.build(), "b"), Start::Restore { uid: "u".into() });
        assert_eq!(start(&create("other"), &open.build(), "b"), Start::Cold);
        let mut sandbox = create("new");
        sandbox.container_type = ContainerType::Sandbox;
        assert_eq!(start(&sandbox, &open.build(), "b"), Start::Cold);
    }

    #[test]
    fn the_state_goes_into_the_container_it_came_from_and_into_no_other() {
        let init = Create { container_name: "init".into(), ..stamped("new") };
        let open = migration().attempt(1).phase(Phase::Handover).replacement("new").containers(&["app"]);
        let committed = open.clone().phase(Phase::Committing).owner("b", 1);
        for fixture in [open, committed] {
            assert_eq!(start(&stamped("new"), &fixture.build(), "b"), Start::Restore { uid: "u".into() });
            assert_eq!(start(&init, &fixture.build(), "b"), Start::Cold);
        }
        let aborted =
            migration().attempt(1).phase(Phase::RollingBack).owner("a", 1).replacement("new").containers(&["app"]);
        assert!(matches!(start(&init, &aborted.build(), "b"), Start::Refuse(_)), "nothing of it is wanted any more");
        let unsaid = migration().attempt(1).phase(Phase::Committing).owner("b", 1).replacement("new").containers(&[]);
        assert!(matches!(start(&stamped("new"), &unsaid.build(), "b"), Start::Refuse(_)), "never cold on a guess");
    }

    #[test]
    fn a_pod_whose_place_is_not_decided_waits() {
        let early = migration().attempt(1).phase(Phase::Handover);
        assert_eq!(start(&stamped("new"), &early.build(), "b"), Start::Undecided);
        let other = early.replacement("other");
        assert_eq!(start(&stamped("new"), &other.build(), "b"), Start::Undecided);
    }

    #[test]
    fn a_stamped_pod_that_was_never_recorded_does_not_start_beside_its_source() {
        let aborted = migration().attempt(1).phase(Phase::RollingBack).owner("a", 1);
        assert!(matches!(start(&stamped("new"), &aborted.build(), "b"), Start::Stray(_)));
        for phase in [Phase::Failed, Phase::Cancelled] {
            let over = migration().attempt(1).phase(phase);
            assert!(matches!(start(&stamped("new"), &over.build(), "b"), Start::Stray(_)));
        }
        let done = migration().attempt(1).phase(Phase::Succeeded).owner("b", 1).replacement("other");
        assert_eq!(start(&stamped("new"), &done.build(), "b"), Start::Cold);
        assert!(matches!(start_without("move"), Start::Stray(_)));
    }

    #[test]
    fn a_stray_starts_only_if_it_has_run_before() {
        let pod = |container: &str, state: serde_json::Value| -> Pod {
            let status = serde_json::json!({ "name": container, "image": "", "imageID": "", "ready": false,
                "restartCount": 1, "state": { "waiting": {} }, "lastState": state });
            let spec = serde_json::json!({ "containers": [{ "name": "first" }, { "name": "app" }] });
            let pod = serde_json::json!({ "spec": spec, "status": { "containerStatuses": [status] } });
            serde_json::from_value(pod).expect("pod")
        };
        let ended = |at: &str| serde_json::json!({ "terminated": { "exitCode": 1, "startedAt": at } });
        assert!(has_run(&pod("app", ended("2026-01-01T00:00:00Z"))));
        assert!(!has_run(&pod("first", ended("2026-01-01T00:00:00Z"))), "that may have been a stand-in");
        assert!(!has_run(&pod("app", ended("1970-01-01T00:00:00Z"))), "it could not be started");
        assert!(!has_run(&pod("app", serde_json::json!({}))));
        assert_eq!(start_stray("why".into(), true), Start::Cold);
        assert_eq!(start_stray("why".into(), false), Start::Refuse("why".into()));
    }

    #[test]
    fn a_rehearsal_pod_never_starts_whatever_the_migration_says() {
        let create = Create { rehearsal_of: Some("move".into()), ..create("practice") };
        assert!(matches!(start_rehearsal(&create, None, "b"), Start::Refuse(_)));
        for phase in PHASES {
            for (owner, decided) in [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2)] {
                for recorded in [None, Some("practice"), Some("other")] {
                    let mut fixture = migration().attempt(2).phase(phase).owner(owner, decided);
                    if let Some(uid) = recorded {
                        fixture = fixture.rehearsal(uid);
                    }
                    let told = start_rehearsal(&create, Some(&fixture.build()), "b");
                    let open = owner == "a" && decided < 2 && phase <= Phase::Rehearsing;
                    match told {
                        Start::Rehearse { .. } => assert!(open && recorded == Some("practice"), "{phase:?} {owner}"),
                        Start::Undecided => assert!(open && recorded.is_none(), "{phase:?} {owner}"),
                        Start::Refuse(_) => assert!(!open || recorded == Some("other"), "{phase:?} {owner}"),
                        other => panic!("{phase:?} {owner} {decided} {recorded:?}: {other:?}"),
                    }
                }
            }
        }
        let recorded = migration().attempt(2).phase(Phase::Rehearsing).owner("a", 1).rehearsal("practice").build();
        assert!(matches!(start_rehearsal(&create, Some(&recorded), "c"), Start::Refuse(_)), "not the target");
    }

    #[test]
    fn a_source_never_comes_back_after_the_commit() {
        let open = migration().attempt(1).phase(Phase::Freezing);
        assert_eq!(start(&create("old"), &open.build(), "a"), Start::Cold);
        let committed = migration().attempt(1).phase(Phase::Committing).owner("b", 1);
        assert!(matches!(start(&create("old"), &committed.build(), "a"), Start::Refuse(_)));
        let done = migration().attempt(1).phase(Phase::Succeeded).owner("b", 1);
        assert!(matches!(start(&create("old"), &done.build(), "a"), Start::Refuse(_)));
    }

    #[test]
    fn a_replacement_of_an_aborted_attempt_is_refused() {
        let aborted = migration().attempt(1).phase(Phase::RollingBack).owner("a", 1).replacement("new");
        assert!(matches!(start(&create("new"), &aborted.build(), "b"), Start::Refuse(_)));
    }

    #[test]
    fn a_restored_container_that_ended_starts_cold() {
        let done = migration().attempt(1).phase(Phase::Succeeded).owner("b", 1).replacement("new");
        assert_eq!(start(&create("new"), &done.build(), "b"), Start::Cold);
        let committed = migration().attempt(1).phase(Phase::Committing).owner("b", 1).replacement("new");
        assert_eq!(start(&create("new"), &committed.build(), "b"), Start::Restore { uid: "u".into() });
        let resumed = committed.target_step(TargetStep::Resumed);
        assert_eq!(start(&create("new"), &resumed.build(), "b"), Start::Cold);
    }
}
