//! Creates the replacement of a pod that no controller makes again.

use super::{ApplyError, Outcome};
use crate::pod::manifest;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde_json::Value;
use tideover_crds::Migration;

/// Creates it on `node`. The operator stamps it itself: admission lets nobody else do so.
pub(super) async fn create(
    pods: &Api<Pod>,
    migration: &Migration,
    kept: &Value,
    node: &str,
) -> Result<Outcome, ApplyError> {
    let pod = manifest::replacement(kept, &migration.name_any(), node).map_err(ApplyError::Manifest)?;
    make(pods, &pod).await
}

/// Creates it anywhere, as an ordinary pod.
pub(super) async fn create_cold(pods: &Api<Pod>, kept: &Value) -> Result<Outcome, ApplyError> {
    make(pods, &manifest::kept(kept).map_err(ApplyError::Manifest)?).await
}

async fn make(pods: &Api<Pod>, pod: &Pod) -> Result<Outcome, ApplyError> {
    match pods.create(&PostParams::default(), pod).await {
        // Exists: made before, or the source is not quite gone yet. The next look tells which.
        Ok(_) => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if matches!(answer.code, 400 | 403 | 422) => {
            Ok(Outcome::Refused(answer.message.clone()))
        }
        Err(error) => Err(ApplyError::api("create the pod", &pod.name_any())(error)),
    }
}
