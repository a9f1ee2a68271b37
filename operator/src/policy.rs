//! Which ProtectedWorkload a pod belongs to. Pure.

use crate::pod::seen;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::core::{ParseExpressionError, Selector, SelectorExt};
use tideover_crds::restart::StartLimitAction;
use tideover_crds::{MaintenanceAction, ProtectedWorkload};

/// The selector of a policy.
///
/// # Errors
/// Where the selector uses an operator that does not exist.
pub fn selector(policy: &ProtectedWorkload) -> Result<Selector, ParseExpressionError> {
    policy.spec.selector.clone().try_into()
}

/// The policy that selects `pod`; of several, one that moves pods, and then the first by name. A policy that is being
/// deleted, or whose selector selects everything or can't be read, selects nothing; nor is a reservation or a rehearsal ever protected.
pub fn selecting<'a>(policies: &'a [ProtectedWorkload], pod: &Pod) -> Option<&'a ProtectedWorkload> {
    if seen::stands_beside(pod) {
        return None;
    }
    let selects = |policy: &&ProtectedWorkload| {
        policy.metadata.deletion_timestamp.is_none()
            && selector(policy).is_ok_and(|selector| !selector.selects_all() && selector.matches(pod.labels()))
    };
    policies.iter().filter(selects).min_by_key(|policy| (!moves(policy), policy.name_any()))
}

/// True of a policy under which pods are moved.
pub fn moves(policy: &ProtectedWorkload) -> bool {
    policy.spec.on_maintenance.action == MaintenanceAction::Migrate
}

/// True of a policy under which a pod is moved once its start limit is hit.
pub fn moves_at_start_limit(policy: &ProtectedWorkload) -> bool {
    policy.spec.restart.as_ref().is_some_and(|restart| restart.start_limit.action == StartLimitAction::Migrate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tideover_crds::names;

    fn policy(name: &str, label: &str, action: &str) -> ProtectedWorkload {
        serde_json::from_value(json!({
            "apiVersion": "tideover.dev/v1alpha1", "kind": "ProtectedWorkload", "metadata": { "name": name },
            "spec": { "selector": { "matchLabels": { "app": label } }, "onMaintenance": { "action": action } },
        }))
        .expect("a policy")
    }

    fn pod(app: &str) -> Pod {
        serde_json::from_value(json!({ "metadata": { "labels": { "app": app } } })).expect("a pod")
    }

    #[test]
    fn of_several_policies_the_one_that_moves_counts() {
        let policies = [policy("a", "x", "Ignore"), policy("b", "x", "Migrate"), policy("c", "x", "Migrate")];
        assert_eq!(selecting(&policies, &pod("x")).map(ResourceExt::name_any), Some("b".to_owned()));
        assert!(selecting(&policies, &pod("y")).is_none());
    }

    #[test]
    fn what_the_operator_made_for_a_move_is_never_protected() {
        let (mut reservation, mut rehearsal) = (pod("x"), pod("x"));
        reservation.labels_mut().insert(names::RESERVATION_FOR.into(), "m".into());
        rehearsal.annotations_mut().insert(names::REHEARSAL_OF.into(), "m".into());
        for pod in [reservation, rehearsal] {
            assert!(selecting(&[policy("b", "x", "Migrate")], &pod).is_none());
        }
    }
}
