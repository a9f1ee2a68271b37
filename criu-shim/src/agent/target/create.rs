//! How a container shall start: a pure decision from its identity and the Migration that has to do with its pod.

use crate::agent::duty::verdict_of;
use crate::local::{ContainerType, Create};
use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, TargetStep};

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
    /// It must not start.
    Refuse(String),
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
        return match verdict_of(status, status.attempt) {
            Verdict::Committed => Start::Refuse(format!("the Migration {name} has moved this pod to another node")),
            _ => Start::Cold,
        };
    }
    if !is(&status.replacement) {
        return match status.replacement {
            // Named by its annotation, and the operator has not said yet which pod it is.
            None if !status.phase.is_terminal() => Start::Undecided,
            _ => Start::Cold,
        };
    }
    let restored = status.target.as_ref().is_some_and(|target| target.step == TargetStep::Resumed);
    match verdict_of(status, status.attempt) {
        // It has run here since: this is a restart of the container like any other.
        Verdict::Committed if restored || status.phase.is_terminal() => Start::Cold,
        Verdict::Committed if status.owner.as_ref().is_some_and(|owner| owner.node != node) => {
            Start::Refuse(format!("the Migration {name} has committed this pod to another node"))
        }
        Verdict::Aborted => Start::Refuse(format!("the Migration {name} was rolled back: the pod runs on its source")),
        _ if status.phase.is_terminal() => Start::Refuse(format!("the Migration {name} is over")),
        Verdict::Open | Verdict::Committed => {
            Start::Restore { uid: migration.metadata.uid.clone().unwrap_or_default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::fixture::migration;
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
        }
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
    fn a_pod_whose_place_is_not_decided_waits() {
        let early = migration().attempt(1).phase(Phase::Handover);
        assert_eq!(start(&create("new"), &early.build(), "b"), Start::Undecided);
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
