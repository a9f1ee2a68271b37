//! Answers the agents' CertificateSigningRequests.

use super::authority::{Authority, CertificateError, Purpose};
use super::request::{Answer, answer};
use crate::causes::chain;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tideover_crds::names;
use time::OffsetDateTime;
use tracing::{info, warn};

/// Pause after an error.
const RETRY: Duration = Duration::from_secs(2);

#[derive(Debug, Error)]
enum SignError {
    #[error("write the approval of {0}")]
    Approval(String, #[source] Box<kube::Error>),
    #[error("make the certificate for {0}")]
    Make(String, #[source] CertificateError),
    #[error("write the certificate of {0}")]
    Certificate(String, #[source] Box<kube::Error>),
}

struct Signer {
    requests: Api<CertificateSigningRequest>,
    authority: Arc<Authority>,
    agent_user: String,
}

/// Runs until it is dropped.
pub async fn sign_for_agents(client: Client, authority: Arc<Authority>, agent_user: String) {
    let requests: Api<CertificateSigningRequest> = Api::all(client);
    let signer = Signer { requests: requests.clone(), authority, agent_user };
    let ours = watcher::Config::default().fields(&format!("spec.signerName={}", names::AGENT_SIGNER));
    let retry = |request: Arc<CertificateSigningRequest>, error: &SignError, _| {
        warn!(name = request.name_any(), error = chain(error), "trying again");
        Action::requeue(RETRY)
    };
    let signing = Controller::new(requests, ours).run(sign, retry, Arc::new(signer));
    signing.for_each(|_| async {}).await;
}

async fn sign(request: Arc<CertificateSigningRequest>, signer: Arc<Signer>) -> Result<Action, SignError> {
    if request.spec.signer_name != names::AGENT_SIGNER || is_answered(&request) {
        return Ok(Action::await_change());
    }
    let name = request.name_any();
    let (identity, key) = match answer(&request.spec, &signer.agent_user) {
        Answer::Sign { name, key } => (name, key),
        Answer::Deny(reason) => {
            info!(name, reason, "a request for a certificate is denied");
            decide(&signer, &request, "Denied", "NotGranted", &reason).await?;
            return Ok(Action::await_change());
        }
    };
    let certificate = signer
        .authority
        .sign(std::slice::from_ref(&identity), &key, Purpose::Peer, OffsetDateTime::now_utc())
        .map_err(|error| SignError::Make(identity.clone(), error))?;
    if !has_condition(&request, "Approved") {
        let message = format!("the request comes from the agent on the node that {identity} names");
        decide(&signer, &request, "Approved", "AgentOnItsNode", &message).await?;
    }
    let patch = Patch::Merge(json!({ "status": { "certificate": STANDARD.encode(certificate.pem()) } }));
    let written = signer.requests.patch_status(&name, &PatchParams::default(), &patch).await;
    written.map_err(|error| SignError::Certificate(name.clone(), Box::new(error)))?;
    info!(name, identity, "a certificate is signed");
    Ok(Action::await_change())
}

fn is_answered(request: &CertificateSigningRequest) -> bool {
    let signed = request.status.as_ref().is_some_and(|status| status.certificate.is_some());
    signed || has_condition(request, "Denied") || has_condition(request, "Failed")
}

fn has_condition(request: &CertificateSigningRequest, type_: &str) -> bool {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == type_)
}

async fn decide(
    signer: &Signer,
    request: &CertificateSigningRequest,
    type_: &str,
    reason: &str,
    message: &str,
) -> Result<(), SignError> {
    let name = request.name_any();
    let mut conditions: Vec<Value> = request
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .filter_map(|condition| serde_json::to_value(condition).ok())
        .collect();
    conditions.push(json!({
        "type": type_, "status": "True", "reason": reason, "message": message,
        "lastUpdateTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    }));
    let patch = Patch::Merge(json!({ "status": { "conditions": conditions } }));
    let written = signer.requests.patch_approval(&name, &PatchParams::default(), &patch).await;
    written.map(|_| ()).map_err(|error| SignError::Approval(name, Box::new(error)))
}
