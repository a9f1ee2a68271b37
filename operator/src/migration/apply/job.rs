//! Takes a pod out of its Job, by the labels that the Job tells its pods apart by.
//!
//! A Job counts a pod of its own that is deleted before it has ended as one that has failed: one more, and the Job may be at its
//! `backoffLimit`, and it waits ten seconds before it makes another. What has none of these labels it lets go of, with its finalizer,
//! and makes another at once.

use super::edit::{Change, edit};
use super::{ApplyError, Outcome};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::{Map, Value, json};
use tideover_crds::names::JOB_LABELS;

/// Takes the labels off.
pub(super) async fn take_out(pods: &Api<Pod>, name: &str, uid: &str) -> Result<Outcome, ApplyError> {
    edit(pods, name, uid, leave).await
}

fn leave(pod: &Pod) -> Change {
    let there = JOB_LABELS.into_iter().filter(|name| pod.labels().contains_key(*name));
    let gone: Map<String, Value> = there.map(|name| (name.to_owned(), Value::Null)).collect();
    if gone.is_empty() { Change::Nothing } else { Change::Merge(json!({ "metadata": { "labels": gone } })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_leaves_its_job_by_the_labels_that_it_has_and_keeps_those_of_services() {
        let pod = |labels: Value| -> Pod {
            serde_json::from_value(json!({ "metadata": { "name": "p", "labels": labels } })).expect("a pod")
        };
        let left = leave(&pod(json!({ "batch.kubernetes.io/controller-uid": "ju", "job-name": "j", "app": "x" })));
        let Change::Merge(patch) = left else { panic!("it stays") };
        assert_eq!(patch, json!({ "metadata": { "labels": { "batch.kubernetes.io/controller-uid": null } } }));
        assert!(matches!(leave(&pod(json!({ "job-name": "j" }))), Change::Nothing), "it has left");
    }
}
