//! Takes a pod out of its ReplicaSet and puts it back, by the label that the ReplicaSet tells its pods apart by.
//!
//! The labels that Services select by stay, so the pod keeps its traffic.

use super::edit::{Change, edit};
use super::{ApplyError, Outcome};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use serde_json::json;
use tideover_crds::names::{ORIGINAL_TEMPLATE_HASH, POD_TEMPLATE_HASH};

/// What a moving pod's hash ends in: no template hashes to it.
const SUFFIX: &str = "-moving";

/// Changes the label away from `hash` and remembers it.
pub(super) async fn take_out(pods: &Api<Pod>, name: &str, uid: &str, hash: &str) -> Result<Outcome, ApplyError> {
    let moving = format!("{hash}{SUFFIX}");
    edit(pods, name, uid, |pod| {
        let now = pod.labels().get(POD_TEMPLATE_HASH).map(String::as_str);
        if now == Some(&moving) {
            Change::Nothing
        } else if now != Some(hash) || pod.metadata.deletion_timestamp.is_some() {
            Change::Overtaken
        } else {
            Change::Merge(json!({ "metadata": {
                "labels": { POD_TEMPLATE_HASH: moving },
                "annotations": { ORIGINAL_TEMPLATE_HASH: hash },
            } }))
        }
    })
    .await
}

/// Puts the label back to `hash` and forgets that it was ever changed.
pub(super) async fn put_back(pods: &Api<Pod>, name: &str, uid: &str, hash: &str) -> Result<Outcome, ApplyError> {
    let outcome = edit(pods, name, uid, |pod| {
        if !pod.annotations().contains_key(ORIGINAL_TEMPLATE_HASH) {
            return Change::Nothing;
        }
        Change::Merge(json!({ "metadata": {
            "labels": { POD_TEMPLATE_HASH: hash },
            "annotations": { ORIGINAL_TEMPLATE_HASH: null },
        } }))
    })
    .await?;
    Ok(outcome)
}
