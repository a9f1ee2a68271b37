//! Takes a pod out of its Job, by the labels that the Job tells its pods apart by.
//!
//! A Job counts a pod of its own that is deleted before it has ended as one that has failed: one more, and the Job may be at its
//! `backoffLimit`, and it waits ten seconds before it makes another. What has none of these labels it lets go of, with its finalizer,
//! and makes another within a second or so.

use super::{ApplyError, Outcome};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};
use tideover_crds::names::JOB_LABELS;
use tracing::warn;

/// Takes the labels off. The application stands still meanwhile, and its state waits on another node: where somebody's rule refuses
/// this, the pod is deleted all the same, and its Job counts a failure.
pub(super) async fn take_out(pods: &Api<Pod>, name: &str, uid: &str) -> Result<Outcome, ApplyError> {
    match pods.patch(name, &PatchParams::default(), &Patch::Merge(without_labels(uid))).await {
        Ok(_) => Ok(Outcome::Done),
        // Gone, or another one of this name.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(Outcome::Overtaken),
        Err(kube::Error::Api(answer)) => {
            warn!(
                pod = name,
                message = answer.message,
                "the pod could not be taken out of its Job, which will count a failure"
            );
            Ok(Outcome::Done)
        }
        Err(error) => Err(ApplyError::api("take out of its Job the pod", name)(error)),
    }
}

fn without_labels(uid: &str) -> Value {
    let gone: Map<String, Value> = JOB_LABELS.into_iter().map(|name| (name.to_owned(), Value::Null)).collect();
    json!({ "metadata": { "uid": uid, "labels": gone } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_leaves_its_job_by_both_of_its_labels_and_keeps_those_of_services() {
        let ours =
            json!({ "batch.kubernetes.io/controller-uid": "ju", "controller-uid": "ju", "job-name": "j", "app": "x" });
        let mut pod = json!({ "metadata": { "name": "p", "uid": "u", "labels": ours } });
        json_patch::merge(&mut pod, &without_labels("u"));
        let left = json!({ "name": "p", "uid": "u", "labels": { "job-name": "j", "app": "x" } });
        assert_eq!(pod["metadata"], left);
    }
}
