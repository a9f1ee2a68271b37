//! Answers to the API server, with the status codes that its clients act on.
//!
//! `kubectl drain` waits after 429, counts a pod as gone after 404, and gives up on anything else.

use kube::Resource;
use kube::core::Status;
use kube::core::admission::{AdmissionRequest, AdmissionResponse};
use kube::core::response::{StatusDetails, StatusSummary};

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 403: not allowed, now or later.
    Forbidden,
    /// 404: what it is about is not there any more.
    NotFound,
    /// 429: not now.
    TryAgain,
}

/// Seconds after which a client tries again. client-go itself does so up to ten times before it tells its caller.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Refuses with a sentence.
pub(super) fn refuse<T: Resource>(request: &AdmissionRequest<T>, refusal: Refusal, message: &str) -> AdmissionResponse {
    let (code, reason) = match refusal {
        Refusal::Forbidden => (403, "Forbidden"),
        Refusal::NotFound => (404, "NotFound"),
        Refusal::TryAgain => (429, "TooManyRequests"),
    };
    let mut response = AdmissionResponse::from(request).deny(message);
    response.result = Status {
        status: Some(StatusSummary::Failure),
        code,
        reason: reason.to_owned(),
        message: message.to_owned(),
        ..Default::default()
    };
    if refusal == Refusal::TryAgain {
        response.result.details = Some(StatusDetails {
            name: request.name.clone(),
            group: String::new(),
            kind: request.resource.resource.clone(),
            uid: String::new(),
            causes: Vec::new(),
            retry_after_seconds: RETRY_AFTER_SECONDS,
        });
    }
    response
}
