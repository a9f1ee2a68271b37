//! Writes on pods what they are to say of restarts in place: one annotation, through the status, which is all that an agent may write.

use super::summary::{Summaries, Summary};
use crate::agent::context::{Context, RequestError, answer};
use crate::causes::chain;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use std::time::Instant;
use thiserror::Error;
use tideover_crds::{RestartReport, names};
use tracing::{debug, warn};

/// Why a pod does not say what it should.
#[derive(Debug, Error)]
enum AnnotateError {
    #[error("read the pod")]
    Read(#[source] RequestError),
    #[error("write the pod")]
    Write(#[source] RequestError),
    #[error("encode the report")]
    Encode(#[source] serde_json::Error),
    /// Another pod may have its name.
    #[error("the pod is gone")]
    Gone,
}

impl AnnotateError {
    /// Whether the same request will never be answered otherwise. A conflict may be another write, or another pod of the same name.
    fn is_final(&self) -> bool {
        match self {
            Self::Gone | Self::Encode(_) => true,
            Self::Read(RequestError::Api(kube::Error::Api(status)))
            | Self::Write(RequestError::Api(kube::Error::Api(status))) => {
                (400..500).contains(&status.code) && !matches!(status.code, 409 | 429)
            }
            Self::Read(_) | Self::Write(_) => false,
        }
    }
}

/// Writes to the pods that are due. Where the API server does not answer, the others wait too.
pub async fn annotate(context: &Context, summaries: &mut Summaries) {
    for uid in summaries.due(Instant::now()) {
        let Some(pod) = summaries.pod(&uid) else { continue };
        pod.tried(Instant::now());
        match say(&context.pods(&pod.namespace), &uid, pod).await {
            Ok(there) => pod.settle(Some(there)),
            Err(AnnotateError::Gone) => {
                debug!(namespace = pod.namespace, pod = pod.name, "a pod is gone before it said of its restarts");
                pod.settle(None);
            }
            Err(error) if error.is_final() => {
                warn!(namespace = pod.namespace, pod = pod.name, error = %chain(&error), "a pod can't say of its restarts");
                pod.settle(None);
            }
            Err(error) => {
                // Whether it was written is not known.
                pod.there = None;
                warn!(namespace = pod.namespace, pod = pod.name, error = %chain(&error), "what a pod says of its restarts has to wait");
                return;
            }
        }
    }
}

/// Has the pod say what it should; returns that.
async fn say(api: &Api<Pod>, uid: &str, pod: &Summary) -> Result<RestartReport, AnnotateError> {
    let there = match &pod.there {
        Some(there) => there.clone(),
        None => {
            let object = answer(api.get_opt(&pod.name)).await.map_err(AnnotateError::Read)?;
            let object = object.filter(|object| object.uid().as_deref() == Some(uid)).ok_or(AnnotateError::Gone)?;
            // What can't be read was written by another version: it is begun anew.
            let text = object.annotations().get(names::RESTARTS);
            text.and_then(|text| RestartReport::parse(text).ok()).unwrap_or_default()
        }
    };
    let Some(report) = pod.report(&there) else { return Ok(there) };
    let text = serde_json::to_string(&report).map_err(AnnotateError::Encode)?;
    let patch = Patch::Merge(json!({ "metadata": { "uid": uid, "annotations": { names::RESTARTS: text } } }));
    match answer(api.patch_status(&pod.name, &PatchParams::default(), &patch)).await {
        Ok(_) => Ok(report),
        Err(RequestError::Api(kube::Error::Api(status))) if status.code == 404 => Err(AnnotateError::Gone),
        Err(error) => Err(AnnotateError::Write(error)),
    }
}
