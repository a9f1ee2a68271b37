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
    match pods.create(&PostParams::default(), &pod).await {
        // Exists: made before, or the source is not quite gone yet. The next look tells which.
        Ok(_) => Ok(Outcome::Done),
        Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(Outcome::Done),
        Err(error) => Err(ApplyError::api("create the replacement", &pod.name_any())(error)),
    }
}
