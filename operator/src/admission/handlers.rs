//! Reads what a decision needs, asks for it, and answers the API server.
//!
//! Where something can't be read, a pod's creation fails (the webhook's failure policy decides what that means) and an
//! eviction is answered 429: whoever drains tries again, and a protected pod is not lost to a hiccup.

use super::evictions::{self, Eviction, Ruling};
use super::review::{Refusal, refuse};
use super::{ours, pods};
use crate::begin::{BeginError, begin};
use crate::causes::chain;
use crate::migration::claim_modes;
use crate::pod::obstacles::obstacles;
use crate::pod::seen;
use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};
use std::sync::Arc;
use thiserror::Error;
use tideover_crds::{Migration, MigrationReason, ProtectedWorkload};
use tracing::{info, warn};

/// The most that a review may have, bytes: two objects of the API server's largest size, and then some.
const BODY_MAX: usize = 8 << 20;

/// What the webhooks work with.
#[derive(Clone)]
pub struct Admission {
    client: Client,
    recorder: Recorder,
    operator_user: String,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("operator_user", &self.operator_user).finish_non_exhaustive()
    }
}

#[derive(Debug, Error)]
enum AdmitError {
    #[error("the review has no request in it")]
    Empty,
    #[error("read {what}")]
    Read {
        what: &'static str,
        #[source]
        source: Box<kube::Error>,
    },
    #[error("read the volumes of the pod")]
    Volumes(#[source] crate::migration::ObserveError),
    #[error("begin a move")]
    Begin(#[source] BeginError),
    #[error("turn the pod into JSON")]
    Json(#[source] serde_json::Error),
    #[error("write the patch")]
    Patch(#[source] kube::core::admission::SerializePatchError),
}

impl AdmitError {
    fn read(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Read { what, source: Box::new(source) }
    }
}

impl IntoResponse for AdmitError {
    fn into_response(self) -> Response {
        let message = chain(&self);
        warn!(message, "a review was not answered");
        (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
    }
}

type Reviewed = Result<Json<AdmissionReview<DynamicObject>>, AdmitError>;

impl Admission {
    /// Webhooks for an operator that the API server knows as `operator_user`.
    pub fn new(client: Client, recorder: Recorder, operator_user: String) -> Self {
        Self { client, recorder, operator_user }
    }

    /// The paths that are served.
    pub fn router(self) -> Router {
        Router::new()
            .route("/deny-forged-pods", post(deny_forged_pods))
            .route("/mutate-pods", post(mutate_pods))
            .route("/validate-pods", post(validate_pods))
            .route("/validate-evictions", post(validate_evictions))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(Arc::new(self))
    }

    fn is_operator<T: Resource>(&self, request: &AdmissionRequest<T>) -> bool {
        request.user_info.username.as_deref() == Some(self.operator_user.as_str())
    }

    async fn policies(&self, namespace: &str) -> Result<Vec<ProtectedWorkload>, AdmitError> {
        let api: Api<ProtectedWorkload> = Api::namespaced(self.client.clone(), namespace);
        let all = api.list(&ListParams::default()).await.map_err(AdmitError::read("the ProtectedWorkloads"))?;
        Ok(all.items)
    }

    async fn migrations(&self, namespace: &str) -> Result<Vec<Migration>, AdmitError> {
        let api: Api<Migration> = Api::namespaced(self.client.clone(), namespace);
        let all = api.list(&ListParams::default()).await.map_err(AdmitError::read("the Migrations"))?;
        Ok(all.items)
    }

    /// UIDs of the replacements that Migrations have recorded and that exist.
    async fn replacements_there(&self, namespace: &str, migrations: &[Migration]) -> Result<Vec<String>, AdmitError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut there = Vec::new();
        for status in migrations.iter().filter_map(|migration| migration.status.as_ref()) {
            let Some(recorded) = status.replacement.as_ref().filter(|_| !status.phase.is_terminal()) else { continue };
            let pod = api.get_opt(&recorded.name).await.map_err(AdmitError::read("a replacement"))?;
            if pod.is_some_and(|pod| {
                pod.uid().as_ref() == Some(&recorded.uid) && pod.metadata.deletion_timestamp.is_none()
            }) {
                there.push(recorded.uid.clone());
            }
        }
        Ok(there)
    }
}

fn request<T: Resource>(review: AdmissionReview<T>) -> Result<AdmissionRequest<T>, AdmitError> {
    review.try_into().map_err(|_| AdmitError::Empty)
}

/// New pods with something of ours, from anybody but the operator. It comes before what admission itself puts there.
async fn deny_forged_pods(
    State(admission): State<Arc<Admission>>,
    Json(review): Json<AdmissionReview<Pod>>,
) -> Reviewed {
    let request = request(review)?;
    let forged = request.object.as_ref().and_then(ours::brought).filter(|_| !admission.is_operator(&request));
    let response = match forged {
        Some(key) => refuse(&request, Refusal::Forbidden, &format!("only Tideover itself may set {key} on a pod")),
        None => AdmissionResponse::from(&request),
    };
    Ok(Json(response.into_review()))
}

/// Changes of what is ours on a pod, by anybody but the operator.
async fn validate_pods(State(admission): State<Arc<Admission>>, Json(review): Json<AdmissionReview<Pod>>) -> Reviewed {
    let request = request(review)?;
    let changed = match (&request.old_object, &request.object) {
        (Some(old), Some(new)) if !admission.is_operator(&request) => ours::changed(old, new),
        _ => None,
    };
    let response = match changed {
        Some(key) => refuse(&request, Refusal::Forbidden, &format!("only Tideover itself may change {key} on a pod")),
        None => AdmissionResponse::from(&request),
    };
    Ok(Json(response.into_review()))
}

async fn mutate_pods(State(admission): State<Arc<Admission>>, Json(review): Json<AdmissionReview<Pod>>) -> Reviewed {
    let request = request(review)?;
    let response = AdmissionResponse::from(&request);
    let Some(pod) = &request.object else { return Ok(Json(response.into_review())) };
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let mut migrations = Vec::new();
    if seen::controller(pod).is_some() {
        migrations = admission.migrations(namespace).await?;
    }
    // Most pods are nobody's replacement; only where one may be is it worth asking whether the recorded one exists.
    let candidate = pods::expected_by(&migrations, pod, |_| false).is_some();
    let there = if candidate { admission.replacements_there(namespace, &migrations).await? } else { Vec::new() };
    let is_there = |migration: &Migration| {
        let recorded = migration.status.as_ref().and_then(|status| status.replacement.as_ref());
        recorded.is_some_and(|recorded| there.contains(&recorded.uid))
    };
    let expected_by = pods::expected_by(&migrations, pod, is_there);
    let policies = admission.policies(namespace).await?;
    let Some(admitted) = pods::admitted(pod, &policies, expected_by) else {
        return Ok(Json(response.into_review()));
    };
    if let Some(migration) = expected_by {
        info!(namespace, migration = migration.name_any(), "a replacement is pinned");
    }
    let before = serde_json::to_value(pod).map_err(AdmitError::Json)?;
    let after = serde_json::to_value(&admitted).map_err(AdmitError::Json)?;
    let response = response.with_patch(json_patch::diff(&before, &after)).map_err(AdmitError::Patch)?;
    Ok(Json(response.into_review()))
}

async fn validate_evictions(
    State(admission): State<Arc<Admission>>,
    Json(review): Json<AdmissionReview<DynamicObject>>,
) -> Reviewed {
    let request = request(review)?;
    let response = match evict(&admission, &request).await {
        Ok(response) => response,
        Err(error) => {
            let message =
                format!("whether the pod {} may be evicted is not known yet: {}", request.name, chain(&error));
            warn!(message, "an eviction has to wait");
            refuse(&request, Refusal::TryAgain, &message)
        }
    };
    Ok(Json(response.into_review()))
}

async fn evict(
    admission: &Admission,
    request: &AdmissionRequest<DynamicObject>,
) -> Result<AdmissionResponse, AdmitError> {
    let namespace = request.namespace.as_deref().unwrap_or_default();
    let client = &admission.client;
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let allowed = AdmissionResponse::from(request);
    // The API server itself says best that there is no such pod.
    let Some(pod) = pods.get_opt(&request.name).await.map_err(AdmitError::read("the pod"))? else {
        return Ok(allowed);
    };
    let node = match seen::node(&pod) {
        Some(name) => Api::<Node>::all(client.clone()).get_opt(name).await.map_err(AdmitError::read("the node"))?,
        None => None,
    };
    let claims = claim_modes(client, &pod).await.map_err(AdmitError::Volumes)?;
    let eviction = Eviction {
        pod: &pod,
        node: node.as_ref(),
        policies: &admission.policies(namespace).await?,
        migrations: &admission.migrations(namespace).await?,
        obstacles: &obstacles(&pod, &claims),
    };
    Ok(match evictions::rule(&eviction, Timestamp::now()) {
        Ruling::Allow => allowed,
        Ruling::AllowUnmovable(message) => {
            if !request.dry_run {
                warn_of(admission, &pod, &message).await;
            }
            let mut warned = allowed;
            warned.warnings = Some(vec![message]);
            warned
        }
        Ruling::MovedAway(message) => refuse(request, Refusal::NotFound, &message),
        Ruling::Refuse(message) => refuse(request, Refusal::Forbidden, &message),
        Ruling::Wait { message, create } => {
            if let Some(name) = create.filter(|_| !request.dry_run) {
                begin(client, &pod, name, MigrationReason::Drain).await.map_err(AdmitError::Begin)?;
            }
            refuse(request, Refusal::TryAgain, &message)
        }
    })
}

async fn warn_of(admission: &Admission, pod: &Pod, message: &str) {
    let event = Event {
        type_: EventType::Warning,
        reason: "NotMovable".to_owned(),
        note: Some(message.to_owned()),
        action: "Evict".to_owned(),
        secondary: None,
    };
    if let Err(error) = admission.recorder.publish(&event, &pod.object_ref(&())).await {
        warn!(%error, "an Event was lost");
    }
}
