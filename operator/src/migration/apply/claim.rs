//! The claim on a pod: at most one Migration may move it, whatever the operator believes to know.

use super::edit::{Change, edit};
use super::{ApplyError, Outcome};
use crate::pod::seen::annotation;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use serde_json::json;
use tideover_crds::{Migration, names};

/// Writes the claim, if what is there is `instead_of`.
pub(super) async fn claim(
    pods: &Api<Pod>,
    migration: &Migration,
    name: &str,
    uid: &str,
    instead_of: Option<&str>,
) -> Result<Outcome, ApplyError> {
    let ours = migration.metadata.uid.as_deref().unwrap_or_default();
    edit(pods, name, uid, |pod| match annotation(pod, names::CLAIMED_BY) {
        Some(claim) if claim == ours => Change::Nothing,
        claim if claim == instead_of => {
            Change::Merge(json!({ "metadata": { "annotations": { names::CLAIMED_BY: ours } } }))
        }
        _ => Change::Overtaken,
    })
    .await
}

/// Takes the claim off, if it is this Migration's.
pub(super) async fn release(
    pods: &Api<Pod>,
    migration: &Migration,
    name: &str,
    uid: &str,
) -> Result<Outcome, ApplyError> {
    let ours = migration.metadata.uid.as_deref();
    edit(pods, name, uid, |pod| match annotation(pod, names::CLAIMED_BY) {
        claim if claim.is_some() && claim == ours => {
            Change::Merge(json!({ "metadata": { "annotations": { names::CLAIMED_BY: null } } }))
        }
        _ => Change::Nothing,
    })
    .await
}
