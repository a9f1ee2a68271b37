//! What admission makes of a new pod: under the shim where a policy protects it, and pinned and stamped where a move
//! waits for it. Pure.

use crate::pod::{manifest, seen};
use crate::policy;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use tideover_crds::migration::Verdict;
use tideover_crds::{Migration, Phase, ProtectedWorkload, Strategy};

/// The Migration that waits for a pod of this controller, if there is one. `is_there` says of a Migration whether the
/// replacement that it has recorded exists: a second one is wanted only where the first is gone, and then it has to be
/// stamped too, because an ordinary pod would be a second copy.
pub(super) fn expected_by<'a>(
    migrations: &'a [Migration],
    pod: &Pod,
    is_there: impl Fn(&Migration) -> bool,
) -> Option<&'a Migration> {
    let controller = seen::controller(pod)?;
    migrations.iter().find(|migration| {
        let Some(status) = &migration.status else { return false };
        if status.controller_uid.as_deref() != Some(controller.uid.as_str()) || status.target_node.is_none() {
            return false;
        }
        let waits = match (status.strategy, status.verdict()) {
            (Some(Strategy::ReplaceFirst), Verdict::Open | Verdict::Taken) => {
                (Phase::Handover..=Phase::Restoring).contains(&status.phase)
            }
            (Some(Strategy::DeleteFirst), Verdict::Committed) => !status.phase.is_terminal() && !status.is_given_up(),
            _ => false,
        };
        // A StatefulSet may be making another of its pods at the same time.
        let same_name = controller.kind != "StatefulSet" || pod.name_any() == migration.spec.pod.name;
        waits && same_name && !is_there(migration)
    })
}

/// What becomes of the pod; none where it stays as it is.
///
/// A replacement gets the rules for restarts that any new pod would get: the application that is restored in it goes on under
/// those that it has in its memory, and these are for a container that starts afresh.
pub(super) fn admitted(pod: &Pod, policies: &[ProtectedWorkload], expected_by: Option<&Migration>) -> Option<Pod> {
    let mut admitted = pod.clone();
    let policy = policy::selecting(policies, pod);
    let rules = policy.and_then(|policy| policy.spec.restart.as_ref());
    if let Some(migration) = expected_by {
        let target = migration.status.as_ref().and_then(|status| status.target_node.clone())?;
        manifest::stamp(&mut admitted, &migration.name_any(), &target);
    } else {
        policy.filter(|policy| policy::moves(policy) || rules.is_some())?;
        manifest::protect(&mut admitted);
    }
    if let Some(rules) = rules {
        let checkpoint = policy.and_then(|policy| policy.spec.checkpoint.as_ref());
        manifest::supervise(&mut admitted, rules, checkpoint);
    }
    Some(admitted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::{self, Says};
    use serde_json::{Value, json};
    use tideover_crds::migration::GIVEN_UP;
    use tideover_crds::names;

    fn pod(name: &str, kind: &str, controller: &str) -> Pod {
        let owner =
            json!({ "apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": controller, "controller": true });
        serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "app": "x" }, "ownerReferences": [owner] },
            "spec": { "containers": [] },
        }))
        .expect("a pod")
    }

    fn migration(strategy: &str, phase: &str, owner: &str) -> Migration {
        serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "Migration",
            "metadata": { "name": "m" }, "spec": { "pod": { "name": "p-0" } },
            "status": {
                "phase": phase, "attempt": 1, "strategy": strategy, "controllerUid": "cu", "targetNode": "b",
                "owner": { "node": owner, "attempt": if owner == "a" { 0 } else { 1 } },
                "sourcePod": { "name": "p-0", "uid": "pu", "node": "a" },
            },
        }))
        .expect("a Migration")
    }

    fn policy() -> ProtectedWorkload {
        let spec: Value = json!({ "selector": { "matchLabels": { "app": "x" } } });
        serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "ProtectedWorkload", "metadata": { "name": "w" }, "spec": spec,
        }))
        .expect("a policy")
    }

    #[track_caller]
    fn check(strategy: &str, phase: &str, owner: &str, pod: &Pod, expected: bool) {
        let all = [migration(strategy, phase, owner)];
        assert_eq!(expected_by(&all, pod, |_| false).is_some(), expected, "{strategy} {phase} {owner}");
    }

    #[test]
    fn a_deployments_replacement_is_expected_from_the_handover_until_the_commit() {
        let pod = pod("p-1", "ReplicaSet", "cu");
        check("ReplaceFirst", "PreCopying", "a", &pod, false);
        check("ReplaceFirst", "Handover", "a", &pod, true);
        check("ReplaceFirst", "Restoring", "a", &pod, true);
        check("ReplaceFirst", "Committing", "b", &pod, false);
    }

    #[test]
    fn a_stateful_sets_replacement_is_expected_after_the_commit_under_its_name() {
        check("DeleteFirst", "Committing", "b", &pod("p-0", "StatefulSet", "cu"), true);
        check("DeleteFirst", "Committing", "b", &pod("p-1", "StatefulSet", "cu"), false);
        check("DeleteFirst", "Transferring", "a", &pod("p-0", "StatefulSet", "cu"), false);
        check("DeleteFirst", "Succeeded", "b", &pod("p-0", "StatefulSet", "cu"), false);
    }

    #[test]
    fn nothing_waits_for_a_pod_once_the_state_was_given_up() {
        let pod = pod("p-0", "StatefulSet", "cu");
        let mut given_up = migration("DeleteFirst", "Committing", "b");
        assert!(expected_by(std::slice::from_ref(&given_up), &pod, |_| false).is_some());
        let says = Says { holds: true, reason: "TargetGone", message: "m" };
        let conditions = &mut given_up.status.as_mut().expect("a status").conditions;
        condition::set(conditions, GIVEN_UP, &says, None, jiff::Timestamp::UNIX_EPOCH);
        assert!(expected_by(&[given_up], &pod, |_| false).is_none());
    }

    #[test]
    fn another_controllers_pod_is_not_expected() {
        check("ReplaceFirst", "Handover", "a", &pod("p-1", "ReplicaSet", "other"), false);
    }

    #[test]
    fn a_second_pod_beside_the_replacement_is_an_ordinary_one() {
        let all = [migration("ReplaceFirst", "Handover", "a")];
        assert!(expected_by(&all, &pod("p-2", "ReplicaSet", "cu"), |_| true).is_none());
    }

    #[test]
    fn a_replacement_is_stamped_and_pinned() {
        let migration = migration("ReplaceFirst", "Handover", "a");
        let pod = admitted(&pod("p-1", "ReplicaSet", "cu"), &[], Some(&migration)).expect("a change");
        assert_eq!(pod.annotations()[names::REPLACEMENT_OF], "m");
        let spec = serde_json::to_string(&pod.spec).expect("JSON");
        assert!(spec.contains(r#""key":"metadata.name","operator":"In","values":["b"]"#), "{spec}");
    }

    #[test]
    fn a_protected_pod_comes_under_the_shim() {
        let pod = admitted(&pod("p-1", "ReplicaSet", "cu"), &[policy()], None).expect("a change");
        assert_eq!(pod.spec.and_then(|spec| spec.runtime_class_name).as_deref(), Some(names::RUNTIME_CLASS));
    }

    #[test]
    fn a_pod_of_another_runtime_keeps_it() {
        let mut pod = pod("p-1", "ReplicaSet", "cu");
        pod.spec.get_or_insert_default().runtime_class_name = Some("gvisor".into());
        let pod = admitted(&pod, &[policy()], None).expect("a change");
        assert_eq!(pod.spec.and_then(|spec| spec.runtime_class_name).as_deref(), Some("gvisor"));
    }

    fn restarting(action: &str) -> ProtectedWorkload {
        let mut policy = policy();
        policy.spec.on_maintenance = serde_json::from_value(json!({ "action": action })).expect("an action");
        policy.spec.restart = Some(serde_json::from_value(json!({ "policy": "Always" })).expect("rules"));
        policy
    }

    #[test]
    fn a_pod_gets_the_rules_of_its_policy_whether_it_is_moved_or_not() {
        for action in ["Migrate", "Ignore"] {
            let pod = admitted(&pod("p-1", "ReplicaSet", "cu"), &[restarting(action)], None).expect("a change");
            assert!(pod.annotations()[names::SUPERVISION].contains("Always"), "{action}");
            assert_eq!(pod.spec.and_then(|spec| spec.runtime_class_name).as_deref(), Some(names::RUNTIME_CLASS));
        }
        let without = admitted(&pod("p-1", "ReplicaSet", "cu"), &[policy()], None).expect("a change");
        assert!(!without.annotations().contains_key(names::SUPERVISION));
    }

    #[test]
    fn a_replacement_has_rules_for_when_it_starts_afresh() {
        let migration = migration("ReplaceFirst", "Handover", "a");
        let pod = pod("p-1", "ReplicaSet", "cu");
        let replacement = admitted(&pod, &[restarting("Migrate")], Some(&migration)).expect("a change");
        assert!(replacement.annotations().contains_key(names::SUPERVISION));
        let unruled = admitted(&pod, &[], Some(&migration)).expect("a change");
        assert!(!unruled.annotations().contains_key(names::SUPERVISION));
    }

    #[test]
    fn any_other_pod_stays_as_it_is() {
        let mut pod = pod("p-1", "ReplicaSet", "cu");
        pod.labels_mut().clear();
        assert_eq!(admitted(&pod, &[policy()], None), None);
    }
}
