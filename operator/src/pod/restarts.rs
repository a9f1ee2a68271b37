//! What the nodes of pods say about restarts in place. Pure.

use super::seen::annotation;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tideover_crds::restart::StartLimitAction;
use tideover_crds::restart_report::{ContainerReport, Outcome};
use tideover_crds::{PodRestarts, RestartReport, Supervision, names};

/// A container waits to be moved, because its application was restarted too often where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Since when.
    pub since: Timestamp,
    /// Its id, which no other container has.
    pub id: String,
    /// Number of the end after which it waits, in that container's record.
    pub sequence: u64,
}

/// The container of `pod` that waits to be moved at `now`, if one does. Its node's word alone moves no pod: the pod's rules must have it
/// wait, and the container that is meant must be the one that there is.
pub fn held(pod: &Pod, now: Timestamp) -> Option<Held> {
    let rules = Supervision::parse(annotation(pod, names::SUPERVISION)?).ok()?;
    let waits = |container: &ContainerReport| {
        let last = &container.last;
        rules.is_of(&container.name)
            && last.outcome == Outcome::Migrate
            && last.held_until.as_ref().is_some_and(|until| until.0 > now)
            && is_running(pod, &container.name, &container.id)
    };
    let container = reported(pod).into_iter().find(waits)?;
    let held = Held { since: container.last.at.0, id: container.id, sequence: container.sequence };
    (rules.restart.start_limit.action == StartLimitAction::Migrate).then_some(held)
}

/// Whether the container `name` runs, as kubelet knows it, and has this id.
fn is_running(pod: &Pod, name: &str, id: &str) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    // kubelet puts the runtime before it: containerd://<id>.
    let has_id = |known: &str| known.rsplit_once('/').is_some_and(|(_, known)| known == id);
    statuses.filter(|status| status.name == name).any(|status| {
        status.state.as_ref().is_some_and(|state| state.running.is_some())
            && status.container_id.as_deref().is_some_and(has_id)
    })
}

/// What is known of the restarts of `pod`; none where nothing is, or where it makes no sense.
pub fn restarts(pod: &Pod) -> Option<PodRestarts> {
    let containers = reported(pod);
    let newest = containers.iter().max_by_key(|container| container.last.at.0)?;
    // Each is bounded, and so is their number.
    let count: u64 = containers.iter().map(ContainerReport::total).sum();
    Some(PodRestarts {
        count: i64::try_from(count).unwrap_or(i64::MAX),
        container: newest.name.clone(),
        last: newest.last.clone(),
    })
}

/// What is reported of the containers that the pod has.
fn reported(pod: &Pod) -> Vec<ContainerReport> {
    let report = annotation(pod, names::RESTARTS).and_then(|text| RestartReport::parse(text).ok()).unwrap_or_default();
    let has = |name: &str| pod.spec.iter().flat_map(|spec| &spec.containers).any(|container| container.name == name);
    let mut containers: Vec<ContainerReport> = report.containers.into_iter().filter(|one| has(&one.name)).collect();
    containers.sort_by(|one, other| one.name.cmp(&other.name));
    containers.dedup_by(|one, other| one.name == other.name);
    containers
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container(name: &str, restarts: u64, second: u32) -> Value {
        json!({
            "name": name, "id": "c", "sequence": restarts, "restarts": restarts, "earlier": 2,
            "last": { "at": format!("2026-01-01T00:00:{second:02}Z"), "cause": "UncleanExitCode", "status": "7",
                      "outcome": "Restart", "rule": "Policy" },
        })
    }

    fn pod(text: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "annotations": { names::RESTARTS: text } },
            "spec": { "containers": [{ "name": "app" }, { "name": "proxy" }] },
        }))
        .expect("a pod")
    }

    #[track_caller]
    fn check(containers: Value, expected: Option<(i64, &str)>) {
        let known = restarts(&pod(&json!({ "version": 1, "containers": containers }).to_string()));
        assert_eq!(known.as_ref().map(|known| (known.count, known.container.as_str())), expected);
    }

    #[test]
    fn all_containers_count_and_the_newest_end_is_shown() {
        check(json!([container("app", 3, 9), container("proxy", 1, 5)]), Some((8, "app")));
        check(json!([container("app", 3, 1), container("proxy", 1, 5)]), Some((8, "proxy")));
        check(json!([]), None);
    }

    #[test]
    fn a_container_that_the_pod_has_not_got_or_has_once_does_not_count() {
        check(json!([container("other", 3, 1)]), None);
        check(json!([container("app", 3, 1), container("app", 9, 1)]), Some((5, "app")));
    }

    #[test]
    fn what_makes_no_sense_says_nothing() {
        assert_eq!(restarts(&Pod::default()), None);
        for text in ["", "{}", "[1]", r#"{"version": 1, "containers": [{"name": "app"}]}"#] {
            assert_eq!(restarts(&pod(text)), None, "{text}");
        }
    }

    fn waiting() -> Value {
        json!({
            "metadata": { "annotations": {
                names::SUPERVISION: json!({
                    "version": tideover_crds::supervision::VERSION, "containers": ["app"],
                    "restart": { "startLimit": { "action": "Migrate" } },
                }).to_string(),
                names::RESTARTS: json!({ "version": 1, "containers": [{
                    "name": "app", "id": "c1", "sequence": 5, "restarts": 4,
                    "last": { "at": "2026-01-01T00:00:00Z", "cause": "UncleanExitCode", "status": "7", "outcome": "Migrate",
                              "rule": "StartLimit", "heldUntil": "2026-01-01T00:03:00Z" },
                }] }).to_string(),
            } },
            "spec": { "containers": [{ "name": "app" }] },
            "status": { "containerStatuses": [{
                "name": "app", "containerID": "containerd://c1", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": { "running": {} },
            }] },
        })
    }

    #[track_caller]
    fn held_at(pod: &Value, now: &str) -> Option<Held> {
        held(&serde_json::from_value(pod.clone()).expect("a pod"), now.parse().expect("a time"))
    }

    #[test]
    fn a_container_waits_until_its_time_is_over() {
        let since = "2026-01-01T00:00:00Z".parse().expect("a time");
        let held = Some(Held { since, id: "c1".into(), sequence: 5 });
        assert_eq!(held_at(&waiting(), "2026-01-01T00:02:59Z"), held);
        assert_eq!(held_at(&waiting(), "2026-01-01T00:03:00Z"), None);
    }

    #[test]
    fn a_nodes_word_alone_moves_no_pod() {
        let check = |pointer: &str, value: Value| {
            let mut pod = waiting();
            *pod.pointer_mut(pointer).expect("a field") = value;
            assert_eq!(held_at(&pod, "2026-01-01T00:00:01Z"), None, "{pointer}");
        };
        let rules = json!({ "version": tideover_crds::supervision::VERSION, "containers": ["app"], "restart": {} });
        check("/metadata/annotations/tideover.dev~1supervision", json!(rules.to_string()));
        check("/metadata/annotations/tideover.dev~1supervision", json!("{}"));
        check("/metadata/annotations/tideover.dev~1restarts", json!("{}"));
        check("/spec/containers/0/name", json!("other"));
        check("/status/containerStatuses/0/containerID", json!("containerd://c2"));
        check("/status/containerStatuses/0/state", json!({ "terminated": { "exitCode": 7 } }));
    }
}
