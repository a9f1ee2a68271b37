//! Asks the API server, without making anything, whether a replacement would be pinned and stamped.
//!
//! Once the source is out of its ReplicaSet, the ReplicaSet makes a pod, whatever state the webhooks are in. One that
//! admission has not seen would start cold beside the source: a second copy. So this is tried before, while nothing has
//! happened yet.

use super::{ApplyError, Outcome};
use crate::pod::manifest::{ManifestError, trial};
use crate::pod::seen::annotation;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use tideover_crds::{Migration, names};

/// Creates, as a dry run, the pod that the source's controller would create.
pub(super) async fn replacement(
    pods: &Api<Pod>,
    migration: &Migration,
    source: &str,
    uid: &str,
) -> Result<Outcome, ApplyError> {
    let found = pods.get_opt(source).await.map_err(ApplyError::api("read the pod", source))?;
    let Some(pod) = found.filter(|pod| pod.uid().as_deref() == Some(uid)) else { return Ok(Outcome::Overtaken) };
    let trial = trial(&pod).map_err(|error| ApplyError::Manifest(ManifestError::Read(error)))?;
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    match pods.create(&dry_run, &trial).await {
        Ok(made) if annotation(&made, names::REPLACEMENT_OF) == Some(&migration.name_any()) => Ok(Outcome::Done),
        Ok(_) => Ok(Outcome::Refused("admission does not pin it; are Tideover's webhooks in force here?".to_owned())),
        Err(kube::Error::Api(answer)) if matches!(answer.code, 400 | 403 | 422) => {
            Ok(Outcome::Refused(answer.message.clone()))
        }
        Err(error) => Err(ApplyError::api("try the replacement of", source)(error)),
    }
}
