//! A change of one pod that applies only to the pod that was looked at: same UID, same version.

use super::{ApplyError, Outcome};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

/// How often a pod that changes meanwhile (kubelet writes its status) is looked at again.
const TRIES: usize = 5;

/// Reads the pod and applies the merge patch that `change` makes of it; `change` says none where nothing is to be done.
/// [`Outcome::Overtaken`] where the pod is gone, or kept changing.
pub(super) async fn edit(
    pods: &Api<Pod>,
    name: &str,
    uid: &str,
    change: impl Fn(&Pod) -> Change,
) -> Result<Outcome, ApplyError> {
    for _ in 0..TRIES {
        let pod = pods.get_opt(name).await.map_err(ApplyError::api("read the pod", name))?;
        let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(uid)) else {
            return Ok(Outcome::Overtaken);
        };
        let mut patch = match change(&pod) {
            Change::Nothing => return Ok(Outcome::Done),
            Change::Overtaken => return Ok(Outcome::Overtaken),
            Change::Merge(patch) => patch,
        };
        patch["metadata"]["uid"] = json!(uid);
        patch["metadata"]["resourceVersion"] = json!(pod.metadata.resource_version);
        match pods.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => return Ok(Outcome::Done),
            Err(kube::Error::Api(answer)) if answer.code == 409 => {}
            Err(kube::Error::Api(answer)) if answer.code == 404 => return Ok(Outcome::Overtaken),
            Err(error) => return Err(ApplyError::api("change the pod", name)(error)),
        }
    }
    Ok(Outcome::Overtaken)
}

/// What is to be done with a pod.
pub(super) enum Change {
    /// It is as it should be.
    Nothing,
    /// It is not what the decision was taken on.
    Overtaken,
    /// This merge patch.
    Merge(Value),
}
