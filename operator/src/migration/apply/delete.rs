//! Deletes one pod, by UID: a pod of the same name that came later is not touched.

use super::{ApplyError, Outcome};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};

/// Deletes the pod with `grace_seconds` to end.
pub(super) async fn delete(pods: &Api<Pod>, name: &str, uid: &str, grace_seconds: u32) -> Result<Outcome, ApplyError> {
    let only = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let params = DeleteParams::default().grace_period(grace_seconds).preconditions(only);
    match pods.delete(name, &params).await {
        Ok(_) => Ok(Outcome::Done),
        // Gone, or another pod has its name: either way that pod is deleted.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(Outcome::Done),
        Err(error) => Err(ApplyError::api("delete the pod", name)(error)),
    }
}
